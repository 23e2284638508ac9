"""Rewards in processes of their own (``--reward-workers``), for what holds Python's interpreter.

They are copies of one new process, not of the trainer: they have none of its threads, and nothing
of its GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.answers import Scores
from esrl_fairseq.rewards.messages import READY, Question, Raised, Said, Spec

BEGIN = (
    "import json, logging, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "logging.basicConfig(**given.pop('log'), stream=sys.stdout); "  # before any module does
    "from esrl_fairseq.rewards.worker import main; main(**given)"
)
LOG = {
    "format": "%(asctime)s | %(levelname)s | %(name)s | %(message)s",
    "datefmt": "%Y-%m-%d %H:%M:%S",
    "level": "WARNING",
}
"""As fairseq's, but for what is usual."""
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Of the environment: many processes with many threads each would wait for each other."""
LOOK_EVERY = 0.5
"""Seconds between two looks whether a worker that is waited for is still there."""
TO_END, TO_TELL = 1.0, 5.0
"""Seconds that workers have for their end before they are killed, and to tell of the end of one."""
ROUNDING = 1e-5


class WorkersFailed(Exception):
    """There is no answer, for a reason that no single row is to blame for; begins behind the name
    of the reward."""


class RewardRaised(Exception):
    """What a reward raised in a worker; its class has the name of what it was."""


class Workers:
    """So many processes that have the same rewards. Rows are dealt out in order.

    Args:
        number: of processes, 1 or more; they start at once, and are waited for at their first
            answer.
        specs: the rewards.

    Raises:
        EsrlError: a worker could not find the class of a reward.
    """

    def __init__(self, number: int, specs: Sequence[Spec]):
        for spec in specs:
            if spec.module == "__main__":
                raise EsrlError(
                    f"reward {spec.name!r} is of the program itself, which --reward-workers cannot "
                    "import: put it into a module of its own"
                )
        pipes = [multiprocessing.Pipe() for _ in range(number)]
        self.connections = [ours for ours, _ in pipes]
        self.reports, reports = multiprocessing.Pipe(duplex=False)
        descriptors = [theirs.fileno() for _, theirs in pipes]
        self.owner = os.getpid()
        given = {
            "trainer": self.owner,
            "in_main_thread": threading.current_thread() is threading.main_thread(),
            "reports": reports.fileno(),
            "descriptors": descriptors,
        }
        self.parent = subprocess.Popen(
            [sys.executable, "-c", BEGIN, json.dumps({**given, "path": sys.path, "log": LOG})],
            pass_fds=[reports.fileno(), *descriptors],
            stdin=subprocess.DEVNULL,
            env={**dict.fromkeys(ONE_THREAD, "1"), **os.environ},
        )
        for theirs in (reports, *(theirs for _, theirs in pipes)):
            theirs.close()
        self.ended: dict[int, int] = {}
        self.ready = False
        self.compared: set[str] = set()
        atexit.register(self.close)
        for worker in range(number):
            self._send(worker, list(specs))

    def wait(self) -> None:
        """Until they have imported what they need and made the rewards, at their first questions.

        Raises:
            WorkersFailed: one of them has ended.
        """
        if not self.ready:
            for worker in range(len(self.connections)):
                assert self._receive(worker) == READY
            self.ready = True

    def answer(
        self,
        reward: Any,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
        seed: str | None,
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """What `Reward.answer` gives.

        Args:
            reward: the trainer's own, of which only the corpus's counts are asked.

        Raises:
            WorkersFailed: a worker has ended, or the reward looks at more than one row at a time.
            RewardRaised, EsrlError: as the reward raised it.
        """
        given = (reward.name, sources, references, hypotheses, row_input, seed)
        pieces = [
            x for x in np.array_split(np.arange(len(hypotheses)), len(self.connections)) if len(x)
        ]
        found = self._ask([_question(*given, piece.tolist()) for piece in pieces])
        if len(pieces) > 1 and reward.name not in self.compared:
            self.compared.add(reward.name)
            (whole,) = self._ask([_question(*given, range(len(hypotheses)))])
            _compare(found, whole)
        for piece, said in zip(pieces, found):
            if said.scores.shape != piece.shape:  # is then refused
                return said.scores, said.counts
        counts = [said.counts for said in found if said.counts is not None]
        if counts:  # what they are worth is known here alone
            together = np.concatenate(counts)
            return reward.values(together), together
        return np.concatenate([said.scores for said in found]), None

    def _ask(self, questions: Sequence[Question]) -> list[Said]:
        """Each worker answers at most one; all answers are taken before any error is raised."""
        try:
            for worker, question in enumerate(questions):
                self._send(worker, question)
            answers = [self._receive(worker) for worker, _ in enumerate(questions)]
        except BaseException:  # the time is up, say, and answers may be on their way
            self.parent.kill()
            raise
        for answer in answers:
            if isinstance(answer, Raised):
                raise _error(answer)
        return answers

    def _send(self, worker: int, message: Any) -> None:
        try:
            self.connections[worker].send(message)
        except OSError as error:
            raise self._lost(worker) from error

    def _receive(self, worker: int) -> Any:
        connection = self.connections[worker]
        try:
            while not connection.poll(LOOK_EVERY):
                self._look()
                if worker in self.ended and not connection.poll(0):
                    raise self._lost(worker)
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(worker) from error

    def _look(self, seconds: float = 0) -> None:
        """At which workers have ended, and how."""
        with contextlib.suppress(EOFError, OSError):
            while self.reports.poll(seconds):
                worker, code = self.reports.recv()
                self.ended[worker] = code
                seconds = 0
        code = self.parent.poll()
        if code is not None:
            self.ended = dict.fromkeys(range(len(self.connections)), code) | self.ended

    def _lost(self, worker: int) -> WorkersFailed:
        self._look(TO_TELL)
        code = self.ended.get(worker)
        how = "has closed its connection" if code is None else f"has ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            how += " (is there enough memory?)" if code == -signal.SIGKILL else ""
        return WorkersFailed(f"has lost a process of --reward-workers, which {how}")

    def close(self) -> None:
        """End the processes, whatever they do."""
        if os.getpid() != self.owner:  # a copy of the trainer
            return
        for connection in self.connections:
            connection.close()
        try:
            self.parent.wait(TO_END)
        except subprocess.TimeoutExpired:
            self.parent.kill()
            self.parent.wait()


def build_workers(
    number: int, reward: Any, options: Mapping[str, Mapping[str, Any]]
) -> Workers | None:
    """So many processes for those of the reward's parts that may be in others; None without any."""
    leaves = [leaf for leaf in reward.leaves if leaf.in_workers]
    if not (number and leaves):
        return None
    specs = [
        Spec(leaf.name, dict(options.get(leaf.name, {})), type(leaf).__module__) for leaf in leaves
    ]
    return Workers(number, specs)


def _question(
    name: str,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    row_input: Sequence[int],
    seed: str | None,
    rows: Sequence[int],
) -> Question:
    """Some rows of a batch, with the inputs that these have."""
    inputs: dict[int, int] = {}
    places = [inputs.setdefault(row_input[row], len(inputs)) for row in rows]
    return Question(
        name,
        [sources[i] for i in inputs],
        [tuple(references[i]) for i in inputs],
        [hypotheses[row] for row in rows],
        places,
        seed,
    )


def _compare(found: Sequence[Said], whole: Said) -> None:
    """Refuse a reward of which pieces of a batch say something else than the batch."""
    pieces: list[Any] = [x.scores if x.counts is None else x.counts for x in (*found, whole)]
    *_, expected = pieces
    together = np.concatenate(pieces[:-1])
    # Shapes that are wrong and numbers that are none are refused later.
    if together.shape == expected.shape and not np.allclose(
        together, expected, ROUNDING, ROUNDING, equal_nan=True
    ):
        raise WorkersFailed(
            "says something else of a text when others are asked about beside it, so that rows "
            "cannot be dealt out to several processes (it looks at the whole batch, or draws "
            "random numbers): give --reward-workers 1, or 0"
        )


def _error(raised: Raised) -> BaseException:
    if raised.ours:
        return EsrlError(raised.text)
    error = type(raised.kind, (RewardRaised,), {})(raised.text)
    error.__cause__ = RewardRaised(f"in a process of --reward-workers:\n{raised.trace}")
    return error
