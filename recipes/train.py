"""fairseq-train, which also writes down how much memory it took: --cost FILE OPTION…

FILE gets, as JSON, the largest resident set of its processes over all launches ("process_mb"),
and the memory of a GPU ("gpu_total_mb"; null without one), from which costs.py tells what was used.
"""

import json
import os
import resource
import sys
from pathlib import Path


def peak_mb() -> float:
    """Of this process and of the largest that it started and that has ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * unit / 1e6


def gpu_total_mb() -> "float | None":
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 1e6


def write_cost(file: Path) -> None:
    """The first rank's; of several launches the largest."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    if not file.parent.is_dir():
        return  # training ended before it began
    before = json.loads(file.read_text()) if file.exists() else {"process_mb": 0}
    cost = {
        "process_mb": round(max(peak_mb(), before["process_mb"]), 1),
        "gpu_total_mb": gpu_total_mb(),
    }
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(cost) + "\n")
    part.replace(file)


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] != "--cost":
        sys.exit("error: usage: train.py --cost FILE OPTION…, with options of fairseq-train")
    file = Path(sys.argv[2]).absolute()
    sys.argv = ["fairseq-train", *sys.argv[3:]]
    del sys.path[0]  # this folder: its clean.py, fetch.py … are no modules for others
    from fairseq_cli.train import cli_main

    try:
        cli_main()
    finally:
        write_cost(file)


if __name__ == "__main__":
    main()
