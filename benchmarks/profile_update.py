"""One update under torch's profiler: launches, synchronisations, how long the device idles.

One row a size and K, and the top operations as text. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import common
from methods import METHODS, Bench, make_bench, run_update
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workload import Workload, workloads

COLUMNS = (
    "params", "k", "method", "seconds", "launches", "synchronisations", "copies", "operators",
    "device_seconds", "idle", "reason",
)  # fmt: skip
CALLS = {  # of the driver and its runtime, by their names
    "launches": re.compile(r"(cuda|cu|hip)\w*Launch"),
    "synchronisations": re.compile(r"(cuda|cu|hip)\w*Synchronize"),
    "copies": re.compile(r"(cuda|cu|hip)Memcpy"),
}
TOP = 30
"""Operations that the text file lists."""


def main() -> None:
    """Every size and K."""
    parser = common.make_parser(__doc__, k=(8,))
    add = parser.add_argument
    add("--method", choices=tuple(METHODS), default="two_stage", help="as in update.py")
    add("--max-sampled-tokens", type=int, default=4096, help="as in training")
    add("--text", metavar="FILE", help="write the top operations here; without, they are printed")
    options = parser.parse_args()
    common.check_options(options)
    head = common.header(options)
    common.print_header(head)
    rows, texts = [], []
    for work in workloads(options):
        for k in options.k:
            row, text = measure(work, k, options)
            rows.append(row)
            texts.append(f"{row['params']}, K = {k}, {options.method}\n\n{text}")
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)
    text = "\n\n".join(texts) + "\n"
    if options.text:
        Path(options.text).write_text(text)
    else:
        print(f"\n{text}")


def measure(work: Workload, k: int, options: argparse.Namespace) -> tuple[common.Row, str]:
    """The medians of updates without the profiler, whose own time is not theirs; then one with."""
    bench = make_bench(work, k, "inverse_cdf", options.max_sampled_tokens)
    update(bench, options, 0)
    timed = [update(bench, options, number) for number in range(1, options.rounds + 1)]
    activities = [ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        update(bench, options, 1)
    row = {"method": options.method, "k": k, **work.about, **common.medians(timed)}
    row["spread"] = common.spread(timed, "seconds")
    row.update(counts(found.events(), row["seconds"], options.device == "cuda"))
    order = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    return row, found.key_averages().table(sort_by=order, row_limit=TOP)


def update(bench: Bench, options: argparse.Namespace, number: int) -> common.Row:
    """One update."""
    return run_update(bench, options.method, bench.work.batches[0], options.seed + number)


def counts(events: Any, seconds: float, on_device: bool) -> common.Row:
    """Of one update's events; what only a device has is None without one.

    Args:
        seconds: of an update without the profiler.
    """
    host = [event for event in events if event.device_type == DeviceType.CPU]
    row: common.Row = {"operators": sum(event.name.startswith("aten::") for event in host)}
    if not on_device:
        return row
    for key, pattern in CALLS.items():
        row[key] = sum(bool(pattern.match(event.name)) for event in host)
    work = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    row["device_seconds"] = covered(work) / 1e6
    row["idle"] = max(0.0, 1 - row["device_seconds"] / seconds)
    return row


def covered(intervals: list[tuple[float, float]]) -> float:
    """The length of the intervals' union: streams may work at once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


if __name__ == "__main__":
    main()
