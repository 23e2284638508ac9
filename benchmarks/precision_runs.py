"""What the precision does to learning: the same short training runs in each, by their validation.

One row a precision and seed, and one for each precision's mean. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from about import ROOT

COLUMNS = (
    "precision", "seed", "start", "best", "last", "gain", "gain_spread", "from_fp32",
    "from_fp32_spread", "stages_apart", "seconds_per_update", "curve", "reason",
)  # fmt: skip
PRECISIONS = {
    "fp32": "",
    "bf16": "--bf16",
    "memory-efficient bf16": "--memory-efficient-bf16",
    "amp": "--amp",
    "fp16": "--fp16",
    "memory-efficient fp16": "--memory-efficient-fp16",
}
ON_A_CPU = 3
"""Of these; the others need a GPU."""


def main() -> None:
    """Seeds take turns, and in each the precisions."""
    options = parse()
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for seed in range(1, options.seeds + 1):
        for precision in options.precisions:
            found = common.attempt(lambda case=(precision, seed): train(*case, options))
            rows.append({"precision": precision, "seed": seed, **found})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            common.save(rows, head, options.json)
    rows += [mean(precision, rows) for precision in options.precisions]
    common.finish(rows, head, COLUMNS, options.json)


def parse() -> argparse.Namespace:
    parser = common.bare_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the converged model that all runs start from")
    add("--data", required=True, help="the checkpoint's binarized data")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    add("--precisions", nargs="+", choices=tuple(PRECISIONS), help="(default: all of the device)")
    add("--seeds", type=int, default=3, help="runs of each precision")
    add("--updates", type=int, default=60, help="of a run")
    add("--every", type=int, default=20, help="updates between two validations")
    add("--inputs", type=int, default=32, help="inputs in a batch")
    add("--k", type=int, default=8, help="samples per input")
    add("--lr", type=float, default=2e-4, help="learning rate, constant")
    add("--threads", type=int, default=1, help="CPU threads of a run")
    add("--options", default="", help="further words of fairseq-train")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    options = parser.parse_args()
    if options.precisions is None:
        options.precisions = list(PRECISIONS)[: ON_A_CPU if options.device == "cpu" else None]
    options.dtype = "by row"
    if options.device == "cuda" and not common.torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    if min(options.seeds, options.updates, options.every, options.inputs, options.k) < 1:
        sys.exit("--seeds, --updates, --every, --inputs and --k must be at least 1")
    return options


def train(precision: str, seed: int, options: argparse.Namespace) -> common.Row:
    """One run, and what its record says."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [options.data, "--user-dir", str(ROOT / "esrl_fairseq"), "--save-dir", folder]
        words = f"""
            --task esrl_translation --criterion esrl --reward bleu --capability none
            --num-samples {options.k} --batch-size {options.inputs} --check-start warn
            --optimizer adam --adam-betas (0.9,0.98) --lr {options.lr} --lr-scheduler fixed
            --max-update {options.updates} --validate-interval-updates {options.every}
            --no-epoch-checkpoints --no-last-checkpoints --no-save-optimizer-state
            --no-progress-bar --required-batch-size-multiple 1 --num-workers 0 --seed {seed}
            {"--cpu" if options.device == "cpu" else ""} {PRECISIONS[precision]} {options.options}
        """
        command = [sys.executable, "-m", "fairseq_cli.train", *paths, *words.split()]
        command += ["--finetune-from-model", options.checkpoint]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise common.Skip(lines[-1])
        lines = (Path(folder) / "training_record.jsonl").read_text().splitlines()
    return summary([json.loads(line) for line in lines])


def summary(records: list[dict[str, Any]]) -> common.Row:
    """Of a run's record: rewards of its validations, the first of them before any update."""
    curve = [r["stats"]["reward"] for r in records if r["kind"] == "validation"]
    updates = [r for r in records if r["kind"] == "update"]
    return {
        "start": curve[0],
        "best": max(curve),
        "last": curve[-1],
        "gain": curve[-1] - curve[0],
        "stages_apart": statistics.mean(r["stages_apart"] for r in updates),
        "seconds_per_update": statistics.median(r["seconds_update"] for r in updates),
        "curve": [round(value, 5) for value in curve],
    }


def mean(precision: str, rows: list[common.Row]) -> common.Row:
    """Over the seeds: a precision's mean, its standard deviation, and its difference from float32's
    last reward, seed by seed."""
    own = {row["seed"]: row for row in rows if row["precision"] == precision and "last" in row}
    exact = {row["seed"]: row for row in rows if row["precision"] == "fp32" and "last" in row}
    if not own:
        return {"precision": precision, "seed": "mean", "reason": "no run came to its end"}
    names = ("start", "best", "last", "gain", "stages_apart", "seconds_per_update")
    found = {name: statistics.mean(row[name] for row in own.values()) for name in names}
    found["gain_spread"] = spread([row["gain"] for row in own.values()])
    apart = [own[seed]["last"] - exact[seed]["last"] for seed in own if seed in exact]
    if apart and precision != "fp32":
        found.update(from_fp32=statistics.mean(apart), from_fp32_spread=spread(apart))
    return {"precision": precision, "seed": "mean", **found}


def spread(values: list[float]) -> float | None:
    """Standard deviation, of two or more."""
    return statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    main()
