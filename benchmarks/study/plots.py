"""Plots of a study, docs/study-*.png; they need matplotlib."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import Experiment
from results import BUDGETS, Results, mean_sd, score

COLOURS = 10  # of matplotlib, after which they come again
LINES = ("-", "--", ":", "-.")
FALL = 2.0  # below the start: what falls farther leaves the panel, so that others can be told apart


def picture(experiment: Experiment) -> str:
    """The file's name."""
    return f"study-{experiment.name}.png"


def draw_all(results: Results, docs: Path) -> None:
    """One picture an experiment that has runs of its own; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: they need matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    for experiment in results.study.experiments.values():
        pairs = [pair for pair in experiment.pairs if results.all_of(experiment, pair)]
        if pairs and not all(method.same_as for method in experiment.methods.values()):
            draw(results, experiment, pairs, docs / picture(experiment))


def draw(results: Results, experiment: Experiment, pairs: Sequence[str], file: Path) -> None:
    """A row of panels a pair: score on valid over CPU time, on test, seconds of an update."""
    from matplotlib import pyplot

    scored = not experiment.cost_only
    columns = 3 if scored else 1
    figure, grid = pyplot.subplots(
        len(pairs), columns, figsize=(5.5 * columns, 4 * len(pairs)), squeeze=False
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
    """Greedy score on valid of each method, the mean over its seeds."""
    start, metric = results.start(pair), results.metric(pair)
    for place, method in enumerate(experiment.methods):
        runs = results.of(experiment, pair, method)
        points = list(zip(*(run["evaluation"]["valid"] for run in runs), strict=False))
        seconds = [statistics.mean(state["seconds"] for state in states) for states in points]
        values = [statistics.mean(state[metric.key] for state in states) for states in points]
        if start:
            seconds.insert(0, 0)
            values.insert(0, start["evaluation"]["results"]["time"][f"valid_{metric.key}"])
        if points:
            panel.plot(seconds, values, LINES[place // COLOURS], label=method)
    if start:
        least = start["evaluation"]["results"]["time"][f"valid_{metric.key}"] - FALL
        panel.set_ylim(bottom=max(least, panel.get_ylim()[0]))
    panel.set(
        title=pair, xlabel="CPU seconds of training", ylabel=f"{metric.name} on valid, greedy"
    )
    panel.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


def draw_scores(results: Results, experiment: Experiment, pair: str, panel: Any) -> None:
    """Score on test with beam 5, mean and standard deviation, under both budgets."""
    names, metric = list(experiment.methods), results.metric(pair)
    for budget, shift in zip(BUDGETS, (-0.1, 0.1), strict=True):
        for place, method in enumerate(names):
            runs = results.shown(experiment, pair, method, budget)
            if runs:
                mean, sd = mean_sd([score(run, budget, "beam5", metric.key) for run in runs])
                panel.errorbar(place + shift, mean, sd or 0, fmt="o", color=f"C{shift > 0:d}")
        panel.errorbar([], [], fmt="o", color=f"C{shift > 0:d}", label=f"equal {budget}")
    if start := results.start(pair):
        value = score(start, "time", "beam5", metric.key)
        panel.axhline(value, color="grey", linestyle="--", label="start")
    label_methods(panel, names)
    panel.set(title=pair, ylabel=f"{metric.name} on test, beam 5")
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
