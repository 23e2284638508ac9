"""One update of a causal LM by this package and by TRL's trainers, each in a process of its own.

One row a size, K and trainer with its batch size or flags. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from peer_check import check
from peer_setting import Setting, prepare
from peer_trainers import TRAINERS, esrl_updates, trl_updates

STAGES = ("stage_one", "old", "reward", "stage_two", "backward", "step", "other")
COLUMNS = (
    "params", "k", "peer", "setting", "seconds", "spread", "peak_mb", "process_mb", "tokens_per_s",
    "to_trl_time", "to_trl_peak", *(f"seconds_{stage}" for stage in STAGES), "reason",
)  # fmt: skip
CHECKS = (
    "params", "k", "check", "log_probs", "rewards", "advantages", "loss", "gradient", "scale",
    "cosine", "reason",
)  # fmt: skip


def main() -> None:
    """Every case once a round, each time in a new process; then the checks."""
    options = parse()
    if options.case:
        print(json.dumps(common.attempt(lambda: run_case(options, *json.loads(options.case)))))
        return
    head = common.header(options)
    common.print_header(head)
    with tempfile.TemporaryDirectory() as scratch:
        reasons = prepare_all(options, Path(scratch))

        def runs(cases: list[Case]) -> dict[Case, Callable[[], common.Row]]:
            return {case: functools.partial(run, case, scratch, options, reasons) for case in cases}

        results = common.interleave(
            runs(timed_cases(options)),
            options.rounds,
            warmups=0,
            after_round=lambda results: common.save(table(results), head, options.json),
        )
        checks = [
            {**_about(case), **common.attempt(one)}
            for case, one in runs(check_cases(options)).items()
        ]
    rows = table(results)
    common.print_table(rows, COLUMNS)
    if checks:
        print("\nThe same samples in both, see benchmarks/README.md:")
        common.print_table(checks, CHECKS)
    common.save(rows + checks, head, options.json)


def parse() -> argparse.Namespace:
    parser = common.make_parser(__doc__, k=(8,))
    parser.set_defaults(params=["6.7M"], length=40)
    add = parser.add_argument
    add("--peers", nargs="*", choices=tuple(TRAINERS), default=list(TRAINERS))
    add("--rows", nargs="+", type=int, default=[16, 32, 64], help="TRL's: samples trained at once")
    add(
        "--ours",
        action="append",
        metavar="FLAGS",
        help="further flags of fairseq-train for a row of this package, such as "
        "--ours='--max-sampled-tokens 1024'; several times for several rows, beside the one "
        "without any",
    )
    add("--prompt-length", type=int, default=12, help="words of a prompt, about")
    add("--updates", type=int, default=1, help="timed in a process, after one to warm up")
    add("--no-check", action="store_true", help="do not compare both on the same samples")
    common.add_child_options(parser)
    options = parser.parse_args()
    if options.checkpoint or options.dtype != "fp32":
        parser.error("the models are those of --params, in fp32")
    if min(options.k) < 2:
        parser.error("--k must be at least 2: all trainers compare a prompt's samples")
    if min(options.rows) < 1 or options.updates < 1:
        parser.error("--rows and --updates must be at least 1")
    if options.prompt_length < 1:
        parser.error("--prompt-length must be at least 1")
    options.ours = list(dict.fromkeys(["", *(options.ours or [])]))
    common.check_options(options)
    return options


Case = tuple[str, int, str, Any]
"""Size, K, who makes the update, and its flags or rows at once."""
KINDS = {"trl_rloo": [""], "trl_grpo": ["dr_grpo", ""]}
"""Losses of TRL's trainers to compare with; "" is the default."""
CHECK = "check "


def prepare_all(options: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Make the models and prompts; returns why sizes cannot be had."""
    reasons = {}
    for params in options.params:
        try:
            prepare(params, scratch / params, options)
        except common.Skip as reason:
            reasons[params] = str(reason)
    return reasons


def timed_cases(options: argparse.Namespace) -> list[Case]:
    """Ours with each of the flags, then each of TRL's trainers with each number of rows."""
    cases: list[Case] = []
    for params, k in itertools.product(options.params, options.k):
        cases += [(params, k, "esrl", flags) for flags in options.ours]
        cases += [(params, k, *peer) for peer in itertools.product(options.peers, options.rows)]
    return cases


def check_cases(options: argparse.Namespace) -> list[Case]:
    """What is compared on the same samples."""
    if options.no_check:
        return []
    return [
        (params, k, CHECK + peer, kind)
        for params, k, peer in itertools.product(options.params, options.k, options.peers)
        for kind in KINDS[peer]
    ]


def run(case: Case, scratch: str, options: argparse.Namespace, reasons: dict[str, str]) -> Any:
    """A case in a new process."""
    if case[0] in reasons:
        raise common.Skip(reasons[case[0]])
    return common.child((*case, scratch), options)


def table(results: dict[Any, list[common.Row]]) -> list[common.Row]:
    """Medians, and ratios to TRL's fastest: its time, and the memory that one takes."""
    rows = []
    for case, found in results.items():
        row = {**_about(case), "seconds": None, "peak_bytes": None, **common.medians(found)}
        row["spread"] = common.spread(found, "seconds")
        for name in ("peak", "process"):
            row[f"{name}_mb"] = row.get(f"{name}_bytes") and row[f"{name}_bytes"] / 1e6
        row["tokens_per_s"] = common.ratio(row.get("tokens"), row["seconds"])
        rows.append(row)
    peers = [row for row in rows if row["peer"] in TRAINERS and row["seconds"]]
    for row in rows:
        same = [peer for peer in peers if (peer["params"], peer["k"]) == (row["params"], row["k"])]
        best = min(same, key=lambda peer: peer["seconds"], default=None)
        row["to_trl_time"] = common.ratio(row["seconds"], best and best["seconds"])
        row["to_trl_peak"] = common.ratio(row["peak_bytes"], best and best["peak_bytes"])
    return rows


def _about(case: Case) -> common.Row:
    params, k, who, what = case
    if who.startswith(CHECK):
        return {"params": params, "k": k, "check": f"{who[len(CHECK) :]} {what}".strip()}
    setting = what if isinstance(what, str) else f"{what} rows at once"
    return {"params": params, "k": k, "peer": who, "setting": setting}


# The process of one case


def run_case(
    options: argparse.Namespace, params: str, k: int, who: str, what: Any, scratch: str
) -> common.Row:
    """One update to warm up, then the timed ones; the peak is over all of them."""
    setting = Setting(params, Path(scratch) / params, k, options.length, options.inputs)
    if who.startswith(CHECK):
        return check(setting, who[len(CHECK) :], what, options.device, options.seed)
    return measure(setting, who, what, options)


def measure(setting: Setting, who: str, what: Any, options: argparse.Namespace) -> common.Row:
    """Medians over the updates of this process, and its peak."""
    make = esrl_updates if who == "esrl" else functools.partial(trl_updates, who)
    train = make(setting, what, options.device, options.seed, options.updates + 1)
    memory = common.PeakMemory(options.device)
    found = train()[1:]
    cuda = options.device == "cuda"
    return {
        **common.medians(found),
        "peak_bytes": memory.bytes(),
        "peak_exact": memory.exact,
        "process_bytes": None if cuda else common.memory_now("VmHWM"),
        "inputs": setting.prompts,
        "length": setting.length,
    }


if __name__ == "__main__":
    main()
