"""The one exception that this package raises for mistakes a user can mend."""

from __future__ import annotations


class EsrlError(SystemExit, ValueError):
    """A user-facing error: one sentence that says what is wrong, where, and how to mend it.

    It is a ``SystemExit`` so that a command line prints the sentence alone (on stderr, exit code 1,
    no traceback), and a ``ValueError`` so that a program catches it like any bad argument
    (``except ValueError`` and ``except Exception`` both do).

    Beware of threads: ``threading`` ignores ``SystemExit``, so a thread has to hand this error to
    the main thread, as ``concurrent.futures`` does.

    Args:
        message: the sentence, not empty (an empty one would make the exit code 0).
    """

    def __init__(self, message: str) -> None:
        if not message:
            raise TypeError("EsrlError needs a message")
        super().__init__(message)
