"""Print, as JSON, what the trainings of runs cost: {run: {updates, minutes, peak_mb, memory}}.

Minutes are those that fairseq counts, over all launches, from the start model on, with validation.
Memory is that of a GPU ("GPU"; from the log's gb_free), or the largest resident set of a process
("process"). Of the start model nothing is printed.
"""

import argparse
import json
import re
from pathlib import Path

import torch


def progress_of(path: Path) -> tuple[int, float]:
    """Updates and minutes that a checkpoint records."""
    torch.serialization.add_safe_globals([argparse.Namespace])  # fairseq's checkpoints hold one
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    history = checkpoint.get("optimizer_history") or [{}]
    seconds = (checkpoint.get("extra_state") or {}).get("previous_training_time", 0.0)
    return history[-1].get("num_updates", 0), seconds / 60


def gpu_peak_mb(log: Path, total_mb: float) -> float | None:
    """From the least memory that was left in any interval."""
    if not log.exists():
        return None
    free = re.findall(r"\bgb_free=([\d.]+)", log.read_text(encoding="utf-8", errors="replace"))
    return total_mb - min(map(float, free)) * 1024**3 / 1e6 if free else None


def cost_of(run: str, logs: Path, before: float) -> dict:
    updates, minutes = progress_of(Path(run) / "checkpoint_last.pt")
    found = {"updates": updates, "minutes": round(minutes - before, 2)}
    file = Path(run) / "cost.json"
    cost = json.loads(file.read_text()) if file.exists() else {}
    peak = None
    if cost.get("gpu_total_mb"):
        peak = gpu_peak_mb(logs / f"{run}.log", cost["gpu_total_mb"])
    found["memory"] = "GPU" if peak else "process"
    found["peak_mb"] = round(peak or cost.get("process_mb") or 0) or None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--start", help="the start model: a folder, if it was trained here")
    parser.add_argument("--logs", type=Path, required=True)
    args = parser.parse_args()
    start = Path(args.start or "") / "checkpoint_best.pt"
    before = progress_of(start)[1] if start.exists() else 0.0
    runs = [run for run in args.runs if run != args.start]
    print(json.dumps({run: cost_of(run, args.logs, before) for run in runs}, indent=1))


if __name__ == "__main__":
    main()
