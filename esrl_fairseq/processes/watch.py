"""Whether all ranks go on: each tells the others how far it is, and ends where one does not.

A rank that waits for another in a collective operation cannot be reached by Python, so two threads
do it. One tells the store, in which the ranks found each other, how far this rank is; the other
looks at it. Ranks pass the same places in the same order, so those with the lowest count are the
ones that the others wait for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from esrl_fairseq.processes.connections import Connections

LIMIT = 600
"""Seconds that a rank waits for another, where ``--heartbeat-timeout`` gives none."""
GRACE = 60
"""Seconds that the main thread has to notice that the run ends."""
ANSWER = 8
"""Seconds in which the store has to answer."""
LAST_PART = 10**9
FAILED = "esrl/failed"
SAVING = "saving a checkpoint"
NO_ANSWER = (
    "rank 0, where the ranks' store is, does not answer: it or its machine is gone or stands still"
)


def limit_of(cfg: Any) -> int:
    """Seconds, of fairseq's ``distributed_training``."""
    return cfg.heartbeat_timeout if cfg.heartbeat_timeout > 0 else LIMIT


def of(ranks: list[int], size: int, state: str) -> str:
    """``rank 1 of 4 is …`` or ``ranks 1, 2 of 4 are …``."""
    numbers = ", ".join(map(str, ranks))
    return (
        f"rank {numbers} of {size} is {state}"
        if len(ranks) == 1
        else (f"ranks {numbers} of {size} are {state}")
    )


class Watch:
    """Tells the other ranks of this one, and this one of them.

    Args:
        store: in which the ranks found each other; for the use of threads of its own.
        rank: of this process.
        size: how many there are.
        limit: seconds that a rank may wait.
        connections: to the other ranks.
    """

    def __init__(self, store: Any, rank: int, size: int, limit: float, connections: Connections):
        self.store, self.rank, self.size, self.limit = store, rank, size, limit
        self.connections = connections
        self.interval = min(max(limit / 20, 0.1), 2.0)
        self.place: list[Any] = [0, 0, "starting"]  # steps, parts of the step, in words
        self.since = time.monotonic()  # when it got there
        self.verdict = ""  # why the run ends
        self.ending = False  # the main thread knows
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []
        self.rescue: Callable[[], str] | None = None

    def start(self) -> None:
        """Begin to watch."""
        for work in (self.tell, self.look):
            self.threads.append(threading.Thread(target=work, daemon=True))
            self.threads[-1].start()

    def step(self, words: str) -> None:
        """This rank is at the next step that all ranks take."""
        self.place = [self.place[0] + 1, 0, words]
        self.since = time.monotonic()

    def part(self, last: bool) -> None:
        """It has finished a part of the step, or the last one."""
        step, part, words = self.place
        self.place = [step, LAST_PART if last else part + 1, words]
        self.since = time.monotonic()

    def saving(self) -> None:
        """It does what not all ranks do."""
        self.place = [*self.place[:2], SAVING]
        self.since = time.monotonic()

    def tell(self) -> None:
        """A thread: say where this rank is; hear whether the run has failed."""
        beat = 0
        while not self.over.is_set():
            beat += 1
            try:
                self.store.set(f"esrl/{self.rank}", json.dumps([*self.place, beat]))
                if not self.verdict and self.store.check([FAILED]):
                    self.verdict = self.store.get(FAILED).decode()
            except Exception:
                pass  # it is gone: the rank that had it is missed
            self.over.wait(self.interval)

    def look(self) -> None:
        """A thread: end this process where the run cannot go on."""
        while not self.over.wait(self.interval) and not self.verdict:
            if time.monotonic() - self.since > self.limit:
                found = self.find_missing()
                if time.monotonic() - self.since > self.limit:  # still
                    self.verdict = self.verdict or found
                    self.publish(self.verdict)
        if self.over.is_set():
            return
        # One that has stood still for so long will not notice by itself.
        stands = time.monotonic() - self.since > self.limit
        try:
            self.connections.close()
        except Exception as error:  # whatever torch says: this thread has to go on
            sys.stderr.write(f"the connections cannot be closed ({error})\n")
        began = time.monotonic()
        while not (self.ending or self.over.is_set()):
            patience = 5 if stands else min(self.limit, GRACE)
            if self.place[2] == SAVING:
                patience = self.limit
            if time.monotonic() - began > patience:
                break
            time.sleep(0.05)
        if not (self.ending or self.over.is_set()):
            self.end_now()

    def end_now(self) -> None:
        """End without the main thread, which does something that cannot be interrupted."""
        sys.stderr.write(f"{self.verdict}\n")
        sys.stderr.flush()
        os._exit(1)

    def publish(self, verdict: str) -> None:
        """Let the other ranks know why the run ends."""
        if NO_ANSWER not in verdict:
            within(5, lambda: self.store.compare_set(FAILED, "", verdict))

    def find_missing(self) -> str:
        """Who is behind, or does not answer, after a wait that was too long."""
        waited = f"nothing has gone on for {self.limit:.0f} seconds (--heartbeat-timeout): "
        places, silent = self.read_places()
        if places is None:
            return waited + NO_ANSWER
        if silent:
            return waited + of(silent, self.size, "silent")
        furthest = max(place[:2] for place in places.values())
        missing = [rank for rank, place in sorted(places.items()) if place[:2] < furthest]
        if not missing:
            return f"{waited}all {self.size} ranks are {self.place[2]}"
        return waited + of(missing, self.size, f"still {places[missing[0]][2]}")

    def find_gone(self) -> str:
        """Who has ended, after a connection was lost; empty if nobody is known to."""
        deadline = time.monotonic() + 2 * self.interval + 1
        while not self.verdict and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.verdict:
            return self.verdict
        places, silent = self.read_places()
        if places is None:
            return NO_ANSWER
        return of(silent, self.size, "gone: killed, or its machine is") if silent else ""

    def read_places(self) -> tuple[dict[int, list[Any]] | None, list[int]]:
        """Of each rank, None if the store does not answer; and who does not go on telling it."""
        found: list[dict[int, list[Any]]] = []

        def read() -> None:
            found.append(self.places())
            time.sleep(3 * self.interval + 1)
            found.append(self.places())

        within(6 * self.interval + ANSWER, read)
        if len(found) < 2:
            return None, []
        before, after = found
        return after, [r for r in after if r != self.rank and before[r][3] == after[r][3]]

    def places(self) -> dict[int, list[Any]]:
        """What each rank has told."""
        found = {}
        for rank in range(self.size):
            key = f"esrl/{rank}"
            told = self.store.get(key) if self.store.check([key]) else b'[-1, 0, "starting", 0]'
            found[rank] = json.loads(told)
        return found

    def wait_for_others(self) -> None:
        """Until they have ended, too: the first of them may be saving."""
        deadline = time.monotonic() + self.limit
        others = [f"esrl/ended/{rank}" for rank in range(self.size) if rank != self.rank]

        def wait() -> None:
            while time.monotonic() < deadline and not self.store.check(others):
                time.sleep(0.05)

        within(self.limit, wait)

    def end(self) -> None:
        """This rank is through with the run, for better or worse."""
        self.over.set()
        for thread in self.threads:  # Python may not end while one of them is in torch's code
            thread.join(5)
        if NO_ANSWER not in self.verdict:
            within(5, lambda: self.store.set(f"esrl/ended/{self.rank}", "1"))


def within(seconds: float, work: Callable[[], Any]) -> None:
    """Ask the store, which may be gone, or not answer for ever."""

    def safely() -> None:
        try:
            work()
        except Exception:
            pass  # it is gone, with the rank that had it

    thread = threading.Thread(target=safely, daemon=True)
    thread.start()
    thread.join(seconds)
