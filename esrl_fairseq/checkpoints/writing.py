"""The one way in which a checkpoint comes to its place: whole, or not at all.

Each attempt writes a new temporary file in the same folder, has it on the disk, reads it back and
renames it. What bore the name before is there until then.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from typing import IO, Any

import torch

from esrl_fairseq.checkpoints.archive import Damaged, check_archive
from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

PAUSES = [2.5, 2.5]  # seconds before a further attempt, as in fairseq
CRASH = "crash.pt"  # fairseq's, before it raises an error of which nothing may hide the message
TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.partial")
FULL = (errno.ENOSPC, errno.EDQUOT)


def save_checkpoint(state: Any, path: str) -> None:
    """Save what ``torch.save`` can, as one archive with checksums.

    Raises:
        EsrlError: the disk is full, or refuses it in another way; :data:`CRASH` is then left out.
    """
    checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        put(path, lambda file: torch.save(state, file))
    except EsrlError as error:
        if os.path.basename(path) != CRASH:
            raise
        logger.error(error)
    finally:
        torch.serialization.set_crc32_options(checksums)


def copy_checkpoint(source: str, path: str) -> bool:
    """Have the content of one file under a further name, whatever bore that before.

    It is a copy, so that what damages one file leaves the other, or a hard link where the disk has
    no room for a copy.

    Returns:
        True, as fairseq's copying does.
    """
    if os.path.exists(path) and os.path.samefile(source, path):
        return True

    def copy(file: Any) -> None:
        with open(source, "rb") as original:
            shutil.copyfileobj(original, file, 1 << 24)

    try:
        replace(path, copy)
    except (OSError, Damaged) as error:
        if isinstance(error, Damaged) or error.errno not in FULL:
            raise refusal(path, error) from error
        try:
            link(source, path)
        except OSError as other:
            raise refusal(path, error) from other
        logger.warning(
            "the disk of %s is too full for a copy of it: %s is a hard link to it", source, path
        )
    return True


def put(path: str, fill: Callable[[Any], None]) -> None:
    """Write a checkpoint to ``path`` in several attempts.

    Args:
        fill: writes all of it into the file that it is given.

    Raises:
        EsrlError: every attempt failed; ``path`` is as it was.
    """
    for pause in [*PAUSES, None]:
        try:
            return replace(path, fill)
        except (OSError, Damaged) as error:
            if pause is None:
                raise refusal(path, error) from error
            logger.warning("%s could not be saved (%s): it is tried again", path, error)
            time.sleep(pause)


def replace(path: str, fill: Callable[[Any], None]) -> None:
    """One attempt.

    Raises:
        OSError: from the operating system.
        Damaged: what was read back is not what was written.
    """
    temporary = new_name(path)
    try:
        with open(temporary, "xb") as file:
            # As long as it is held, the file is no leftover: see remove_leftovers.
            hold(file)
            writer = Writer(file)
            try:
                fill(writer)
            finally:
                writer.check()
            file.flush()
            os.fsync(file.fileno())
            check_archive(temporary)
            os.replace(temporary, path)
        sync_folder(path)
    except BaseException:
        if os.path.lexists(temporary):
            os.remove(temporary)
        raise


class Writer:
    """A file to ``torch.save``, which loses the operating system's errors.

    After the first error nothing more is written.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """All of ``data``, or nothing after an error."""
        if self.error is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """What the file's does, at the end."""

    def check(self) -> None:
        """Raise the error, if there was any."""
        if self.error is not None:
            raise self.error


def new_name(path: str) -> str:
    """A temporary file's, of no other attempt."""
    return f"{path}.{os.urandom(8).hex()}.partial"


def link(source: str, path: str) -> None:
    """A hard link instead of what bore the name."""
    temporary = new_name(path)
    os.link(source, temporary)
    os.replace(temporary, path)
    sync_folder(path)


def sync_folder(path: str) -> None:
    """Have the names in a file's folder on the disk, where its file system can do so."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(folder)


def check_saving(cfg: Any) -> None:
    """Refuse options of saving that lose checkpoints.

    Args:
        cfg: fairseq's options of checkpoints, of whatever command.

    Raises:
        EsrlError: they are to be written while the training goes on.
    """
    if getattr(cfg, "write_checkpoints_asynchronously", False):
        raise EsrlError(
            "--write-checkpoints-asynchronously (--save-async) is not possible here, because "
            "fairseq then removes older checkpoints before the new one is on the disk, and never "
            "writes checkpoint_last.pt: leave it out"
        )


def begin_saving(trainer: Any) -> None:
    """A training begins, and nothing of it is being saved: tidy up after one that was killed.

    Args:
        trainer: fairseq's.
    """
    cfg = trainer.cfg.checkpoint
    check_saving(cfg)
    if trainer.data_parallel_rank or cfg.no_save or not os.path.isdir(cfg.save_dir):
        return
    remove_leftovers(cfg.save_dir)
    needed = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    free = shutil.disk_usage(cfg.save_dir).free
    if free < needed:
        logger.warning(
            "the disk of --save-dir %s has %.1f MB free, and the parameters alone are %.1f MB: no "
            "checkpoint can be saved before there is room",
            *(cfg.save_dir, free / 1e6, needed / 1e6),
        )


def check_folder(check: Callable[[str], None], folder: str) -> None:
    """fairseq's check that checkpoints can be saved, in one sentence.

    Args:
        check: fairseq's.

    Raises:
        EsrlError: they cannot.
    """
    try:
        check(folder)
    except OSError as error:
        raise EsrlError(
            f"--save-dir {folder} cannot be written to ({error.strerror}): choose another one"
        ) from error


def hold(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; whether it could be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


def remove_leftovers(folder: str) -> None:
    """Remove temporary files that a killed run left in ``folder``; not those of one that lives."""
    for name in sorted(os.listdir(folder)):
        if not TEMPORARY.fullmatch(name):
            continue
        path = os.path.join(folder, name)
        try:
            with open(path, "r+b") as file:  # NFS locks only what can be written
                if not hold(file):
                    continue
                os.remove(path)
        except OSError:  # it is gone, or not ours
            continue
        logger.info("removed %s, which a run left that was killed while it saved", path)


def refusal(path: str, error: Exception) -> EsrlError:
    """The sentence for a checkpoint that could not be saved."""
    why, mend = str(error), "see to it"
    if isinstance(error, OSError):
        why = error.strerror or str(error)
        if error.errno in FULL:
            why, mend = "no space is left on its disk" + room(path), "make room"
    return EsrlError(
        f"{path} cannot be saved: {why}; earlier checkpoints are as they were: {mend}, then the "
        "same command goes on from the last one"
    )


def room(path: str) -> str:
    """How much is free, in brackets."""
    try:
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    except OSError:
        return ""
    return f" ({free / 1e6:,.1f} MB are free)"
