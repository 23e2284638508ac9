"""What a report shows of training: one section a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from esrl_fairseq.report.figures import Figure, Section, bars, line
from esrl_fairseq.report.marks import marks_of
from esrl_fairseq.report.reading import Record, Recorded
from esrl_fairseq.report.series import (
    by_run,
    called,
    framed,
    style,
    updates_figure,
    validation_line,
)

STAGES = {
    "seconds_stage_one": "stage one (sampling)",
    "seconds_reward": "reward",
    "seconds_stage_two": "stage two (scoring)",
}
REST = "backward, optimizer, data"
FEW_EPOCHS = 10


def whole_epochs(epochs: Sequence[int]) -> dict[str, Any]:
    """Of a horizontal axis: plotly would put ticks between few of them."""
    few = max(epochs, default=0) - min(epochs, default=0) < FEW_EPOCHS
    return {"xaxis": {"tickformat": "d", **({"dtick": 1, "tick0": 0} if few else {})}}


FROM_ZERO = {"yaxis": {"rangemode": "tozero"}}


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
            "Do the parts of the reward agree?",
            "Each reward of a sum or a product by itself, also those that are only watched "
            "(weight 0). Where one is paid for with another, the model trades. Where the reward "
            "rises and a metric that is only watched falls, the reward is gamed.",
            [part_figure(runs, name) for name in parts_of(runs)],
        ),
        Section(
            "Does the model still explore?",
            "Entropy and the spread of rewards fall slowly. Near 0 the samples are all alike and "
            "there is nothing left to learn from; a sharp rise means that the model falls apart.",
            [
                updates_figure(runs, "Entropy (nats a token)", [("", "entropy")]),
                updates_figure(runs, "Spread of rewards (std)", [("", "reward_std")]),
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
            [updates_figure(runs, "KL to the start (nats a sequence)", [("", "kl")])],
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
                updates_figure(runs, "Seconds an update", [("", "seconds_update")]),
            ],
        ),
        Section(
            "Does it fit into memory?",
            "The largest amount in use so far. It should level off; where it nears the size of "
            "the device, lower --max-sampled-tokens.",
            [updates_figure(runs, "Memory at its peak (GB)", [("", "peak_gb")], FROM_ZERO)],
        ),
        Section(
            "How large were the steps?",
            "The learning rate. Where the reward breaks in while it is highest, lower --lr.",
            [updates_figure(runs, "Learning rate", [("", "lr")], FROM_ZERO)],
        ),
    ]


def reward_figure(runs: Sequence[Recorded]) -> Figure:
    """Reward, baseline, and the validations' reward."""
    figure = updates_figure(runs, "Reward", [("samples", "reward"), ("baseline", "baseline")])
    return with_validation(runs, figure, "reward", 2)


def length_figure(runs: Sequence[Recorded]) -> Figure:
    """Length ratio of samples and of the validated outputs."""
    figure = updates_figure(runs, "Length ratio", [("samples", "length_ratio")])
    return with_validation(runs, figure, "length_ratio", 1)


def parts_of(runs: Sequence[Recorded]) -> list[str]:
    """Names of the rewards that the runs' rewards are made of; of a single one there are none."""
    names = [
        key.removesuffix("_std").removeprefix("reward_")
        for run in runs
        for record in run.of("update")
        for key in record
        if key.startswith("reward_") and key.endswith("_std") and key != "reward_std"
    ]
    return list(dict.fromkeys(names))


def part_figure(runs: Sequence[Recorded], name: str) -> Figure:
    """One of these rewards, of samples and of the validated outputs."""
    figure = updates_figure(runs, name, [("samples", f"reward_{name}")])
    return with_validation(runs, figure, f"reward_{name}", 1)


def with_validation(runs: Sequence[Recorded], figure: Figure, key: str, series: int) -> Figure:
    """The same with a figure of the runs' validations beside."""
    for number in range(len(runs)):
        figure.traces += validation_line(runs, number, key, series)
    figure.traces = by_run(runs, figure.traces)
    return framed(figure)


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
    traces: list[dict[str, Any]] = []
    every: list[int] = []
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
        every += epochs
        for name, dash, value in ways:
            values = [value(r[key]) for r in records]
            look = style(runs, number, dash)
            traces.append(line(called(runs, run, name), epochs, values, points=True, **look))
    return Figure(title, traces, x="epoch", layout=whole_epochs(every))


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
    epochs = whole_epochs([r["epoch"] for r in records])
    layout = {**epochs, "yaxis": {"range": [0, 1]}, "showlegend": False}
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
