"""Run a study: what study.toml lists, several runs at a time, each with a budget of CPU time.

    python benchmarks/study/run.py --work DIR

The same command goes on where an earlier one stopped. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import STUDY, Run, Study, StudyError, load, results_of
from runner import Failed, PairFolder, Runner, say


async def work_off(runner: Runner, runs: Sequence[Run], of: int) -> dict[str, str]:
    """Carry out runs, ``runner.jobs`` at a time; a failure does not stop the others.

    Args:
        of: number of runs, those that are done included.

    Returns:
        What failed and why, by run.
    """
    failed: dict[str, str] = {}
    slots = asyncio.Semaphore(runner.jobs)
    estimate = Estimate(runs, runner.jobs)

    async def one(run: Run) -> None:
        async with slots:
            begun = time.monotonic()
            progress(f"{run.name} begins", estimate, of)
            try:
                await runner.carry_out(run)
            except Failed as reason:
                failed[run.name] = str(reason)
            estimate.over(run, time.monotonic() - begun)
            outcome = f"FAILED: {failed[run.name]}" if run.name in failed else "is done"
            progress(f"{run.name} {outcome}", estimate, of)

    async with asyncio.TaskGroup() as group:
        for run in runs:
            group.create_task(one(run))
    return failed


def progress(event: str, estimate: Estimate, of: int) -> None:
    """One line: what happened, what is left."""
    say(f"{event} | {estimate.left()} of {of} left, {estimate.time_left()}")


class Estimate:
    """How long the rest takes: as much longer than its budget as the runs so far."""

    def __init__(self, runs: Sequence[Run], jobs: int):
        self.weights = {run.name: run.budget.seconds or 3 * run.budget.updates for run in runs}
        self.jobs = jobs
        self.taken = self.planned = 0.0

    def over(self, run: Run, seconds: float) -> None:
        """A run took so long, for good or ill."""
        self.taken += seconds
        self.planned += self.weights.pop(run.name)

    def left(self) -> int:
        """Runs that are not over."""
        return len(self.weights)

    def time_left(self) -> str:
        """In words; before any run is over, a fifth is added to the budgets for evaluation."""
        rate = self.taken / self.planned if self.planned else 1.2
        minutes = sum(self.weights.values()) * rate / self.jobs / 60
        return f"about {minutes // 60:.0f} h {minutes % 60:02.0f} min"


def take_lock(work: Path) -> int:
    """A descriptor that children inherit, so that the lock lasts as long as any of them."""
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StudyError(
            f"another run.py, or a process that one left, works in {work}: end it first"
        ) from None
    return lock


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for all that is made")
    add("--study", type=Path, default=STUDY, help="what to run (default: study.toml)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="runs whose name EXPERIMENT/PAIR/METHOD/SEED fits, e.g. 'main/*/esrl/1'; repeatable",
    )
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="at a time (default: cores)")
    add(
        "--pair",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="work folder of the pair's recipe (default: WORK/pairs/NAME); repeatable",
    )
    add(
        "--results",
        type=Path,
        help="folder of results.json, whose runs are not repeated (default: the study's)",
    )
    add("--redo", action="store_true", help="repeat runs whose settings have changed")
    add("--list", action="store_true", help="only say what is done and what is to do")
    return parser.parse_args()


def pair_folders(study: Study, work: Path, given: Sequence[str]) -> dict[str, PairFolder]:
    """The folder of every pair, by ``NAME=DIR`` or in ``work``."""
    folders = {name: work / "pairs" / name for name in study.pairs}
    for word in given:
        name, _, folder = word.partition("=")
        if name not in folders or not folder:
            raise StudyError(f"--pair {word} is not NAME=DIR with one of {', '.join(folders)}")
        folders[name] = Path(folder).resolve()
    return {name: PairFolder(study.pairs[name], folder) for name, folder in folders.items()}


async def run_study(options: argparse.Namespace) -> int:
    """Exit status: 1 where a run failed."""
    this: Any = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # as Ctrl-C does
    study = load(options.study)
    runs = study.select(options.only)
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    folders = pair_folders(study, work, options.pair)
    results = options.results or results_of(options.study)
    lock = -1 if options.list else take_lock(work)  # first, as digests take seconds
    runner = Runner(work, folders, max(options.jobs, 1), results, lock)
    if options.list:
        for run in runs:
            print(f"{runner.state(run):8} {run.name}")
        return 0
    for pair in dict.fromkeys(run.pair for run in runs):
        start = not all(run.cost_only for run in runs if run.pair == pair)
        await runner.prepare(pair, options.redo, start)
    for run in runs:
        runner.prepare_subset(run)

    states = {run.name: runner.state(run) for run in runs}
    changed = [name for name, state in states.items() if state == "changed"]
    if changed and not options.redo:
        names = "\n    ".join(changed)
        raise StudyError(
            "these runs were done with other settings; give --redo to repeat them, or another "
            f"--work to keep both:\n    {names}"
        )
    for name in changed:
        shutil.rmtree(work / "runs" / name)
    failed = await work_off(runner, [run for run in runs if states[run.name] != "done"], len(runs))
    if failed:
        say(f"{len(failed)} of {len(runs)} failed; the same command tries them again: ")
        print(*(f"    {name}" for name in failed), sep="\n")
        return 1
    say(f"all {len(runs)} runs are done; report.py makes the tables")
    return 0


def main() -> None:
    """Errors in one sentence."""
    try:
        sys.exit(asyncio.run(run_study(parse_options())))
    except (StudyError, Failed) as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("interrupted: the same command goes on from here")


if __name__ == "__main__":
    main()
