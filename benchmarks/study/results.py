"""results.json and counts.npz: what the runs found, gathered from work folders."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bootstrap import RESAMPLES, compare
from metrics import METRICS, Metric
from plan import Experiment, Study, StudyError

BUDGETS = ("time", "updates")
SEARCHES = ("beam5", "greedy")

Row = dict[str, Any]
Counts = Mapping[str, np.ndarray]
"""By RUN/BUDGET.SEARCH: each text's counts, see metrics.Metric."""


def read(folder: Path) -> tuple[Row, Counts]:
    """results.json and counts.npz, empty where there are none."""
    file = folder / "results.json"
    if not file.exists():
        return {"runs": [], "comparisons": []}, {}
    with np.load(folder / "counts.npz") as counts:
        return json.loads(file.read_text()), dict(counts)


def write(folder: Path, found: Row, counts: Counts) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "results.json", found)
    np.savez_compressed(folder / "counts.npz", allow_pickle=False, **counts)


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


def gather(study: Study, work: Path | None, found: Row, counts: Counts) -> tuple[Row, Counts]:
    """Add what run.py left in ``work`` to what was gathered before, as far as it is of the study.

    Returns:
        ``runs``: every run that is done, and every pair's start; ``comparisons``: of every method
        with its experiment's ``against``. And the counts of the runs' outputs.
    """
    before = {row["run"]: row for row in found["runs"]}
    counts, rows = dict(counts), []
    for pair in study.pairs:
        name = f"start/{pair}"
        result = read_result(work / name) if work else None
        if row := {"run": name, **result} if result else before.get(name):
            rows.append(row)
        if work and result:
            counts.update(read_counts(row, work / name / "out"))
    for run in study.runs():
        settings = run.settings() | study.pairs[run.pair].scoring()
        result = read_result(work / "runs" / run.name) if work else None
        row = before.get(run.name)
        if result and same_settings(result, settings):
            row = {"run": run.name, **result}
            counts = {name: x for name, x in counts.items() if name.rpartition("/")[0] != run.name}
            counts.update(read_counts(row, work / "runs" / run.name / "out"))
        elif result or (row and not same_settings(row, settings)):
            print(f"left out, done with other settings: {run.name}", file=sys.stderr)
        if row and same_settings(row, settings):
            rows.append(row)
    for pair in study.pairs:
        of_pair = [row["settings"] for row in rows if row["settings"]["pair"] == pair]
        if len({one["start"] for one in of_pair if not one.get("cost_only")}) > 1:
            raise StudyError(
                f"runs of {pair} do not all start from the same model: results.json and "
                "counts.npz have to go if their runs are to be replaced by those of a work folder"
            )
    kept = {row["run"] for row in rows}
    counts = {name: x for name, x in counts.items() if name.rpartition("/")[0] in kept}
    results = Results(study, {"runs": rows, "comparisons": []})
    return {"runs": rows, "comparisons": comparisons(results, counts)}, counts


def same_settings(row: Row, settings: Row) -> bool:
    """Whether a run was done with these; the start model and the data are not among them."""
    return {k: v for k, v in row["settings"].items() if k not in ("start", "data")} == settings


def read_result(folder: Path) -> Row | None:
    """A run's result.json, scores rounded."""
    file = folder / "result.json"
    if not file.exists():
        return None
    return json.loads(file.read_text(), parse_float=lambda text: round(float(text), 4))


def read_counts(row: Row, out: Path) -> Counts:
    """Counts of a run's outputs."""
    return {
        f"{row['run']}/{budget}.{search}": np.load(out / f"{budget}.{search}.npy").astype(np.uint16)
        for budget in row.get("evaluation", {}).get("results", {})
        for search in SEARCHES
    }


def comparisons(results: Results, counts: Counts) -> list[Row]:
    """Paired bootstrap of each method, and of the start, against the experiment's."""
    rows: list[Row] = []
    for experiment in results.study.experiments.values():
        for pair, budget, search in product(experiment.pairs, BUDGETS, SEARCHES):
            systems = {}
            for method in experiment.methods:
                runs = results.shown(experiment, pair, method, budget)
                if runs:
                    names = [f"{run['run']}/{budget}.{search}" for run in runs]
                    systems[method] = [counts[name].astype(np.int32) for name in names]
            start = f"start/{pair}/{budget}.{search}"  # scored under equal time alone
            if start in counts:
                systems["start"] = [counts[start].astype(np.int32)]
            against = experiment.against or ""
            other = systems.pop(against, [])
            scores = results.metric(pair).compared.items()
            for method, (name, score_of) in product(systems if other else (), scores):
                row: Row = {"experiment": experiment.name, "pair": pair, "budget": budget}
                row |= {"search": search, "score": name, "method": method, "against": against}
                found = vars(compare(systems[method], other, score_of)).items()
                row |= {key: round(value, 4) for key, value in found}
                rows.append({**row, "resamples": RESAMPLES})
    return rows


class Results:
    """results.json, and which of its runs a table shows."""

    def __init__(self, study: Study, found: Row):
        self.study = study
        self.runs = {row["run"]: row for row in found["runs"]}
        self.comparisons = {
            tuple(
                c[key] for key in ("experiment", "pair", "budget", "search", "score", "method")
            ): c
            for c in found["comparisons"]
        }

    def metric(self, pair: str) -> type[Metric]:
        """What the pair's outputs are scored by."""
        return METRICS[self.study.pairs[pair].metric]

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
        """Those with a result under a budget."""
        rows = self.of(experiment, pair, method)
        return [row for row in rows if budget in row.get("evaluation", {}).get("results", {})]


def score(row: Row, budget: str, search: str, name: str) -> float:
    """One of a run's scores on test, by its name in results.json."""
    return row["evaluation"]["results"][budget][search][name]


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation (of a sample) where there are several."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
