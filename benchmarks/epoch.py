"""The second visit of a number of inputs: dynamic sampling at several β, and standard REINFORCE.

One row a method. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import numpy as np
from methods import STAGES, Bench, make_bench, run_update
from workload import Workload, workloads

from esrl_fairseq.sampling.options import AUTO
from esrl_fairseq.state.capability import Records

COLUMNS = (
    "params", "k", "method", "beta", "seconds", "spread", "to_beta_0", "samples", "eliminated",
    "sampled_tokens", *(f"seconds_{stage}" for stage in STAGES), "reason",
)  # fmt: skip
Case = tuple[str, Any]  # method, β or auto


def main() -> None:
    """Every β and the standard method once a round."""
    parser = common.make_parser(__doc__, k=(8,))
    add = parser.add_argument
    add("--batches", type=int, default=8, help="batches of --inputs inputs in the epoch")
    add("--betas", nargs="+", type=ratio, default=[0.0, 0.3, 0.5],
        help="elimination ratios; auto for the task's choice")  # fmt: skip
    add("--standard", choices=("standard_kv", "standard_nokv", "fairseq_mrt", "none"),
        default="standard_kv", help="what to compare with; it always draws K samples")  # fmt: skip
    add("--max-sampled-tokens", type=int, default=0, help="as in training")
    add("--sampler", choices=("multinomial", "inverse_cdf"), default="multinomial",
        help="how the standard method draws words")  # fmt: skip
    options = parser.parse_args()
    common.check_options(options)
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for work in workloads(options, options.batches):
        for k in options.k:
            rows += measure(work, k, options)
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def ratio(text: str) -> float | str:
    """An elimination ratio as the task takes it."""
    return text if text == AUTO else float(text)


def measure(work: Workload, k: int, options: argparse.Namespace) -> list[common.Row]:
    """One row a case."""
    bench = make_bench(work, k, options.sampler, options.max_sampled_tokens)
    first = first_visit(bench, options.seed)
    cases: list[Case] = [("two_stage", beta) for beta in options.betas]
    if options.standard != "none":
        cases.append((options.standard, None))
    results = common.interleave(
        {case: lambda case=case: second_visit(bench, case, first, options.seed) for case in cases},
        options.rounds,
        warmups=0,
    )
    return table(results, work, k)


def first_visit(bench: Bench, seed: int) -> Records:
    """What the store holds after the inputs' first visit, which also warms up.

    A random model has no capability or rewards worth a name: capability and the rewards' standard
    deviation are drawn uniformly.
    """
    task, work = bench.work.task, bench.work
    task.begin_epoch(1, work.model)
    task.options.elimination_ratio = "0"
    batches = work.batches if work.checkpoint else work.batches[:1]
    for number, sample in enumerate(batches):
        run_update(bench, "two_stage", sample, seed + number)
    if not work.checkpoint:
        draw, records = np.random.default_rng(seed), task.rl.store.records
        records["capability"] = draw.random(len(records), dtype=np.float32)
        records["reward_std"] = draw.random(len(records), dtype=np.float32)
        records["samples"] = task.options.num_samples
    return task.rl.store.records.copy()


def second_visit(bench: Bench, case: Case, first: Records, seed: int) -> common.Row:
    """All batches once by one method, from the state that the first visit left."""
    (method, beta), task = case, bench.work.task
    task.rl.store.records[:] = first
    task.rl.reference_epoch = 0  # the quantiles are made anew, as in a new epoch
    task.begin_epoch(2, bench.work.model)
    task.options.elimination_ratio = str(beta or 0)
    total: common.Row = {}
    for number, sample in enumerate(bench.work.batches):
        for key, value in run_update(bench, method, sample, seed + 1000 + number).items():
            total[key] = total.get(key, 0) + value
    total["samples"] /= sum(len(batch["id"]) for batch in bench.work.batches)
    return total


def table(results: dict[Case, list[common.Row]], work: Workload, k: int) -> list[common.Row]:
    """Medians, the share of the budget that was not drawn, and time over that of β = 0."""
    rows = []
    smallest = work.task.options.min_samples
    for (method, beta), found in results.items():
        row = {"method": method, "beta": beta, "k": k, **work.about, **common.medians(found)}
        row["spread"] = common.spread(found, "seconds")
        if "samples" in row and k > smallest:
            row["eliminated"] = (k - row["samples"]) / (k - smallest)
        rows.append(row)
    full = next((row.get("seconds") for row in rows if row["beta"] == 0), None)
    for row in rows:
        row["to_beta_0"] = common.ratio(row.get("seconds"), full)
    return rows


if __name__ == "__main__":
    main()
