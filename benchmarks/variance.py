"""How noisy an update's gradient is, and what it costs: objectives, baselines, β and K.

One row a case. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import numpy as np
import torch
from epoch import first_visit
from methods import Bench, make_bench
from torch import Tensor
from workload import Workload, workloads

from esrl_fairseq.core.baselines import Baseline, NoBaseline
from esrl_fairseq.core.controls import PERMUTED, perturb_capability
from esrl_fairseq.state.capability import Records
from esrl_fairseq.state.rl_state import Visit
from esrl_fairseq.state.samples import Samples
from esrl_fairseq.state.visits import mean_entropy

COLUMNS = (
    "case", "seconds", "samples", "noise", "noise_low", "noise_high", "scale", "cosine", "cost",
    "reason",
)  # fmt: skip
REFERENCES = 2  # independent ones, whose product is free of their noise


@dataclass(frozen=True)
class Case:
    """How one row's gradients are made.

    Attributes:
        k: samples an input, times the benchmark's K.
        queue: whether REINFORCE has its baseline.
        share, selection: of ``--rescored-share`` and ``--selection``.
        capability: ``known``: as the first visit left it; ``entropy``; or an error of it, as
            ``--capability-noise`` takes it.
    """

    name: str
    objective: str = "fused"
    beta: str = "0"
    k: float = 1.0
    least: float = 0.0
    input_baseline: bool = False
    queue: bool = True
    capability: str = "known"
    share: float = 1.0
    selection: str = "top"


REFERENCE = Case("reference", "rloo", k=4)
CASES = (
    Case("fused"),
    Case("fused, K / 4", k=1 / 4),
    Case("fused, K / 2", k=1 / 2),
    Case("fused, 3 K / 4", k=3 / 4),
    Case("fused, 2 K", k=2),
    Case("rloo", "rloo"),
    Case("reinforce", "reinforce"),
    Case("reinforce, no baseline", "reinforce", queue=False),
    Case("reinforce, input baseline", "reinforce", input_baseline=True),
    Case("beta 0.3", beta="0.3"),
    Case("beta 0.3, input baseline", beta="0.3", input_baseline=True),
    Case("beta 0.3, at least K / 2", beta="0.3", least=1 / 2),
    Case("beta 0.3, capability by entropy", beta="0.3", capability="entropy"),
    Case("beta 0.3, capability noise 0.1", beta="0.3", capability="0.1"),
    Case("beta 0.3, capability noise 0.3", beta="0.3", capability="0.3"),
    Case("beta 0.3, capability permuted", beta="0.3", capability=PERMUTED),
    Case("beta 0.5", beta="0.5"),
    Case("beta 0.5, at least K / 2", beta="0.5", least=1 / 2),
    Case("beta auto", beta="auto"),
    Case("top 0.5", share=0.5),
    Case("top 0.3", share=0.3),
    Case("1.5 K, top 0.3", k=1.5, share=0.3),
    Case("1.5 K, top 0.25", k=1.5, share=0.25),
    Case("1.5 K, top 0.2", k=1.5, share=0.2),
    Case("1.5 K, top 0.15", k=1.5, share=0.15),
    Case("2 K, top 0.3", k=2, share=0.3),
    Case("2 K, top 0.2", k=2, share=0.2),
    Case("2 K, top 0.15", k=2, share=0.15),
    Case("2 K, unbiased 0.2", k=2, share=0.2, selection="unbiased"),
    Case("2 K, mixed 0.2", k=2, share=0.2, selection="mixed"),
    Case("2 K, top 0.2, rloo", "rloo", k=2, share=0.2),
    Case("2 K, top 0.2, beta auto", k=2, share=0.2, beta="auto"),
    Case("4 K, top 0.15", k=4, share=0.15),
    Case("4 K, top 0.1", k=4, share=0.1),
)


@dataclass
class Start:
    """What every gradient begins from: the first visit's records, entropies and rewards."""

    records: Records
    entropy: np.ndarray
    queue: Baseline


def main() -> None:
    """Every case once a round, each round with other random numbers."""
    parser = common.make_parser(__doc__, k=(8,))
    parser.set_defaults(rounds=16)
    add, names = parser.add_argument, [case.name for case in CASES]
    add("--references", type=int, default=8, help="gradients with 4 K samples for each reference")
    add("--cases", nargs="+", default=names, choices=names, metavar="CASE", help="by name, some")
    add("--max-sampled-tokens", type=int, default=0, help="as in training")
    options = parser.parse_args()
    common.check_options(options)
    if options.rounds < 3:
        raise SystemExit("--rounds must be at least 3: noise is a variance over them")
    if options.references < 1:
        raise SystemExit("--references must be at least 1: noise is measured around their mean")
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for work in workloads(options):
        for k in options.k:
            rows += measure(work, k, options)
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def measure(work: Workload, k: int, options: argparse.Namespace) -> list[common.Row]:
    """One row a case, from the same inputs, model and first visit."""
    bench = make_bench(work, k, "inverse_cdf", options.max_sampled_tokens)
    start = make_start(bench, options.seed)
    # Random numbers of their own: no case has a seed below 0.
    seeds = -np.arange(1, REFERENCES * options.references + 1).reshape(REFERENCES, -1)
    references = [
        torch.stack([gradient(bench, REFERENCE, start, int(seed))[0] for seed in part]).mean(0)
        for part in seeds
    ]
    cases = [case for case in CASES if case.name in options.cases]
    gradients: dict[str, list[Tensor]] = {case.name: [] for case in cases}

    def run(case: Case) -> common.Row:
        own = gradients[case.name]
        # Not the first visit's numbers, which would draw its samples again.
        found, row = gradient(bench, case, start, options.seed + 1000 + len(own))
        own.append(found)
        return row

    results = common.interleave(
        {case.name: partial(run, case) for case in cases}, options.rounds, warmups=0
    )
    return [
        {"case": name, **work.about, "k": k, **common.medians(found),
         **noise(gradients[name], references, common.medians(found).get("seconds"))}
        for name, found in results.items()
    ]  # fmt: skip


def gradient(bench: Bench, case: Case, start: Start, seed: int) -> tuple[Tensor, common.Row]:
    """The gradient of one update [parameters], with nothing remembered of it; seconds, samples."""
    work, task, criterion = bench.work, bench.work.task, bench.criterion
    task.rl.store.records[:] = start.records
    task.rl.store.records["capability"] = capability(case, start)
    task.rl.reference_epoch = 0
    task.begin_epoch(2, work.model)
    task.rl.baseline = start.queue if case.queue else NoBaseline()
    task.options.elimination_ratio = case.beta
    task.options.num_samples = max(round(bench.k * case.k), 1)
    task.options.min_samples = max(round(bench.k * case.least), 1)
    criterion.cfg.objective, criterion.cfg.input_baseline = case.objective, case.input_baseline
    criterion.cfg.rescored_share, criterion.cfg.selection = case.share, case.selection
    work.model.train(), criterion.train()
    torch.manual_seed(seed)
    begin, draws = common.seconds_now(work.device), 0
    for sample in work.batches:
        loss, _, log = criterion(work.model, sample)
        loss.backward()
        draws += log["draws"]
    seconds = common.seconds_now(work.device) - begin
    total = torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None])
    bench.optimizer.zero_grad()
    inputs = sum(len(sample["id"]) for sample in work.batches)
    return total.float().cpu(), {"seconds": seconds, "samples": draws / inputs}


def make_start(bench: Bench, seed: int) -> Start:
    """The first visit, in which the mean entropy of each input's samples is noted."""
    observer, size = bench.criterion.observer, len(bench.work.task.datasets["train"])
    entropy, visit = np.full(size, np.nan), observer.visit

    def noting(samples: Samples) -> Visit:
        ids = samples.batch["id"].cpu().numpy()
        entropy[ids] = mean_entropy(samples.rows, samples.drawn, len(ids))
        return visit(samples)

    observer.visit = noting
    records = first_visit(bench, seed)
    observer.visit = visit
    return Start(records, entropy, bench.work.task.rl.baseline)


def capability(case: Case, start: Start) -> np.ndarray:
    """What ``case`` takes for the capability of each input."""
    if case.capability == "entropy":
        return -start.entropy  # only its order matters
    found = start.records["capability"].copy()
    if case.capability != "known":
        ids = np.flatnonzero(start.records["samples"])
        found[ids] = perturb_capability(found[ids], case.capability, 1, ids)
    return found


def noise(
    gradients: list[Tensor], references: list[Tensor], seconds: float | None
) -> dict[str, Any]:
    """Variance of a case's gradients over the square of their mean.

    The mean is long only beside the noise of many gradients, so its length is taken from the
    references, and from the gradients just its ``scale`` along them (which is not noise: Adam does
    not see it). ``cosine`` is that of their expectation with the references': below 1, they lead
    elsewhere, however many there are.
    """
    if not gradients:
        return {}
    one, two = references
    square = float(one @ two)
    if square <= 0:
        return {"reason": "the references' own noise hides the gradient: raise --references"}
    along = np.array([float(g @ (one + two)) / 2 / square for g in gradients])
    products = torch.stack([torch.stack([g @ h for h in gradients]) for g in gradients])
    products = products.double().numpy()

    def value(chosen: np.ndarray) -> float:
        n = len(chosen)
        own = products[np.ix_(chosen, chosen)]
        variance = (np.trace(own) - own.sum() / n) / (n - 1)
        return float(variance / (square * along[chosen].mean() ** 2))

    whole = value(np.arange(len(gradients)))
    n = len(gradients)
    own_square = (products.sum() - np.trace(products)) / (n * (n - 1))  # free of noise, too
    # The jackknife: a bootstrap's repeats would have no noise between them.
    left = [value(np.delete(np.arange(len(gradients)), i)) for i in range(len(gradients))]
    error = np.sqrt((len(left) - 1) * np.var(left))
    return {
        "noise": whole,
        "noise_low": whole - 1.96 * error,
        "noise_high": whole + 1.96 * error,
        "scale": float(along.mean()),
        "cosine": float(along.mean() * np.sqrt(square / own_square)) if own_square > 0 else None,
        "cost": None if seconds is None else whole * seconds,
    }


if __name__ == "__main__":
    main()
