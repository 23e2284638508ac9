"""What all benchmarks share: options, header, interleaved rounds, memory, tables and JSON rows.

Import it first: it makes the package of this checkout importable.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from about import ROOT, Row, about, first_match

sys.path.insert(0, str(ROOT))
logging.disable(logging.WARNING)  # fairseq's and transformers' talk about themselves

import torch  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Skip(Exception):
    """A case that cannot run here; its message becomes the row's reason."""


# Options


def bare_parser(description: str | None) -> argparse.ArgumentParser:
    """One without options, whose help is the first line of ``description`` and shows defaults."""
    return argparse.ArgumentParser(
        description=(description or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def make_parser(
    description: str | None, k: Sequence[int] = (1, 4, 8, 16, 64)
) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = bare_parser(description)
    add = parser.add_argument
    add("--params", nargs="+", default=["3M"], help="sizes of random models: tiny 3M 35M 60M")
    add("--k", nargs="+", type=int, default=list(k), help="samples per input")
    add("--inputs", type=int, default=64, help="inputs in a batch")
    add("--length", type=int, default=16, help="tokens of every sample of a random model")
    add("--rounds", type=int, default=3, help="repeats of every case, interleaved")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="of the model's weights")
    add("--threads", type=int, default=0, help="CPU threads; 0 is torch's own choice")
    add("--seed", type=int, default=1, help="of models, sources and samples")
    add("--checkpoint", help="a trained model instead of random ones; needs --data")
    add("--data", help="the checkpoint's binarized data")
    add("--subset", default="train", help="split of --data that inputs are taken from")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together, and apply ``--threads``."""
    if bool(options.checkpoint) != bool(options.data):
        sys.exit("--checkpoint and --data need each other")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    if min(options.k) < 1 or options.rounds < 1 or options.inputs < 1:
        sys.exit("--k, --rounds and --inputs must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)


# Where and with what


def header(options: argparse.Namespace) -> Row:
    """Machine, commit, versions and command of this run."""
    return {
        **about(torch.cuda.get_device_name() if options.device == "cuda" else ""),
        "threads": torch.get_num_threads(),
        "device": options.device,
        "dtype": options.dtype,
        "lengths": "of samples: the model's own"
        if options.checkpoint
        else "of samples: all the same (--length, and EOS) in every engine and method: "
        "random weights do not know when to end",
        "command": _command(),
    }


def print_header(head: Row) -> None:
    """The header, one line an entry."""
    for key, value in head.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key:>9}: {text}")
    print(flush=True)


def _command() -> str:
    """As typed, but of files only the names: a row must not tell of this machine's folders."""
    script, *arguments = sys.argv
    # Not every slash is of a file: "beta 0.3, at least K / 2".
    shown = [Path(a).name if os.sep in a and Path(a).parent.is_dir() else a for a in arguments]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])


# Measuring


def seconds_now(device: str) -> float:
    """A clock that first waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(
    cases: dict[Any, Callable[[], Row]],
    rounds: int,
    warmups: int = 1,
    after_round: Callable[[dict[Any, list[Row]]], None] | None = None,
) -> dict[Any, list[Row]]:
    """Run every case once a round, so that what slows the machine for a while meets all alike.

    Args:
        cases: what to measure; each call returns numbers by name.
        rounds: results to keep of each case.
        warmups: rounds before them.
        after_round: gets the results so far.

    Returns:
        The results by case, in order of the rounds. A case that raises is not run again; its only
        result is ``{"reason": …}``.
    """
    results: dict[Any, list[Row]] = {name: [] for name in cases}
    reasons: dict[Any, str] = {}
    for number in range(warmups + rounds):
        for name, case in cases.items():
            if name in reasons:
                continue
            result = attempt(case)
            if "reason" in result:
                reasons[name] = result["reason"]
            elif number >= warmups:
                results[name].append(result)
            gc.collect()
        results.update({name: [{"reason": reason}] for name, reason in reasons.items()})
        if after_round and number >= warmups:
            after_round(results)
    return results


def add_child_options(parser: argparse.ArgumentParser) -> None:
    """For scripts that run each case in a process of its own, see :func:`child`."""
    add = parser.add_argument
    add("--timeout", type=float, default=3600.0, help="seconds after which a case is given up")
    add("--case", help=argparse.SUPPRESS)  # of the child process


def child(case: tuple[Any, ...], options: argparse.Namespace) -> Row:
    """Run one case in a new process with this one's options.

    Raises:
        Skip: it failed, was killed or took too long.
    """
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    command += ["--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        raise Skip(f"took more than {options.timeout:g} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0:
        raise Skip(f"killed by signal {-done.returncode}: most likely out of memory")
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Skip(said[-1])
    result = json.loads(lines[-1])
    print(f"{' '.join(map(str, case))}: {result.get('reason') or 'done'}", file=sys.stderr)
    if "reason" in result:
        raise Skip(result["reason"])
    return result


def attempt(case: Callable[[], Row]) -> Row:
    """What ``case`` returns, or why it could not run."""
    try:
        return case()
    except Skip as reason:
        return {"reason": str(reason)}
    except Exception as error:  # a broken case must not hide the others' results
        lines = str(error).strip().splitlines()
        return {"reason": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def medians(results: Sequence[Row]) -> Row:
    """The median of every number over the rounds; anything else is taken from the last one."""
    row = dict(results[-1])
    for key, value in row.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            row[key] = statistics.median(result[key] for result in results)
    return row


def spread(results: Sequence[Row], key: str) -> float | None:
    """(largest − smallest) / median of ``key`` over the rounds."""
    values = [result[key] for result in results if key in result]
    return (max(values) - min(values)) / statistics.median(values) if values else None


def ratio(over: float | None, under: float | None) -> float | None:
    """A quotient for the table; None where a side is missing."""
    return over / under if over is not None and under else None


class PeakMemory:
    """Peak memory above what was in use when it was made, in bytes.

    On a GPU what torch allocated, otherwise the resident set's high-water mark, which Linux lets
    a process reset. Where that is not possible, ``exact`` is False and an earlier peak may hide
    this one's.
    """

    def __init__(self, device: str):
        gc.collect()
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.exact, self.start = True, torch.cuda.memory_allocated()
        else:
            self.exact = _reset_high_water_mark()
            self.start = memory_now("VmRSS")

    def bytes(self) -> int:
        """The peak so far."""
        high = torch.cuda.max_memory_allocated() if self.cuda else memory_now("VmHWM")
        return max(high - self.start, 0)


def memory_now(field: str) -> int:
    """A size from ``/proc/self/status`` (VmRSS, VmHWM, VmData) in bytes."""
    kilobytes = first_match("/proc/self/status", rf"{field}:\s*(\d+)")
    if kilobytes is None:
        raise Skip("peak memory of a CPU process is read from /proc, which is not here")
    return int(kilobytes) * 1024


def free_memory() -> float:
    """Bytes that can be allocated without swapping."""
    kilobytes = first_match("/proc/meminfo", r"MemAvailable:\s*(\d+)")
    if kilobytes is None:
        raise Skip("the free memory is read from /proc, which is not here: give --max-gb")
    return int(kilobytes) * 1024


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# Reporting


def finish(rows: list[Row], head: Row, columns: Sequence[str], json_file: str | None) -> None:
    """Print the table and write the rows."""
    print_table(rows, columns)
    save(rows, head, json_file)


def save(rows: list[Row], head: Row, json_file: str | None) -> None:
    """Write the rows so far, each with the header's entries: what is measured is not lost."""
    if json_file:
        lines = ",\n".join(json.dumps({**row, **head}) for row in rows)
        Path(json_file).write_text(f"[\n{lines}\n]\n")


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Columns that are empty in all rows are left out."""
    shown = [c for c in columns if any(row.get(c) is not None for row in rows)]
    cells = [shown] + [[_cell(row.get(column)) for column in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    for line in cells:
        *numbers, last = (cell.rjust(width) for cell, width in zip(line, widths))
        print("  ".join([*numbers, last if shown[-1] != "reason" else line[-1]]))
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
