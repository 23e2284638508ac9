"""Time and peak memory of one update by each method, each case in a process of its own.

One row a method, size, length and K. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import common
import torch
from methods import METHODS, STAGES, make_bench, run_update
from workload import Workload, random, workloads

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

COLUMNS = (
    "params", "length", "k", "method", "seconds", "spread", "peak_mb", "two_stage_time",
    "two_stage_peak", *(f"seconds_{stage}" for stage in STAGES), "reason",
)  # fmt: skip


def main() -> None:
    """Every case once a round, each time in a new process."""
    options = parse()
    if options.case:
        print(json.dumps(common.attempt(lambda: run_case(options, options.case))))
        return
    head = common.header(options)
    common.print_header(head)
    sizes = ["checkpoint"] if options.checkpoint else options.params
    cases = {
        case: lambda case=case: common.child(case, options)
        for case in itertools.product(sizes, options.lengths, options.k, options.methods)
    }
    results = common.interleave(
        cases,
        options.rounds,
        warmups=0,
        after_round=lambda results: common.save(table(results), head, options.json),
    )
    common.finish(table(results), head, COLUMNS, options.json)


def parse() -> argparse.Namespace:
    parser = common.make_parser(__doc__, k=(1, 4, 16, 64))
    add = parser.add_argument
    add("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    add("--lengths", nargs="+", type=int, help="several values of --length, one after the other")
    add("--max-sampled-tokens", type=int, default=0, help="of two_stage, as in training")
    add(
        "--sampler",
        choices=("multinomial", "inverse_cdf"),
        default="multinomial",
        help="how the standard methods draw words; the first is what published code does",
    )
    add(
        "--max-gb",
        type=float,
        default=0.0,
        help="memory a case may take above the loaded model; 0 is 90%% of what is free",
    )
    common.add_child_options(parser)
    options = parser.parse_args()
    options.lengths = options.lengths or [options.length]
    if options.checkpoint:
        options.lengths = [None]  # the model's own
    common.check_options(options)
    return options


def table(results: dict[Any, list[common.Row]]) -> list[common.Row]:
    """Medians and ratios."""
    rows = []
    for (params, length, k, method), found in results.items():
        row = {"method": method, "k": k, "params": params, "length": length}
        row.update(seconds=None, peak_bytes=None)
        row.update(common.medians(found))
        row["spread"] = common.spread(found, "seconds")
        row["peak_mb"] = row["peak_bytes"] and row["peak_bytes"] / 1e6
        rows.append(row)
    own = {_setting(row): row for row in rows if row["method"] == "two_stage"}
    for row in rows:
        base = own.get(_setting(row))
        for name, key in (("two_stage_time", "seconds"), ("two_stage_peak", "peak_bytes")):
            row[name] = common.ratio(base and base[key], row[key])
    return rows


def _setting(row: common.Row) -> tuple[Any, ...]:
    return row["params"], row["length"], row["k"]


# The process of one case


def run_case(options: argparse.Namespace, case: str) -> common.Row:
    """Load the model, do one update to warm up and one to measure; the peak is over both."""
    params, options.length, k, method = json.loads(case)
    options.params = [params]
    touch_libraries(options, method)
    work = next(iter(workloads(options)))
    bench = make_bench(work, k, options.sampler, options.max_sampled_tokens)
    memory = common.PeakMemory(options.device)
    limit = limit_memory(options)
    try:
        run_update(bench, method, work.batches[0], options.seed)
        result = run_update(bench, method, work.batches[0], options.seed + 1)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise common.Skip(f"needs more than {limit:.1f} GB (--max-gb)") from None
    peak = {"peak_bytes": memory.bytes(), "peak_exact": memory.exact}
    return {**work.about, **result, **peak, "sampler": options.sampler}


def touch_libraries(options: argparse.Namespace, method: str) -> None:
    """One update of a tiny model: code that is loaded at first use is no memory of the method."""
    small = argparse.Namespace(**{**vars(options), "inputs": 2, "length": 3})
    work: Workload = random("tiny", small)
    bench = make_bench(work, 2, options.sampler, options.max_sampled_tokens)
    run_update(bench, method, work.batches[0], options.seed)


def limit_memory(options: argparse.Namespace) -> float:
    """Have allocations fail beyond ``--max-gb``; returns that limit in GB."""
    if options.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        limit = options.max_gb * 1e9 or 0.9 * free
        used = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(min((used + limit) / total, 1.0))
        return limit / 1e9
    limit = options.max_gb * 1e9 or 0.9 * common.free_memory()
    if resource is not None:
        most = int(common.memory_now("VmData") + limit)
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    return limit / 1e9


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


if __name__ == "__main__":
    main()
