"""Launches, synchronisations and copies of a decoding step and of an update, on a pretended GPU.

One row for the mean step, and one for each part of an update, with samples of equal and of ragged
ends. Counts are exact: they need no GPU, and no rounds. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import common
import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.optim.adam import FairseqAdamConfig
from workload import Workload, workloads

try:
    from pretended_device import PretendedDevice, move, move_module
except ImportError as error:
    sys.exit(str(error))
from pretended_rules import Cost, Event, summed, total

from esrl_fairseq.optimizer import TorchAdam
from esrl_fairseq.sampling import compiled as compiled_decoding

COLUMNS = (
    "params",
    "length",
    "k",
    "what",
    "ends",
    "part",
    *Cost._fields,
    "least_ms",
    "most_ms",
    "line",
)
ENDS = ("equal", "ragged")
PARTS = (
    "plan", "stage one", "reward", "loss", "stage two", "remember", "other", "backward",
    "optimizer", "commit", "log",
)  # fmt: skip
"""Of an update; *loss* also judges the rewards, *other* is what the clocks wait for, and sums."""
LEAST = {"launches": 5, "syncs": 10, "rng": 5, "views": 1}
MOST = {"launches": 10, "syncs": 20, "rng": 15, "views": 2}
"""Microseconds of the host, between which a current one is taken to lie: not measured."""
MEAN_LENGTH = 15
"""Of samples with ragged ends, as far as ``--length`` allows."""


def main() -> None:
    """Every size and K, one after the other."""
    options = parse()
    head = {
        **common.header(options),
        "device": "a pretended GPU, computed on the CPU",
        "lengths": f"of samples: --length, or about {MEAN_LENGTH} and at most that (ragged ends)",
    }
    common.print_header(head)
    rows: list[common.Row] = []
    for params in options.params:
        for k in options.k:
            options.params = [params]
            rows += measure(options, k)
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def parse() -> argparse.Namespace:
    parser = common.bare_parser(__doc__)
    add = parser.add_argument
    add("--params", nargs="+", default=["6x"], help="sizes of random models: tiny 6x 3M 35M 60M")
    add("--k", nargs="+", type=int, default=[8], help="samples per input")
    add("--inputs", type=int, default=64, help="inputs in a batch")
    add("--length", type=int, default=30, help="tokens of the longest samples")
    add("--lines", type=int, default=0, help="of the package, the costliest of each row")
    add("--compiled", action="store_true", help="--compile-decoding: a step is one CUDA graph")
    add("--seed", type=int, default=1, help="of models, sources and samples")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    parser.set_defaults(device="cpu", dtype="fp32", checkpoint=None, data=None, rounds=1, threads=1)
    options = parser.parse_args()
    common.check_options(options)
    return options


def measure(options: argparse.Namespace, k: int) -> list[common.Row]:
    """The rows of one size."""
    rows: list[common.Row] = []
    for ends in ENDS:
        events, steps = step_events(make_workload(options, k, ends), k, ends)
        rows += rows_of(events, options.lines, steps, what="step", ends=ends)
    for ends in ENDS:
        work = make_workload(options, k, ends)
        events = update_events(work, work.criterion(), ends)
        for part in PARTS:
            own = [event for event in events if event.part == part]
            rows += rows_of(own, options.lines, what="update", ends=ends, part=part)
        rows += rows_of(events, 0, what="update", ends=ends, part="all")
    setting = {"params": work.params, "length": options.length, "k": k, "inputs": options.inputs}
    return [{**setting, **row} for row in rows]


def rows_of(events: list[Event], lines: int, per: int = 1, **names: str) -> list[common.Row]:
    """Their sum over ``per``, and those of the costliest lines."""

    def row(cost: Cost, **more: str) -> common.Row:
        numbers = {key: x if per == 1 else x / per for key, x in cost._asdict().items()}
        least, most = (sum(x * numbers[key] for key, x in us.items()) / 1e3 for us in (LEAST, MOST))
        return {**names, **numbers, "least_ms": least, "most_ms": most, **more}

    by_line = list(summed(events, "line").items())[:lines]
    whole = total(event.cost for event in events)
    return [row(whole), *(row(cost, line=line) for line, cost in by_line)]


def make_workload(options: argparse.Namespace, k: int, ends: str) -> Workload:
    """On the pretended device."""
    work: Workload = next(iter(workloads(options)))
    work.task.options.num_samples, work.task.options.compile_decoding = k, options.compiled
    if ends == "ragged":
        work.task.options.sample_min_len = 1
    move_module(work.model)
    work.batches = [move(batch) for batch in work.batches]
    return work


def step_events(work: Workload, k: int, ends: str) -> tuple[list[Event], int]:
    """What happens from the first step's scores to the last one's, and how many steps that are."""
    batch = work.batches[0]
    counts = np.full(len(batch["id"]), k)
    sampler = work.task.build_sampler(work.model)
    with (
        PretendedDevice() as device,
        graphs(device),
        watched_scores(work, device, ends) as places,
    ):
        sampler.sample_rows(batch, counts, np.ones(len(counts), np.float32), 1)
    return device.events[places[0] : places[-1]], len(places) - 1


def graphs(device: PretendedDevice) -> Any:
    """Within, what would be compiled runs as it is, and counts as one launch (a test shows that it
    is one graph)."""

    def compiled(function: Callable[[], None], *_: Any) -> Callable[[], None]:
        def replay() -> None:
            with device.paused():
                function()
            device.note("graph", Cost(launches=1))

        return replay

    return mock.patch.object(compiled_decoding, "compiled", compiled)


@contextlib.contextmanager
def watched_scores(work: Workload, device: PretendedDevice, ends: str) -> Iterator[list[int]]:
    """Gives how many events there were whenever a step's scores are there. Random weights do not
    know when to end: for ragged ends, EOS has the same probability everywhere."""
    decoder, eos = work.model.decoder, work.task.eos
    project, places = decoder.output_layer, []

    def watched(features: torch.Tensor) -> torch.Tensor:
        scores = project(features)
        if not torch.is_grad_enabled():
            places.append(len(device.events))
            with device.paused():
                if ends == "ragged":
                    rest = scores.float().logsumexp(-1)
                    scores[..., eos] = (rest - math.log(MEAN_LENGTH - 1)).to(scores.dtype)
        return scores

    with mock.patch.object(decoder, "output_layer", watched):
        yield places


def update_events(work: Workload, criterion: Any, ends: str) -> list[Event]:
    """What happens in an update, as fairseq's trainer makes it, each event with its part."""
    model, task = work.model, work.task
    cfg = FairseqAdamConfig(lr=[1e-5], adam_betas="(0.9, 0.999)")
    optimizer = TorchAdam(cfg, list(model.parameters()))
    for parameter in model.parameters():  # its state is made in the first update
        parameter.grad = torch.zeros_like(parameter)
    with PretendedDevice():
        optimizer.step()
    optimizer.zero_grad()
    torch.manual_seed(1)
    model.train()
    with (
        PretendedDevice() as device,
        graphs(device),
        watched_scores(work, device, ends),
        contextlib.ExitStack() as s,
    ):
        for part, owner, name in methods(task, criterion):
            s.enter_context(labelled(device, part, owner, name))
        with device.within("other"):
            loss, size, log = criterion.train()(model, work.batches[0])
        with device.within("backward"):
            loss.backward()
        with device.within("optimizer"):
            optimizer.multiply_grads(1 / size)
            norm = optimizer.clip_grad_norm(1.0)
            assert torch.isfinite(norm).all()
            optimizer.step()
            optimizer.zero_grad()
        with device.within("commit"):
            task.rl.commit()
        with device.within("log"), metrics.aggregate(new_root=True):
            criterion.reduce_metrics([log])
    return device.events


def methods(task: Any, criterion: Any) -> list[tuple[str, Any, str]]:
    """The criterion's parts, and the methods that they are."""
    objective = criterion.objective
    return [
        ("plan", task, "plan"),
        ("stage one", criterion, "sample_rows"),
        ("reward", criterion, "score_rows"),
        ("reward", criterion, "given_rewards"),
        ("loss", criterion, "judge"),
        ("loss", objective, "linearise"),
        ("stage two", criterion, "rescore"),
        ("remember", criterion, "remember"),
        ("log", criterion, "result"),
    ]


def labelled(device: PretendedDevice, part: str, owner: Any, name: str) -> Any:
    """Within, what the method does belongs to this part."""
    method = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        with device.within(part):
            return method(*given, **named)

    return mock.patch.object(owner, name, call)


if __name__ == "__main__":
    main()
