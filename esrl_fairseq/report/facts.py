"""What a report tells in words: what was run, its warnings, what it showed of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from esrl_fairseq.monitoring.shown import reward_of
from esrl_fairseq.report.differences import marked, pair
from esrl_fairseq.report.figures import Html, Section, table
from esrl_fairseq.report.marks import hours, warnings_of
from esrl_fairseq.report.reading import Record, Recorded

MOST_SHOWN = 20
"""Inputs of ``--show-samples``."""


def tiles(run: Recorded) -> list[tuple[str, str]]:
    """The few numbers that say what a run came to: (name, value)."""
    validated = [
        (r["at"], r["stats"]["reward"])
        for r in run.validations
        if r["stats"].get("reward") is not None
    ]
    found = []
    if validated:
        after = [v for v in validated if v[0] > 0] or validated
        best = max(after, key=lambda v: v[1])
        if validated[0][0] == 0:
            found.append(("validation reward, start", f"{validated[0][1]:.4f}"))
        found.append(("its best", f"{best[1]:.4f}"))
        found.append(("at update", f"{best[0]:,}"))
        found.append(("its last", f"{validated[-1][1]:.4f}"))
    last = run.records[-1]
    minutes = hours(last) * 60
    taken = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    found += [("updates", f"{last['at']:,}"), ("training time", taken)]
    found.append(("warnings", str(len(run.of("warning")))))
    return [*found, ("state", "ended" if last["kind"] == "end" else "no end yet")]


def what_was_run(runs: Sequence[Recorded]) -> Section:
    """Command, start, reward, versions."""
    html = ""
    for run in runs:
        begin = run.begin
        if not begin:
            html += f"<h3>{escape(run.name)}</h3><p>Its record has no beginning.</p>"
            continue
        start = begin["start"]
        resumed = [r for r in run.records if r["kind"] == "begin" and r["resumed"]]
        versions = ", ".join(f"{name} {value}" for name, value in begin["versions"].items())
        rows = [
            ("begun", begin["time"]),
            ("starts from", f"{start['path'] or 'random weights'} {start['option']}"),
            ("reward", begin["reward"]),
            ("options beside the defaults", " ".join(begin["options"]) or "none"),
            ("model", f"{begin['parameters']:,} parameters; {begin['inputs']:,} training inputs"),
            ("machine", f"{begin['device']}, {begin['ranks']} rank(s)"),
            ("versions", versions),
        ]
        if resumed:
            went_on = ", ".join(f"{r['at']:,} ({r['time']})" for r in resumed)
            rows.append(("went on after update", went_on))
        html += f"<h3>{escape(run.name)}</h3><pre><code>{escape(begin['command'])}</code></pre>"
        html += table(("", ""), rows)
    return Section("What was run?", "The same command makes the same run.", html=html)


def warnings(runs: Sequence[Recorded]) -> Section:
    """All of them, with the numbers of their marks in the plots."""
    rows = [
        (number, run.name, record["at"], record["message"])
        for number, (run, record) in enumerate(warnings_of(runs), 1)
    ]
    html = table(("", "run", "update", "warning"), rows, (0, 2)) if rows else "<p>None.</p>"
    return Section(
        "What did the run warn of?",
        "The numbers are those of the marks ⚠ in the plots above.",
        html=html,
    )


def samples(runs: Sequence[Recorded]) -> Section:
    """The inputs of ``--show-samples`` at the start, in the middle and at the end."""
    html = ""
    for run in runs:
        shown = run.of("samples")
        if not shown:
            continue
        chosen = [shown[0], shown[len(shown) // 2], shown[-1]]
        stages = list({record["at"]: record for record in chosen}.values())
        html += f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        for place, first in enumerate(stages[0]["samples"][:MOST_SHOWN]):
            html += one_input(first, place, stages)
    return Section(
        "How do the outputs change?",
        "The same inputs at the start, in the middle and at the end: the validated output, with "
        "what changed since the start marked, and one sample. Texts that get odd while their "
        "reward rises are gamed rewards.",
        html=html,
    )


def one_input(first: Record, place: int, stages: Sequence[Record]) -> str:
    """One input's box."""
    rows = [("source", escape(first["source"]))]
    if first["reference"]:
        rows.append(("reference", escape(first["reference"])))
    for stage in stages:
        example = next((e for e in stage["samples"] if e["input"] == first["input"]), None)
        if example is None:
            continue
        new = marked(first["output"]["text"], example["output"]["text"])[1]
        sample = Html(escape(example["sample"]["text"]))
        at = f"after update {stage['at']:,}"
        rows.append((f"output {at} ({reward_of(example['output'])})", new))
        rows.append((f"sample {at} ({reward_of(example['sample'])})", sample))
    return pair(first["input"], rows, one=True)
