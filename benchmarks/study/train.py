"""fairseq-train with a budget of CPU time.

    train.py --seconds 1800 --updates 400 --checkpoints 20 --report train.json DATA OPTION…

Nothing is validated meanwhile (give ``--disable-validation``), so that the budget is spent on
training alone; only a reward that begins with the counts of a validation has that of the start
model. What is saved is not fairseq's choice but that of :class:`Course`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import fairseq_cli.train


class Course:
    """Decides after every update what is saved and when training ends.

    The clock is the CPU time of this process, which counts all that training does and not what
    other processes do meanwhile. It starts when this is made: imports do not count.

    A checkpoint is due with the first update that ends past each of ``checkpoints`` equal parts of
    ``seconds``, and after exactly ``updates``. Training ends with the update that ends past
    ``seconds``, or, where that is 0, with ``updates``.
    """

    def __init__(self, seconds: float, updates: int, checkpoints: int, report: Path):
        self.seconds, self.updates, self.checkpoints = seconds, updates, checkpoints
        self.report = report
        self.candidates: list[dict[str, float]] = []
        self.equal_updates: dict[str, float] | None = None
        self.finished = False
        self.passed = 0  # marks, of ``checkpoints``
        self.in_updates = 0.0  # seconds, from the second update on, saving not counted
        self.start = time.process_time()
        self.idle_since = self.start

    def clock(self) -> float:
        """CPU seconds of training so far."""
        return time.process_time() - self.start

    def after_update(
        self, cfg: Any, trainer: Any, task: Any, epoch_itr: Any, subsets: Any, end_of_epoch: bool
    ) -> tuple[list[None], bool]:
        """In the place of fairseq's ``validate_and_save``, which has this signature.

        Returns:
            No validation loss, and whether training is to stop.
        """
        now, updates = self.clock(), trainer.get_num_updates()
        if updates > 1:
            self.in_updates += now - self.idle_since
        state = {"updates": updates, "seconds": round(now, 2)}
        marks = int(now * self.checkpoints / self.seconds) if self.seconds else 0
        due = self.passed < marks
        if due:
            self.passed = marks
            self.candidates.append(state)
        if updates == self.updates:
            self.equal_updates = state
        if due or updates == self.updates:
            trainer.save_checkpoint(f"{cfg.checkpoint.save_dir}/checkpoint_{updates}.pt", {})
        self.finished = now >= self.seconds if self.seconds else updates >= self.updates
        if self.finished:
            self.write_report(state)
        self.idle_since = self.clock()
        return [None], self.finished

    def write_report(self, state: dict[str, float]) -> None:
        """Last of all, so that the file says: training came to its end."""
        found = {
            **state,
            "seconds_per_update": self.in_updates / max(state["updates"] - 1, 1),
            "peak_mb": peak_mb(),
            "candidates": self.candidates,
            "equal_updates": self.equal_updates,
        }
        part = self.report.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(self.report)


def peak_mb() -> float | None:
    """Largest resident set of this process so far; None where the system does not tell (/proc)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


def main() -> None:
    """All but the options of the budget goes to fairseq-train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, required=True, help="of CPU time; 0: no limit")
    parser.add_argument("--updates", type=int, required=True, help="after which a model is kept")
    parser.add_argument("--checkpoints", type=int, required=True, help="models kept over time")
    parser.add_argument("--report", type=Path, required=True, help="what happened, as JSON")
    budget, rest = parser.parse_known_args()

    course = Course(**vars(budget))
    fairseq_cli.train.validate_and_save = course.after_update
    sys.argv = ["fairseq-train", *rest]
    fairseq_cli.train.cli_main()
    if not course.finished:
        sys.exit(
            "error: training ended before its budget was spent; an option such as --max-update or "
            "--max-epoch ended it: leave it out"
        )


if __name__ == "__main__":
    main()
