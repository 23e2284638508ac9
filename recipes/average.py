"""Average the models of the last epochs: --last N FOLDER OUT (Vaswani et al. 2017, section 6.1).

FOLDER holds checkpoints of fairseq-train --keep-last-epochs: checkpoint12.pt and so on. OUT is the
last of them with the mean of all parameters, without the optimizer's state.
"""

import argparse
import re
import sys
from pathlib import Path

import torch


def last_epochs(folder: Path, number: int) -> list[Path]:
    """The checkpoints of the last epochs, in order."""
    found = {}
    for path in folder.glob("checkpoint*.pt"):
        if match := re.fullmatch(r"checkpoint(\d+)\.pt", path.name):
            found[int(match[1])] = path
    if not found:
        raise SystemExit(f"error: {folder} has no checkpoint of an epoch (checkpoint1.pt …)")
    return [found[epoch] for epoch in sorted(found)[-number:]]


def mean_state(paths: list[Path]) -> dict:
    """The last checkpoint, its parameters being the mean of all (added up in float64)."""
    torch.serialization.add_safe_globals([argparse.Namespace])  # fairseq's checkpoints hold one
    sums: dict[str, torch.Tensor] = {}
    state: dict = {}
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in state["model"].items():
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    for name, value in sums.items():
        state["model"][name] = (value / len(paths)).to(state["model"][name].dtype)
    state["last_optimizer_state"] = None
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--last", type=int, required=True, help="epochs")
    args = parser.parse_args()
    paths = last_epochs(args.folder, args.last)
    if len(paths) < args.last:
        print(f"> only {len(paths)} epochs of {args.last} are there", file=sys.stderr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_name(f"{args.out.name}.part")
    torch.save(mean_state(paths), part)
    part.replace(args.out)
    print(f"> mean of {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
