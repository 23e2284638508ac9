"""What processes of their own (``--reward-workers``) save in slow rewards.

A row a reward and number of processes. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import time

import common
import torch

from esrl_fairseq.rewards import build_reward
from esrl_fairseq.rewards.asking import ask_rows
from esrl_fairseq.rewards.workers import Workers, build_workers

COLUMNS = ("reward", "workers", "rows", "seconds", "spread", "speedup", "start", "mb", "reason")
OWN = "python:reward_workers."
WORDS = 500
WAIT = 0.001
"""Seconds a text of what waits for others."""


def edits(sources: list[str], hypotheses: list[str], references: list[list[str]]) -> list[float]:
    """Distances by characters, as somebody writes them in Python."""

    def distance(one: str, other: str) -> int:
        last = list(range(len(other) + 1))
        for i, a in enumerate(one, 1):
            row = [i]
            for j, b in enumerate(other, 1):
                row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (a != b)))
            last = row
        return last[-1]

    return [-float(distance(text, refs[0])) for text, refs in zip(hypotheses, references)]


def waits(sources: list[str], hypotheses: list[str], references: list[list[str]]) -> list[float]:
    """What asks somebody else about one text after another."""
    time.sleep(WAIT * len(hypotheses))
    return [1.0] * len(hypotheses)


def main() -> None:
    """Every reward, asked by the trainer itself and by processes."""
    parser = common.bare_parser(__doc__)
    add = parser.add_argument
    names = ["chrf", "ter", f"{OWN}edits", f"{OWN}waits"]
    add("--rewards", nargs="+", default=names, help="any names that --reward takes")
    add("--workers", nargs="+", type=int, default=[1, 2, 4], help="numbers of processes")
    add("--inputs", type=int, default=64, help="inputs in a batch")
    add("--k", type=int, default=8, help="samples per input")
    add("--length", type=int, default=16, help="words of a text")
    add("--rounds", type=int, default=5, help="repeats of every case, interleaved")
    add("--seed", type=int, default=1, help="of the texts")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.device, options.dtype, options.checkpoint = "cpu", "fp32", None
    head = common.header(options)
    del head["lengths"]
    head["cores"] = str(len(os.sched_getaffinity(0)))
    common.print_header(head)
    rows: list[common.Row] = []
    for name in options.rewards:
        rows += measure(name, options)
        common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def measure(name: str, options: argparse.Namespace) -> list[common.Row]:
    """The rows of one reward."""
    reward = build_reward(name)
    batch = texts(options)
    pools: dict[int, Workers | None] = {0: None}
    costs: dict[int, common.Row] = {0: {}}
    for number in options.workers:
        begin = time.perf_counter()
        pool = pools[number] = build_workers(number, reward, {})
        if pool is not None:
            pool.wait()
            costs[number] = {"start": time.perf_counter() - begin, "mb": memory(pool)}

    def ask(workers: Workers | None) -> common.Row:
        begin = time.perf_counter()
        ask_rows(reward, *batch, workers=workers)
        return {"seconds": time.perf_counter() - begin}

    cases = {number: functools.partial(ask, pool) for number, pool in pools.items()}
    found = common.interleave(cases, options.rounds)
    for pool in filter(None, pools.values()):
        pool.close()
    alone = common.medians(found[0]).get("seconds")
    result = []
    for number, results in found.items():
        row = {**common.medians(results), **costs[number], "reward": name, "workers": number}
        row["rows"], row["spread"] = len(batch[1]), common.spread(results, "seconds")
        row["speedup"] = common.ratio(alone, row.get("seconds"))
        result.append(row)
    return result


def texts(
    options: argparse.Namespace,
) -> tuple[list[str], list[str], list[list[str]], list[int], range]:
    """Sources, hypotheses, references, inputs of rows and ids."""
    rng = random.Random(options.seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(WORDS)]

    def text() -> str:
        return " ".join(rng.choices(words, k=options.length))

    inputs = range(options.inputs)
    rows = [i for i in inputs for _ in range(options.k)]
    return (
        [text() for _ in inputs],
        [text() for _ in rows],
        [[text()] for _ in inputs],
        rows,
        inputs,
    )


def memory(pool: Workers) -> float:
    """MB of all its processes that nothing else has; where Linux tells."""
    processes = [pool.parent.pid]
    with open(f"/proc/{pool.parent.pid}/task/{pool.parent.pid}/children") as file:
        processes += map(int, file.read().split())
    total = 0
    for pid in processes:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


if __name__ == "__main__":
    main()
