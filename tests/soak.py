"""What a training uses while it runs, looked at from outside: whether anything grows or slows down.

    running = commands.start("fairseq-train", …)        # with --log-format json --log-interval 1
    with Soak([running], save_dir) as soak:
        result = running.wait(3600)
    for use in soak.of_process(0):
        ...
    soak.check()

A look costs the training nothing. Linux only: it reads /proc.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esrl_fairseq.monitoring.record import FILE as RECORD

EVERY = 0.5
"""Seconds between two looks."""
WARM = 0.3
"""Share of the updates before which nothing is compared."""
MEMORY = 4.0
"""MiB that may come in 1,000 updates: the allocator's noise."""
SLOWER = 1.25
"""Processor time of an update in the last third, over that in the one before."""
BEGIN, LINE = 100_000, 1_000
"""Bytes of the training record: at its begin, and of an update."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Use:
    """At one look."""

    update: int
    memory: float
    """Resident, in MiB."""
    files: int
    """Open ones, and sockets and the like."""
    threads: int
    children: int
    seconds: float
    """Of the processors, since the process began."""


class Soak:
    """Looks at trainings while they run, in a thread of its own.

    Args:
        commands: `command_lines.Running`, one a rank; the first one's log tells the update.
        save_dir: whose files are looked at, too.
    """

    def __init__(self, commands, save_dir):
        self.commands, self.save_dir = commands, Path(save_dir)
        self.uses = [[] for _ in commands]
        self.disk = []  # (update, {name: bytes}) of the files there
        self.update = self.read = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def of_process(self, number):
        """What was found, from `WARM` on: list of `Use`."""
        last = self.uses[number][-1].update
        return [use for use in self.uses[number] if use.update >= WARM * last]

    def growth(self, number):
        """MiB in 1,000 updates: slope of a straight line, and from the median of the first half
        of the looks to that of the second."""
        uses = self.of_process(number)
        updates, memory = (
            np.array([getattr(u, key) for u in uses]) for key in ("update", "memory")
        )
        half = len(uses) // 2
        step = np.median(memory[half:]) - np.median(memory[:half])
        between = np.median(updates[half:]) - np.median(updates[:half])
        return 1000 * np.polyfit(updates, memory, 1)[0], 1000 * step / between

    def slower(self, number):
        """Processor time of an update in the last third of the updates, over the one before it."""
        uses = self.uses[number]
        thirds = np.interp(
            np.array([1, 2, 3]) / 3 * uses[-1].update,
            [use.update for use in uses],
            [use.seconds for use in uses],
        )
        return (thirds[2] - thirds[1]) / (thirds[1] - thirds[0])

    def figures(self):
        """One line a process, for reports."""
        for number, uses in enumerate(self.uses):
            late, slope, step = self.of_process(number), *self.growth(number)
            tenth = max(len(late) // 10, 1)
            memory = [np.median([u.memory for u in part]) for part in (late[:tenth], late[-tenth:])]
            yield (
                f"process {number}: {uses[-1].update} updates, {len(uses)} looks; memory "
                f"{memory[0]:.1f} -> {memory[1]:.1f} MiB, {slope:+.2f} and {step:+.2f} "
                f"in 1,000 updates; files {late[0].files} -> {late[-1].files}, threads "
                f"{late[0].threads} -> {late[-1].threads}, children {late[-1].children}; "
                f"processor {uses[-1].seconds / uses[-1].update * 1000:.0f} ms an update, last "
                f"third x {self.slower(number):.3f}"
            )

    def check(self):
        """Refuse what grows or slows down."""
        for number in range(len(self.uses)):
            uses = self.of_process(number)
            assert len(uses) >= 20, "too few looks to tell anything"
            assert max(self.growth(number)) < MEMORY, list(self.figures())
            assert self.slower(number) < SLOWER, list(self.figures())
            half = len(uses) // 2
            for name in ("files", "threads", "children"):
                early, late = (  # while it saves, a few more are open
                    np.median([getattr(use, name) for use in part])
                    for part in (uses[:half], uses[half:])
                )
                assert late <= early, (name, early, late)
        half = len(self.disk) // 2
        early, late = (
            set().union(*(files for _, files in part))
            for part in (self.disk[:half], self.disk[half:])
        )
        kinds = [{name.rstrip("0123456789") for name in _plain(names)} for names in (early, late)]
        assert kinds[1] <= kinds[0], kinds
        for update, files in self.disk:  # the record alone may grow, by lines
            assert files.pop(RECORD, 0) <= BEGIN + LINE * update, "the record grows"
        sizes = [[sum(files.values()) for _, files in part] for part in
                 (self.disk[half // 2 : half], self.disk[half:])]  # fmt: skip
        # At some looks a file is there twice, as a new one takes its place.
        assert np.median(sizes[1]) <= 1.1 * np.median(sizes[0]), "the folder grows"

    def _look(self):
        while not self.over.wait(EVERY):
            self._read_log()
            for uses, command in zip(self.uses, self.commands):
                use = _use(command.pid, self.update)
                if use is not None and self.update:
                    uses.append(use)
            if self.update:
                self.disk.append((self.update, _sizes(self.save_dir)))

    def _read_log(self):
        """The update, from what has been written since the last look."""
        path = self.commands[0].streams[1]
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self.read)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.read += whole
        self.update += text[:whole].count(b"| train_inner |")


def _plain(names):
    """Names without the numbers of updates in them; temporary files come and go."""
    lasting = [name for name in names if not name.endswith(".partial")]
    return {"".join(char for char in name if not char.isdigit()) for name in lasting}


def _sizes(folder):
    found = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                found[path.name] = path.stat().st_size
        except OSError:  # it was moved in between
            pass
    return found


def _use(pid, update):
    """None once it is gone."""
    process = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        if "VmRSS" not in status:
            return None
        stat = (process / "stat").read_text().rpartition(")")[2].split()
        children = (process / f"task/{pid}/children").read_text().split()
        files = len(os.listdir(process / "fd"))
    except OSError:
        return None
    return Use(
        update,
        int(status["VmRSS"].split()[0]) / 1024,
        files,
        int(status["Threads"]),
        len(children),
        (int(stat[11]) + int(stat[12])) / TICKS,
    )
