"""Steps that may fail: each failure and each warning is a finding, and the next step is taken."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from esrl_fairseq.checks.models import what_failed
from esrl_fairseq.doctor.findings import OK, WARNING, WRONG, Finding
from esrl_fairseq.errors import EsrlError

T = TypeVar("T")
OURS = ("fairseq", "esrl_fairseq")
"""Whose warnings count."""
TOLD_BETTER = ("have invalid sizes and will be skipped",)
"""Warnings that findings of our own take the place of."""


class Road(logging.Handler):
    """What is found on the way; a handler of logs, since warnings are findings.

    Attributes:
        step_name: what is looked at now.
        failed: names of steps that failed.
        deaf: whether warnings are of no interest, since nobody gave what is tried.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.findings: list[Finding] = []
        self.step_name = ""
        self.failed: set[str] = set()
        self.deaf = False

    def add(self, what: str, level: str, says: str, mend: str = "") -> None:
        """A finding; the same words count once."""
        says = " ".join(says.split())
        if level == WRONG:
            self.failed.add(what)
        if says and says not in {finding.says for finding in self.findings}:
            self.findings.append(Finding(what, level, says, mend))

    def step(self, what: str, call: Callable[[], T]) -> T | None:
        """What ``call`` gives; None where it fails, which is then a finding."""
        self.step_name, said = what, io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return call()
        except KeyboardInterrupt:
            raise
        except (EsrlError, SystemExit) as error:
            # argparse writes what is wrong, and ends with a number.
            text = str(error) if isinstance(error.code, str) else said.getvalue()
            self.add(what, WRONG, text.partition("error: ")[2] or text)
        except BaseException as error:  # whatever fairseq makes of what is given
            self.add(what, WRONG, what_failed(as_exception(error)))
        return None

    def each(self, what: str, checks: Iterator[Callable[[], Any]]) -> bool:
        """Make all checks; whether all pass."""
        before = what in self.failed
        self.failed.discard(what)
        while (check := self.step(what, lambda: next(checks, None))) is not None:
            self.step(what, check)
        passed = what not in self.failed
        if before:
            self.failed.add(what)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """A warning is a finding of the step that it comes in."""
        text = record.getMessage()
        told = self.deaf or any(part in text for part in TOLD_BETTER)
        if record.name.split(".")[0] in OURS and not told:
            self.add(self.step_name, WRONG if record.levelno > logging.WARNING else WARNING, text)

    def fits(self, what: str, says: str) -> None:
        """Say that a thing is as it should be, unless something was said against it."""
        if what not in {f.what for f in self.findings if f.level != OK}:
            self.add(what, OK, says)


def as_exception(error: BaseException) -> Exception:
    """The same, in the kind that sentences are made of."""
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


@contextlib.contextmanager
def alone(road: Road) -> Iterator[None]:
    """Logs go to ``road`` alone; they and the command line are afterwards as they were."""
    root, argv = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [road]
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
