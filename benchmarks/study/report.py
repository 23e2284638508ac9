"""Tables and plots of a study: benchmarks/study/*.json and docs/study.md.

    python benchmarks/study/report.py --work DIR    # after run.py: add its runs, write everything
    python benchmarks/study/report.py               # write everything again from results.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from metrics import Metric
from plan import STUDY, Experiment, StudyError, load, results_of
from plots import draw_all, picture
from results import (
    BUDGETS,
    SEARCHES,
    Results,
    Row,
    gather,
    mean_sd,
    read,
    score,
    write,
    write_rows,
)

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = ("mle", "reinforce", "mrt", "rloo", "ppo", "esrl")  # methods of summary.json
MAIN = ("main", "main-2560")  # its experiments, each with pairs of its own

Compared = Mapping[tuple[str, str], Row | None]
"""A row of results.json's comparisons, by search and score."""


def main() -> None:
    """Errors in one sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, help="of run.py, whose runs are added to results.json")
    add("--study", type=Path, default=STUDY, help="what was run (default: study.toml)")
    add("--results", type=Path, help="folder of the JSON files (default: the study's)")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of study.md and the plots")
    options = parser.parse_args()
    try:
        report(options)
    except StudyError as error:
        sys.exit(f"error: {error}")


def report(options: argparse.Namespace) -> None:
    """Gather, then write all that follows from results.json."""
    study = load(options.study)
    folder = options.results or results_of(options.study)
    found, counts = read(folder)
    if not (options.work or found["runs"]):
        raise StudyError(
            f"there is no results.json in {folder} yet: give --work, the folder of run.py"
        )
    found, counts = gather(study, options.work, found, counts)
    write(folder, found, counts)
    results = Results(study, found)
    if rows := summary(results):
        write_rows(folder / "summary.json", rows)
    draw_all(results, options.docs)
    page = options.docs / "study.md"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for experiment in study.experiments.values():
        filled = block(results, experiment, options.docs, options.study)
        text = fill(text, experiment.name, filled, page)
    page.write_text(text, encoding="utf-8")


# summary.json


def summary(results: Results) -> list[Row]:
    """The main experiments with beam 5, one row a pair, method and budget."""
    rows: list[Row] = []
    for name in MAIN:
        experiment = results.study.experiments.get(name)
        if not experiment:
            continue
        methods = [method for method in SUMMARY if method in experiment.methods]
        for pair, budget, method in product(experiment.pairs, BUDGETS, methods):
            runs = results.shown(experiment, pair, method, budget)
            if not runs:
                continue
            mean, sd = mean_sd([score(run, budget, "beam5", "bleu") for run in runs])
            compared = results.comparisons.get((name, pair, budget, "beam5", "bleu", method))
            rows.append(
                {
                    "pair": pair,
                    "method": method,
                    "budget": budget,
                    "bleu_mean": round(mean, 3),
                    "bleu_sd": None if sd is None else round(sd, 3),
                    "n": len(runs),
                    "p_vs_esrl": compared["p"] if compared else None,
                    "search": "beam5",
                    "experiment": name,
                }
            )
    return rows


# docs/study.md


def fill(text: str, name: str, block: str, page: Path) -> str:
    """The page with what is between an experiment's marks replaced; the rest is hand-written."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise StudyError(f"{page} has no place for {name}: give it the lines {begin} and {end}")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def block(results: Results, experiment: Experiment, docs: Path, study: Path = STUDY) -> str:
    """Tables of an experiment, with the command and what they were made on."""
    parts = []
    runs = []
    for pair in experiment.pairs:
        found = results.all_of(experiment, pair)
        runs += found
        if not found:
            continue
        if experiment.cost_only:
            parts += [f"**{pair}**", table(cost_rows(results, experiment, pair))]
            continue
        budget = experiment.budget
        if budget.seconds:
            parts.append(f"**{pair}, equal time: {budget.seconds:,.0f} s of CPU time each**")
            parts.append(table(score_rows(results, experiment, pair, "time")))
        parts.append(f"**{pair}, equal updates: {budget.updates:,} each**")
        parts.append(table(score_rows(results, experiment, pair, "updates")))
    if not runs:
        return "Not run yet."
    if (docs / picture(experiment)).exists():
        parts.append(f"![{experiment.title}]({picture(experiment)})")
    return "\n\n".join([*parts, command(experiment, study), origin(runs)])


def score_rows(results: Results, experiment: Experiment, pair: str, budget: str) -> list[list[str]]:
    """Header and one row a method, the start first."""
    timed = ["updates", "s/update", "peak MB", "best after", "valid"]
    own = timed if budget == "time" else ["CPU s"]
    metric = results.metric(pair)

    def compared(method: str) -> Compared:
        key = (experiment.name, pair, budget)
        columns = product(SEARCHES, metric.compared)
        return {column: results.comparisons.get((*key, *column, method)) for column in columns}

    rows = [["", "n", *own, *headings(metric, experiment.against)]]
    if start := results.start(pair):
        cells = ["", "", "", "", valid([start], metric)] if budget == "time" else [""]
        rows.append(["start", "", *cells, *score_cells([start], "time", metric, compared("start"))])
    for method in experiment.methods:
        runs = results.shown(experiment, pair, method, budget)
        if not runs:
            reached = "" if budget == "time" or not results.of(experiment, pair, method) else "–"
            rows.append([method, "0", reached, *[""] * (len(rows[0]) - 3)])
            continue
        chosen = [run["evaluation"]["results"][budget] for run in runs]
        own = [mean_of(chosen, "seconds", ",.0f")]
        if budget == "time":
            training = [run["training"] for run in runs]
            updates = mean_of(training, "updates", ",.0f")
            own = [updates, *cost_cells(training), f"{own[0]} s", valid(runs, metric)]
        scores = score_cells(runs, budget, metric, compared(method))
        rows.append([method, str(len(runs)), *own, *scores])
    return rows


def valid(runs: Sequence[Row], metric: type[Metric]) -> str:
    """Greedy score on valid, by which the models under equal time were chosen."""
    key = f"valid_{metric.key}"
    return with_sd([run["evaluation"]["results"]["time"][key] for run in runs])


def headings(metric: type[Metric], against: str | None) -> list[str]:
    """Of the metric's columns; one that methods are compared in has difference and p."""
    texts = []
    for _, key, heading in metric.columns:
        texts += [heading, f"− {against}", "p"] if key in metric.compared else [heading]
    return texts


def score_cells(
    runs: Sequence[Row], budget: str, metric: type[Metric], compared: Compared
) -> list[str]:
    """The metric's columns; ``compared`` by search and score."""
    cells = []
    for search, key, _ in metric.columns:
        values = [score(run, budget, search, key) for run in runs]
        ratio = key == "length_ratio"
        cells.append(f"{statistics.mean(values):.3f}" if ratio else with_sd(values))
        if key in metric.compared:
            found = compared.get((search, key))
            cells += [f"{found['difference']:+.2f}", p_value(found["p"])] if found else ["", ""]
    return cells


def cost_rows(results: Results, experiment: Experiment, pair: str) -> list[list[str]]:
    """Header and one row a method, of what an update costs."""
    rows = [["", "n", "s/update", "peak MB"]]
    for method in experiment.methods:
        training = [run["training"] for run in results.of(experiment, pair, method)]
        cells = cost_cells(training, spread=True) if training else ["", ""]
        rows.append([method, str(len(training)), *cells])
    return rows


def cost_cells(training: Sequence[Row], spread: bool = False) -> list[str]:
    """CPU seconds of an update, and peak memory of the process; with their sd, if asked."""
    columns = (("seconds_per_update", ".2f"), ("peak_mb", ",.0f"))
    return [mean_of(training, key, form, spread) for key, form in columns]


def mean_of(rows: Sequence[Row], key: str, form: str, spread: bool = False) -> str:
    """Empty where a system does not tell (peak memory)."""
    values = [row[key] for row in rows]
    if None in values:
        return ""
    return with_sd(values, form) if spread else format(statistics.mean(values), form)


def with_sd(values: Sequence[float], form: str = ".2f") -> str:
    """41.65 ± 0.22, or the one value."""
    mean, sd = mean_sd(values)
    return format(mean, form) if sd is None else f"{mean:{form}} ± {sd:{form}}"


def p_value(p: float) -> str:
    """Never 0."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns that are empty in all rows are left out."""
    header, *body = rows
    shown = [i for i in range(len(header)) if i == 0 or any(row[i] for row in body)]
    lines = ["| " + " | ".join(row[i] for i in shown) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(shown))
    return "\n".join(lines)


def command(experiment: Experiment, study: Path) -> str:
    """What makes the runs of a table; shared ones belong to another experiment."""
    owners = [m.same_as[0] if m.same_as else experiment.name for m in experiment.methods.values()]
    words = ["python", "benchmarks/study/run.py", "--work", "DIR"]
    if study.resolve() != STUDY:
        words += ["--study", f"benchmarks/study/{study.name}"]
    words += [word for name in dict.fromkeys(owners) for word in ("--only", f"{name}/*")]
    return f"`{shlex.join(words)}`"


def origin(runs: Sequence[Row]) -> str:
    """Signatures, machines and commits of the runs."""
    about = [run["about"] for run in runs]
    scored = [run["evaluation"]["signatures"] for run in runs if "evaluation" in run]
    signatures = sorted({f"`{text}`" for s in scored for text in s.values()})
    machines = sorted({f"{a['machine']}, {a['jobs']} at a time" for a in about})
    commits = sorted({a["commit"] for a in about})
    lines = [*signatures, "; ".join(machines), f"Commit {', '.join(commits)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
