"""The model card beside the best checkpoint: what the run's record says of it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esrl_fairseq.checkpoints.card import BEST, NAME, OURS, write
from esrl_fairseq.monitoring.reading import read_whole
from esrl_fairseq.monitoring.record import FILE, Record

logger = logging.getLogger(__name__)

SCORES = ("reward", "bleu", "ppl", "loss", "length_ratio")
"""What validation logs, in this order; rewards of parts follow."""
MOST_WARNINGS = 20
NUMBER = "{:.4f}"
Records = Sequence[Mapping[str, Any]]


class Card:
    """Keeps the card up to date; nothing that happens to it ends the run.

    Args:
        record: of the run.
    """

    def __init__(self, record: Record):
        self.record = record
        self.due, self.warned = True, False

    def refresh(self) -> None:
        """Write the card, if there is a best checkpoint of this run, and anything new to say."""
        folder = self.record.folder
        if not self.due or folder is None or not self.record.path:
            return
        self.due = False
        best = best_update(os.path.join(folder, BEST), self.record.trainer.task.outcome.run)
        if best is None:
            return
        try:
            records = read_whole(os.path.join(folder, FILE))
            if not write(folder, card(records, best, os.path.basename(os.path.abspath(folder)))):
                self._warn(f"{NAME} in {folder} was written by somebody else, and is left as it is")
        except Exception as error:  # also of a record that lacks something
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._warn(f"{NAME} cannot be written to {folder} ({why}): the run goes on")

    def _warn(self, sentence: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning(sentence)


def best_update(path: str, run: str) -> int | None:
    """After how many updates the best checkpoint was saved; None where it is not of this run.

    Args:
        run: its name, which checkpoints have.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tasks = state["extra_state"].values()
        names = [task["outcome"]["run"] for task in tasks if "outcome" in _entries(task)]
        return int(state["optimizer_history"][-1]["num_updates"]) if run in names else None
    except Exception:  # none, or whatever a file that is none leads to
        return None


def _entries(task: Any) -> Any:
    return task if isinstance(task, dict) else ()


def card(records: Records, best: int, name: str) -> str:
    """The card as Markdown.

    Args:
        records: of the run, with one of its beginning.
        best: update after which the best checkpoint was saved.
        name: of the model.
    """
    begin = next(record for record in records if record["kind"] == "begin")
    cfg = begin["configuration"]
    pair = begin.get("data", {}).get("languages", [])
    arch = cfg["model"].get("_name") or cfg["model"].get("arch")
    reads = f"translates {' to '.join(pair)}" if len(pair) == 2 else "continues prompts"
    parts = [
        head(pair),
        f"# {name}",
        f"`{BEST}` is a model of fairseq, `--arch {arch}` with {begin['parameters']:,} parameters, "
        f"which {reads}. It was fine-tuned on a reward by "
        f"[ESRL](https://arxiv.org/abs/2308.02223), with esrl_fairseq.",
        *section("Scores", scores(records, best, begin)),
        *section("How to use it", f"```sh\n{begin.get('generate', '')}\n```"),
        *section("Reward", f"`{code(begin['reward'])}`"),
        *section("Start model", start(begin)),
        *section("Data", data(begin)),
        *section("Training", training(records, best, begin)),
        *section("Warnings while it was trained", warnings(records)),
    ]
    return "\n\n".join(parts) + "\n"


def section(title: str, text: str) -> tuple[str, str]:
    """A heading and what is under it."""
    return f"## {title}", text


def head(languages: Sequence[str]) -> str:
    """What the Hugging Face hub reads of a page."""
    known = [x for x in dict.fromkeys(languages) if re.fullmatch("[a-z]{2,3}", x)]
    lines = ["---", "tags: [fairseq, esrl, reinforcement-learning]"]
    if known:
        lines.insert(1, f"language: [{', '.join(known)}]")
    return "\n".join([*lines, "---", OURS])


def scores(records: Records, best: int, begin: Mapping[str, Any]) -> str:
    """A table: the validation of the start, and that of the best."""
    found = {r["at"]: r for r in records if r["kind"] == "validation" and r["first"]}
    first, last = found.get(0), found.get(best)
    if last is None:
        return f"After update {best:,}; no validation of it is recorded."
    parts = sorted(name for name in last["stats"] if name.startswith("reward_"))
    rows = ["| validation | " + ("start | " if first else "") + f"update {best:,} |"]
    rows.append("|---|" + "---:|" * (2 if first else 1))
    for name in (*SCORES, *parts):
        columns = [r["stats"].get(name) for r in (first, last) if r]
        if columns[-1] is None:
            continue
        rows.append(f"| {name} | {' | '.join(map(number, columns))} |")
    cfg = begin["configuration"]
    beam = cfg["criterion"].get("valid_beam", 1)
    how = {0: "one sample of each input", 1: "greedy outputs"}.get(beam, f"a beam of {beam}")
    subset = last["subset"]
    size = begin.get("data", {}).get("sizes", {}).get(subset)
    of = f"{size:,} inputs of `{subset}`" if size else f"`{subset}`"
    chosen = cfg["checkpoint"]["best_checkpoint_metric"]
    return "\n".join(rows) + (
        f"\n\nMeasured on {of}, with {how}; the best was chosen by its {chosen}. "
        "`ppl` and `loss` are of the references."
    )


def number(value: Any) -> str:
    """A cell of a table."""
    return NUMBER.format(value) if isinstance(value, (int, float)) else "–"


def code(text: str) -> str:
    """Text for between two backticks."""
    return " ".join(text.replace("`", "'").split())


def start(begin: Mapping[str, Any]) -> str:
    """Where the parameters come from."""
    path = begin["start"]["path"]
    if not path:
        return "The run began with random weights."
    option = begin["start"]["option"] or "the run was resumed from it"
    digest = begin["start"].get("sha256")
    return f"`{code(path)}` ({option})" + (f", SHA-256 `{digest}`" if digest else "")


def data(begin: Mapping[str, Any]) -> str:
    """What it was trained on."""
    known = begin.get("data", {})
    lines = [f"- folder: `{code(str(begin['configuration']['task'].get('data')))}`"]
    lines += [f"- `{name}`: {size:,} inputs" for name, size in known.get("sizes", {}).items()]
    if known.get("fingerprint"):
        lines.append(f"- fingerprint of the training data: `{known['fingerprint']}`")
    return "\n".join(lines)


def training(records: Records, best: int, begin: Mapping[str, Any]) -> str:
    """Command, time, machine, versions."""
    last, ended = records[-1], next((r for r in records if r["kind"] == "end"), None)
    wall = max(float(r["wall"] or 0) for r in records)
    versions = ", ".join(f"{name} {version}" for name, version in begin["versions"].items())
    lines = [
        f"- options beside the defaults: `{code(' '.join(begin['options'])) or 'none'}`",
        f"- {last['at']:,} updates in {wall / 3600:.2f} hours; this is update {best:,}",
        f"- {begin['device']}, {begin['ranks']} rank(s), begun {begin['time']}",
        f"- versions: {versions}",
        f"- state: {ended['outcome'] if ended else 'the run has not come to its end'}",
    ]
    return f"```sh\n{begin['command']}\n```\n\n" + "\n".join(lines)


def warnings(records: Records) -> str:
    """What the run warned of, and when."""
    found = {r["message"]: r["at"] for r in reversed(records) if r["kind"] == "warning"}
    told = sorted(found.items(), key=lambda one: one[1])
    lines = [f"- update {at:,}: {' '.join(message.split())}" for message, at in told]
    if len(lines) > MOST_WARNINGS:
        more = f"- and {len(lines) - MOST_WARNINGS} more, in {FILE}"
        lines = [*lines[:MOST_WARNINGS], more]
    return "\n".join(lines) or "None."
