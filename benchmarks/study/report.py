"""Tables and plots of a study: benchmarks/study/*.json and docs/study.md.

    python benchmarks/study/report.py --work DIR    # after run.py: gather, then write everything
    python benchmarks/study/report.py               # write everything again from results.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bootstrap import RESAMPLES, compare
from plan import STUDY, Experiment, Study, StudyError, load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUDGETS = ("time", "updates")
SEARCHES = ("beam5", "greedy")
SUMMARY = ("mle", "reinforce", "mrt", "rloo", "ppo", "esrl")  # methods of summary.json
MAIN = "main"  # its experiment

Row = dict[str, Any]


def main() -> None:
    """Errors in one sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, help="of run.py; without it results.json is taken as it is")
    add("--study", type=Path, default=STUDY, help="what was run (default: study.toml)")
    add("--results", type=Path, default=HERE, help="folder of results.json and summary.json")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of study.md and the plots")
    options = parser.parse_args()
    try:
        report(options)
    except StudyError as error:
        sys.exit(f"error: {error}")


def report(options: argparse.Namespace) -> None:
    """Gather if there is a work folder, then write all that follows from results.json."""
    study = load(options.study)
    file = options.results / "results.json"
    if options.work:
        write_rows(file, gather(study, options.work))
    elif not file.exists():
        raise StudyError(f"there is no {file} yet: give --work, the folder of run.py")
    results = Results(study, json.loads(file.read_text()))
    write_rows(options.results / "summary.json", summary(results))
    draw_all(results, options.docs)
    page = options.docs / "study.md"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for experiment in study.experiments.values():
        text = fill(text, experiment.name, block(results, experiment, options.docs), page)
    page.write_text(text, encoding="utf-8")


def write_rows(file: Path, rows: Any) -> None:
    """Lists with one line an entry, so that a change shows as the lines that changed."""

    def lines(entries: Sequence[Row]) -> str:
        return "[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]"

    if isinstance(rows, dict):
        parts = (f"{json.dumps(key)}: {lines(entries)}" for key, entries in rows.items())
        text = "{\n" + ",\n".join(parts) + "\n}"
    else:
        text = lines(rows)
    file.write_text(text + "\n", encoding="utf-8")


# From the work folder to results.json


def gather(study: Study, work: Path) -> Row:
    """``runs``: what run.py left of every run that is done, and of every pair's start.
    ``comparisons``: of every method with its experiment's ``against``, by the outputs in ``work``.
    """
    rows = []
    for pair in study.pairs:
        if result := read_result(work / "start" / pair):
            rows.append({"run": f"start/{pair}", **result})
    for run in study.runs():
        result = read_result(work / "runs" / run.name)
        if not result:
            continue
        settings = run.settings()
        if any(result["settings"][key] != value for key, value in settings.items()):
            print(f"left out, done with other settings: {run.name}", file=sys.stderr)
            continue
        rows.append({"run": run.name, **result})
    results = Results(study, {"runs": rows, "comparisons": []})
    for pair in study.pairs:
        starts = {row["settings"]["start"] for row in rows if row["settings"]["pair"] == pair}
        if len(starts) > 1:
            raise StudyError(f"{work}: runs of {pair} do not all start from the same model")
    return {"runs": rows, "comparisons": comparisons(results, work)}


def read_result(folder: Path) -> Row | None:
    """A run's result.json, scores rounded."""
    file = folder / "result.json"
    if not file.exists():
        return None
    return json.loads(file.read_text(), parse_float=lambda text: round(float(text), 4))


def comparisons(results: Results, work: Path) -> list[Row]:
    """Paired bootstrap of each method against its experiment's."""
    rows: list[Row] = []
    for experiment in results.study.experiments.values():
        for pair, budget, search in product(experiment.pairs, BUDGETS, SEARCHES):
            systems = {}
            for method in experiment.methods:
                runs = results.shown(experiment, pair, method, budget)
                outputs = [work / "runs" / run["run"] / "out" for run in runs]
                if outputs:
                    systems[method] = [np.load(out / f"{budget}.{search}.npy") for out in outputs]
            against = experiment.against or ""
            other = systems.pop(against, [])
            for method, system in systems.items() if other else ():
                row: Row = {"experiment": experiment.name, "pair": pair, "budget": budget}
                row |= {"search": search, "method": method, "against": against}
                found = vars(compare(system, other)).items()
                row |= {key: round(value, 4) for key, value in found}
                rows.append({**row, "resamples": RESAMPLES})
    return rows


class Results:
    """results.json, and which of its runs a table shows."""

    def __init__(self, study: Study, found: Row):
        self.study = study
        self.runs = {row["run"]: row for row in found["runs"]}
        self.comparisons = {
            tuple(c[key] for key in ("experiment", "pair", "budget", "search", "method")): c
            for c in found["comparisons"]
        }

    def start(self, pair: str) -> Row | None:
        """The start model's row."""
        return self.runs.get(f"start/{pair}")

    def of(self, experiment: Experiment, pair: str, method: str) -> list[Row]:
        """A method's runs that are done, by seed."""
        runs = (self.study.run(experiment.name, pair, method, seed) for seed in experiment.seeds)
        return [self.runs[run.name] for run in runs if run.name in self.runs]

    def all_of(self, experiment: Experiment, pair: str) -> list[Row]:
        """The runs of all methods."""
        return [run for method in experiment.methods for run in self.of(experiment, pair, method)]

    def shown(self, experiment: Experiment, pair: str, method: str, budget: str) -> list[Row]:
        """Those with a result under a budget; of equal updates, of the method that stands in."""
        if budget == "updates":
            stand_ins = [m.name for m in experiment.methods.values() if m.updates_of == method]
            method = (stand_ins or [method])[0]
        rows = self.of(experiment, pair, method)
        return [row for row in rows if budget in row.get("evaluation", {}).get("results", {})]


def score(row: Row, budget: str, search: str, name: str) -> float:
    """bleu, chrf or length_ratio of a run."""
    return row["evaluation"]["results"][budget][search][name]


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (of a sample) where there are several."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


# summary.json


def summary(results: Results) -> list[Row]:
    """The main experiment with beam 5, one row a pair, method and budget."""
    experiment = results.study.experiments.get(MAIN)
    rows: list[Row] = []
    if not experiment:
        return rows
    methods = [method for method in SUMMARY if method in experiment.methods]
    for pair in experiment.pairs:
        for budget in BUDGETS:
            for method in methods:
                runs = results.shown(experiment, pair, method, budget)
                if not runs:
                    continue
                mean, sd = mean_sd([score(run, budget, "beam5", "bleu") for run in runs])
                key = (MAIN, pair, budget, "beam5", method)
                compared = results.comparisons.get(key)
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


def block(results: Results, experiment: Experiment, docs: Path) -> str:
    """Tables of an experiment, with what they were made on."""
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
    return "\n\n".join([*parts, origin(runs)])


def score_rows(results: Results, experiment: Experiment, pair: str, budget: str) -> list[list[str]]:
    """Header and one row a method, the start first."""
    own = ["updates", "s/update", "peak MB", "best after"] if budget == "time" else ["CPU s"]
    against = f"− {experiment.against}"
    scores = ["beam 5 BLEU", against, "p", "greedy BLEU", against, "p", "chrF2", "ratio"]
    rows = [["", "n", *own, *scores]]
    if start := results.start(pair):
        rows.append(["start", "", *[""] * len(own), *score_cells([start], "time", {})])
    for method, entry in experiment.methods.items():
        runs = results.shown(experiment, pair, method, budget)
        if budget == "updates" and entry.updates_of:
            continue
        if not runs:
            reached = "" if budget == "time" or not results.of(experiment, pair, method) else "–"
            rows.append([method, "0", reached, *[""] * (len(rows[0]) - 3)])
            continue
        compared = {
            search: results.comparisons.get((experiment.name, pair, budget, search, method))
            for search in SEARCHES
        }
        training = [run["training"] for run in runs]
        chosen = [run["evaluation"]["results"][budget] for run in runs]
        seconds = mean_of(chosen, "seconds", ",.0f")
        cells = [mean_of(training, "updates", ",.0f"), *cost_cells(training), f"{seconds} s"]
        name = method if runs[0] in results.of(experiment, pair, method) else f"{method} ¹"
        own = cells if budget == "time" else [seconds]
        rows.append([name, str(len(runs)), *own, *score_cells(runs, budget, compared)])
    return rows


def score_cells(runs: Sequence[Row], budget: str, compared: Row) -> list[str]:
    """BLEU, difference and p with beam 5, the same with greedy search, chrF2 and length ratio."""
    cells = []
    for search in SEARCHES:
        cells.append(with_sd([score(run, budget, search, "bleu") for run in runs]))
        found = compared.get(search)
        cells += [f"{found['difference']:+.2f}", p_value(found["p"])] if found else ["", ""]
    chrf = with_sd([score(run, budget, "beam5", "chrf") for run in runs])
    ratio = statistics.mean(score(run, budget, "beam5", "length_ratio") for run in runs)
    return [*cells, chrf, f"{ratio:.3f}"]


def cost_rows(results: Results, experiment: Experiment, pair: str) -> list[list[str]]:
    """Header and one row a method, of what an update costs."""
    rows = [["", "n", "s/update", "peak MB"]]
    for method in experiment.methods:
        training = [run["training"] for run in results.of(experiment, pair, method)]
        rows.append([method, str(len(training)), *(cost_cells(training) if training else ["", ""])])
    return rows


def cost_cells(training: Sequence[Row]) -> list[str]:
    """CPU seconds of an update, and peak memory of the process."""
    return [mean_of(training, "seconds_per_update", ".2f"), mean_of(training, "peak_mb", ",.0f")]


def mean_of(rows: Sequence[Row], key: str, form: str) -> str:
    """Empty where a system does not tell (peak memory)."""
    values = [row[key] for row in rows]
    return "" if None in values else format(statistics.mean(values), form)


def with_sd(values: Sequence[float]) -> str:
    """41.65 ± 0.22, or the one value."""
    mean, sd = mean_sd(values)
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def p_value(p: float) -> str:
    """Never 0."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns that are empty in all rows are left out."""
    header, *body = rows
    shown = [i for i in range(len(header)) if i == 0 or any(row[i] for row in body)]
    lines = ["| " + " | ".join(row[i] for i in shown) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(shown))
    if any(row[0].endswith("¹") for row in body):
        lines.append("\n¹ Run with two-stage sampling, whose updates are the same but cost less.")
    return "\n".join(lines)


def origin(runs: Sequence[Row]) -> str:
    """Signatures, machines and commits of the runs."""
    about = [run["about"] for run in runs]
    scored = [run["evaluation"]["signatures"] for run in runs if "evaluation" in run]
    signatures = sorted({f"`{s[name]}`" for s in scored for name in ("bleu", "chrf")})
    machines = sorted({f"{a['machine']}, {a['jobs']} at a time" for a in about})
    commits = sorted({a["commit"] for a in about})
    lines = [*signatures, "; ".join(machines), f"Commit {', '.join(commits)}."]
    return "\n".join(lines)


# Plots


def picture(experiment: Experiment) -> str:
    """The file's name."""
    return f"study-{experiment.name}.png"


def draw_all(results: Results, docs: Path) -> None:
    """One picture an experiment that has runs; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: they need matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    for experiment in results.study.experiments.values():
        pairs = [pair for pair in experiment.pairs if results.all_of(experiment, pair)]
        if pairs:
            draw(results, experiment, pairs, docs / picture(experiment))


def draw(results: Results, experiment: Experiment, pairs: Sequence[str], file: Path) -> None:
    """A row of panels a pair: BLEU on valid over CPU time, BLEU on test, seconds of an update."""
    from matplotlib import pyplot

    scored = not experiment.cost_only
    columns = 3 if scored else 1
    figure, grid = pyplot.subplots(
        len(pairs), columns, figsize=(5 * columns, 4 * len(pairs)), squeeze=False
    )
    for pair, panels in zip(pairs, grid, strict=True):
        if scored:
            draw_curves(results, experiment, pair, panels[0])
            draw_scores(results, experiment, pair, panels[1])
        draw_costs(results, experiment, pair, panels[-1])
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def draw_curves(results: Results, experiment: Experiment, pair: str, panel: Any) -> None:
    """Greedy BLEU on valid of each method, the mean over its seeds."""
    start = results.start(pair)
    for method in experiment.methods:
        runs = results.of(experiment, pair, method)
        points = list(zip(*(run["evaluation"]["valid"] for run in runs), strict=False))
        seconds = [statistics.mean(state["seconds"] for state in states) for states in points]
        bleu = [statistics.mean(state["bleu"] for state in states) for states in points]
        if start:
            seconds.insert(0, 0)
            bleu.insert(0, start["evaluation"]["results"]["time"]["valid_bleu"])
        if points:
            panel.plot(seconds, bleu, label=method)
    panel.set(title=pair, xlabel="CPU seconds of training", ylabel="BLEU on valid, greedy")
    panel.legend(fontsize="x-small")


def draw_scores(results: Results, experiment: Experiment, pair: str, panel: Any) -> None:
    """BLEU on test with beam 5, mean and standard deviation, under both budgets."""
    names = list(experiment.methods)
    for budget, shift in zip(BUDGETS, (-0.1, 0.1), strict=True):
        for place, method in enumerate(names):
            runs = results.shown(experiment, pair, method, budget)
            if runs:
                mean, sd = mean_sd([score(run, budget, "beam5", "bleu") for run in runs])
                panel.errorbar(place + shift, mean, sd or 0, fmt="o", color=f"C{shift > 0:d}")
        panel.errorbar([], [], fmt="o", color=f"C{shift > 0:d}", label=f"equal {budget}")
    if start := results.start(pair):
        bleu = score(start, "time", "beam5", "bleu")
        panel.axhline(bleu, color="grey", linestyle="--", label="start")
    label_methods(panel, names)
    panel.set(title=pair, ylabel="BLEU on test, beam 5")
    panel.legend(fontsize="x-small")


def draw_costs(results: Results, experiment: Experiment, pair: str, panel: Any) -> None:
    """CPU seconds of an update."""
    names = list(experiment.methods)
    for place, method in enumerate(names):
        training = [run["training"] for run in results.of(experiment, pair, method)]
        if training:
            cost = statistics.mean(state["seconds_per_update"] for state in training)
            panel.bar_label(panel.bar(place, cost, color="C2"), fmt="%.2g")
    label_methods(panel, names)
    panel.set(title=pair, ylabel="CPU seconds of an update")


def label_methods(panel: Any, names: Sequence[str]) -> None:
    """Names below their places."""
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize="small")


if __name__ == "__main__":
    main()
