"""What a report shows of training: one section a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from esrl_fairseq.report.figures import Figure, Section, bars, line, smoothed
from esrl_fairseq.report.marks import hours, marks_of
from esrl_fairseq.report.reading import Record, Recorded

STAGES = {
    "seconds_stage_one": "stage one (sampling)",
    "seconds_reward": "reward",
    "seconds_stage_two": "stage two (scoring)",
}
REST = "backward, optimizer, data"
WHOLE_EPOCHS = {"xaxis": {"tickformat": "d"}}
FROM_ZERO = {"yaxis": {"rangemode": "tozero"}}
Series = tuple[str, str]
"""The name in a legend, and in a record."""


def sections(runs: Sequence[Recorded]) -> list[Section]:
    """Of all runs, overlaid."""
    marks = marks_of(runs)
    found = [*of_learning(runs), *of_inputs(runs), *of_cost(runs)]
    for section in found:
        section.figures = [figure for figure in section.figures if figure.traces]
        for figure in section.figures:
            if figure.x == "updates":
                figure.marks = marks
    return found


def of_learning(runs: Sequence[Recorded]) -> list[Section]:
    """What is learned, and how outputs change."""
    return [
        Section(
            "Does the validation reward rise?",
            "Healthy: training and validation reward rise together and level off. Training rises "
            "while validation falls: overfitting, or a reward that is gamed. Both fall: the "
            "learning rate is too high. Faint lines are single updates, strong ones running means.",
            [reward_figure(runs)],
        ),
        Section(
            "Does the model still explore?",
            "Entropy and the spread of rewards fall slowly. Near 0 the samples are all alike and "
            "there is nothing left to learn from; a sharp rise means that the model falls apart.",
            [
                updates_figure(runs, "Entropy (nats a token)", [("entropy", "entropy")]),
                updates_figure(runs, "Spread of rewards (std)", [("reward_std", "reward_std")]),
            ],
        ),
        Section(
            "Do outputs keep their length?",
            "Words of the outputs over words of the references. It should stay near 1, or where it "
            "began; a drift says that the reward pays for length.",
            [length_figure(runs)],
        ),
        Section(
            "Are samples sound?",
            "Truncated and empty samples should be rare. The share of unique samples falls as the "
            "model grows sure; near 1/K all samples of an input are alike.",
            [
                updates_figure(
                    runs,
                    "Share of samples",
                    [(name, name) for name in ("unique", "truncated", "empty")],
                    FROM_ZERO,
                )
            ],
        ),
        Section(
            "How far is the model from its start?",
            "The KL penalty holds it near the start. A KL that runs away while the reward rises "
            "is how gaming begins.",
            [updates_figure(runs, "KL to the start (nats a sequence)", [("KL", "kl")])],
        ),
    ]


def of_inputs(runs: Sequence[Recorded]) -> list[Section]:
    """What dynamic sampling does."""
    return [
        Section(
            "Where do the samples go?",
            "What dynamic sampling plans for the inputs of each epoch: their mean, and the range "
            "of the middle 80 %. In the first epoch nothing is known, and all get the same.",
            [
                epochs_figure(runs, "Samples an input", "samples"),
                epochs_figure(runs, "Temperature", "temperature"),
            ],
        ),
        Section(
            "Which inputs does the model master?",
            "Distribution of capability, as known when an epoch begins. It should wander up. A "
            "heap at the bottom that stays are inputs that the model does not learn: look at the "
            "data.",
            [capability_figure(run) for run in runs],
        ),
    ]


def of_cost(runs: Sequence[Recorded]) -> list[Section]:
    """Time, memory and steps."""
    return [
        Section(
            "What takes the time?",
            "Seconds of an update by stage. Stage one should lead: a reward that leads is the one "
            "to make faster. Fewer samples or shorter ones make all of it faster.",
            [
                stages_figure(runs),
                updates_figure(runs, "Seconds an update", [("update", "seconds_update")]),
            ],
        ),
        Section(
            "Does it fit into memory?",
            "The largest amount in use so far. It should level off; where it nears the size of "
            "the device, lower --max-sampled-tokens.",
            [updates_figure(runs, "Memory at its peak (GB)", [("peak", "peak_gb")], FROM_ZERO)],
        ),
        Section(
            "How large were the steps?",
            "The learning rate. Where the reward breaks in while it is highest, lower --lr.",
            [updates_figure(runs, "Learning rate", [("lr", "lr")], FROM_ZERO)],
        ),
    ]


def over_time(records: Sequence[Record]) -> dict[str, list[float]]:
    """Both horizontal axes of some records."""
    return {"updates": [r["at"] for r in records], "hours": [hours(r) for r in records]}


def style(runs: Sequence[Recorded], run: int, series: int) -> dict[str, Any]:
    """One run: colours tell the series apart. Several: colours tell runs, dashes the series."""
    return {"colour": series if len(runs) == 1 else run, "dash": series}


def called(runs: Sequence[Recorded], run: Recorded, series: str) -> str:
    """Of a line, in a legend."""
    return series if len(runs) == 1 else f"{run.name}: {series}"


def updates_figure(
    runs: Sequence[Recorded],
    title: str,
    series: Sequence[Series],
    layout: dict[str, Any] | None = None,
) -> Figure:
    """Some figures of the updates; each as it is, faint, and smoothed."""
    traces = []
    for number, run in enumerate(runs):
        for place, (name, key) in enumerate(series):
            records = [r for r in run.of("update") if r.get(key) is not None]
            if not records:
                continue
            values = [r[key] for r in records]
            look = style(runs, number, place)
            x, label = over_time(records), called(runs, run, name)
            smooth = smoothed(values)
            if smooth != values:
                faint: dict[str, Any] = {"opacity": 0.25, "showlegend": False, "hoverinfo": "skip"}
                traces.append(line(label, x, values, look["colour"], **faint))
            traces.append(line(label, x, smooth, **look))
    return Figure(title, traces, layout=layout or {})


def validation_line(
    runs: Sequence[Recorded], number: int, key: str, series: int
) -> list[dict[str, Any]]:
    """A figure of a run's validations; none where it has none."""
    run = runs[number]
    records = [r for r in run.validations if r["stats"].get(key) is not None]
    if not records:
        return []
    values = [r["stats"][key] for r in records]
    look = style(runs, number, series)
    return [line(called(runs, run, "validation"), over_time(records), values, points=True, **look)]


def reward_figure(runs: Sequence[Recorded]) -> Figure:
    """Reward, baseline, and the validations' reward."""
    figure = updates_figure(runs, "Reward", [("samples", "reward"), ("baseline", "baseline")])
    for number in range(len(runs)):
        figure.traces += validation_line(runs, number, "reward", 2)
    return figure


def length_figure(runs: Sequence[Recorded]) -> Figure:
    """Length ratio of samples and of the validated outputs."""
    figure = updates_figure(runs, "Length ratio", [("samples", "length_ratio")])
    for number in range(len(runs)):
        figure.traces += validation_line(runs, number, "length_ratio", 1)
    return figure


def quantile(histogram: Record, share: float) -> float:
    """The value below which that share of the counts is, by middles of bins."""
    edges, counts = histogram["edges"], histogram["counts"]
    wanted, so_far = share * sum(counts), 0
    for low, high, count in zip(edges, edges[1:], counts):
        so_far += count
        if count and so_far >= wanted:
            return float(low + high) / 2
    return float(edges[-1])


def epochs_figure(runs: Sequence[Recorded], title: str, key: str) -> Figure:
    """Mean and middle 80 % of what the inputs get in each epoch."""
    traces = []
    ways: list[tuple[str, int, Callable[[Record], float]]] = [
        ("mean", 0, lambda found: float(found["mean"])),
        ("10 %", 2, lambda found: quantile(found, 0.1)),
        ("90 %", 1, lambda found: quantile(found, 0.9)),
    ]
    for number, run in enumerate(runs):
        records = [r for r in run.of("epoch") if r.get(key, {}).get("mean") is not None]
        if not records:
            continue
        epochs = [r["epoch"] for r in records]
        for name, dash, value in ways:
            values = [value(r[key]) for r in records]
            look = style(runs, number, dash)
            traces.append(line(called(runs, run, name), epochs, values, points=True, **look))
    return Figure(title, traces, x="epoch", layout=WHOLE_EPOCHS)


def capability_figure(run: Recorded) -> Figure:
    """Share of the known inputs by capability and epoch."""
    records = [r for r in run.of("epoch") if sum(r["capability"]["counts"])]
    if not records:
        return Figure(f"Capability, {run.name}", [])
    edges = records[0]["capability"]["edges"]
    columns = [
        [count / sum(r["capability"]["counts"]) for count in r["capability"]["counts"]]
        for r in records
    ]
    heat = {
        "type": "heatmap",
        "x": [r["epoch"] for r in records],
        "y": [(low + high) / 2 for low, high in zip(edges, edges[1:])],
        "z": [list(row) for row in zip(*columns)],
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": "share"}, "thickness": 12},
        "hovertemplate": "epoch %{x}, capability %{y:.2f}: %{z:.1%}<extra></extra>",
    }
    mean = line("mean", heat["x"], [r["capability"]["mean"] for r in records], points=True)
    mean["fixed"] = "#ffffff"  # on the map's own colours
    layout = {**WHOLE_EPOCHS, "yaxis": {"range": [0, 1]}, "showlegend": False}
    return Figure(f"Capability of known inputs, {run.name}", [heat, mean], "epoch", layout)


def stages_figure(runs: Sequence[Recorded]) -> Figure:
    """Mean seconds of an update by stage."""
    means = []
    for run in runs:
        records = run.of("update")
        updates = sum(r["updates"] for r in records)
        if not updates:
            continue
        seconds = {
            name: sum((r.get(key) or 0) * r["updates"] for r in records) / updates
            for key, name in STAGES.items()
        }
        whole = sum((r.get("seconds_update") or 0) * r["updates"] for r in records) / updates
        seconds[REST] = max(whole - sum(seconds.values()), 0)
        means.append((run.name, seconds))
    traces = [
        {
            **bars(stage, [s[stage] for _, s in means], [n for n, _ in means], colour),
            "orientation": "h",
        }
        for colour, stage in enumerate([*STAGES.values(), REST])
    ]
    layout = {"barmode": "stack", "yaxis": {"automargin": True}}
    return Figure("Seconds of an update by stage", traces if means else [], "seconds", layout)
