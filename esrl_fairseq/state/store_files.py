"""Files beside the checkpoints, with what the capability store of a large data set holds.

Each file has the records that changed between two checkpoints. It is never changed again, so that
all checkpoints which need it share it: a checkpoint lists the names, lengths and checksums of the
files that give its store, read one after the other. A file that no checkpoint names any more is
removed when a later checkpoint is made, that is, after all earlier ones were completed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple, Protocol

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

FOLDER = "capability"
"""Inside ``--save-dir`` or ``--capability-store``."""
LOCK = "capability.lock"
NAMES = re.compile(rb"[0-9a-f]{8}\.\d+\.[0-9a-f]{32}\.records")


class SavedFile(NamedTuple):
    """What a checkpoint knows of a file: it is this very one, and whole."""

    name: str
    bytes: int
    crc: int


class Readable(Protocol):
    """What a file's content is read from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""


class Damaged(Exception):
    """A file is not there, or not what was written."""


class StoreFiles:
    """The files of a run, and the lock by which no other run uses the same folder.

    Args:
        parent: ``--capability-store`` or ``--save-dir``; made if needed.
        save_dir: the folder of the run's checkpoints.

    Raises:
        EsrlError: another run has the folder, or nothing can be written there.
    """

    def __init__(self, parent: str, save_dir: str):
        self.path = os.path.join(parent, FOLDER)
        self.save_dir = save_dir
        # Runs that were given one folder, one after the other, do not remove each other's files.
        where = os.path.relpath(os.path.abspath(save_dir), os.path.abspath(parent))
        self.run = hashlib.sha256(where.encode()).hexdigest()[:8]
        self._named: dict[tuple[str, int, int], set[bytes]] = {}
        try:
            os.makedirs(parent, exist_ok=True)
            self._lock = lock(os.path.join(parent, LOCK))
        except OSError as error:
            raise EsrlError(
                f"the capability store cannot be kept in {parent} ({error.strerror}): name another "
                "place with --save-dir or --capability-store"
            ) from error

    def have(self, files: Iterable[SavedFile]) -> bool:
        """Whether all files are there still, of this run and in their full length."""
        with suppress(OSError):
            return all(
                os.path.getsize(os.path.join(self.path, file.name)) == file.bytes
                and file.name.startswith(self.run)
                for file in files
            )
        return False

    def write(self, shard: int, content: Iterable[bytes]) -> SavedFile:
        """A new file, safely on the disk.

        Raises:
            OSError: it cannot be written; what there was of it is gone.
        """
        name = f"{self.run}.{shard}.{uuid.uuid4().hex}.records"
        path, size, crc = os.path.join(self.path, name), 0, 0
        try:
            os.makedirs(self.path, exist_ok=True)
            with open(path, "xb") as file:
                for part in content:
                    file.write(part)
                    size, crc = size + len(part), zlib.crc32(part, crc)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path)
        except OSError:
            with suppress(OSError):
                os.remove(path)
            raise
        return SavedFile(name, size, crc)

    def remove_unneeded(self, needed: Iterable[SavedFile]) -> None:
        """Remove this run's files that neither a checkpoint nor ``needed`` names.

        Where a checkpoint cannot be read, nothing is removed.
        """
        with suppress(OSError):  # no folder yet; or nothing can be removed, which does no harm
            old = {name for name in os.listdir(self.path) if name.startswith(self.run)}
            old -= {file.name for file in needed}
            if old:
                named = self._named_by_checkpoints()
                for name in old:
                    if named is not None and name.encode() not in named:
                        os.remove(os.path.join(self.path, name))

    def _named_by_checkpoints(self) -> set[bytes] | None:
        """Names of files in all checkpoints of the run; None if one cannot be read."""
        found = {}
        for entry in os.scandir(self.save_dir):
            if not entry.name.endswith(".pt"):
                continue
            about = entry.stat()
            key = (entry.name, about.st_mtime_ns, about.st_size)
            try:
                found[key] = self._named[key] if key in self._named else names_in(entry.path)
            except (OSError, zipfile.BadZipFile) as error:
                logger.warning(
                    "%s cannot be read (%s), so that no file in %s is removed: move it away",
                    *(entry.path, error, self.path),
                )
                return None
        self._named = found
        return set().union(*found.values())


def names_in(checkpoint: str) -> set[bytes]:
    """Names of store files in a checkpoint; its pickle is searched, not executed.

    Raises:
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    with zipfile.ZipFile(checkpoint) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return {found for name in pickles for found in NAMES.findall(archive.read(name))}


@contextmanager
def opened(file: SavedFile, folders: list[str]) -> Iterator[tuple[Readable, bool]]:
    """A file to be read, and whether it lies in the first of ``folders``.

    Raises:
        Damaged: it is not there or has another length, or, once it is read, another content.
    """
    paths = [os.path.join(folder, FOLDER, file.name) for folder in dict.fromkeys(folders)]
    there = [path for path in paths if os.path.exists(path)]
    if not there or not NAMES.fullmatch(file.name.encode()):
        raise Damaged(f"there is no {' or '.join(paths)}")
    try:
        with open(there[0], "rb") as raw:
            if os.fstat(raw.fileno()).st_size != file.bytes:
                raise Damaged(f"{there[0]} has not the {file.bytes} bytes that it had")
            content = _Checked(raw)
            yield content, there[0] == paths[0]
            if content.crc != file.crc:
                raise Damaged(f"{there[0]} is not what was written")
    except OSError as error:
        raise Damaged(f"{there[0]}: {error.strerror}") from error
    except ValueError as error:  # it ends where none of its records does
        raise Damaged(f"{there[0]} is not what was written") from error


class _Checked:
    """Reads a file and sums up what was read."""

    def __init__(self, file: IO[bytes]):
        self.file, self.crc = file, 0

    def read(self, size: int, /) -> bytes:
        content = self.file.read(size)
        self.crc = zlib.crc32(content, self.crc)
        return content


def lock(path: str) -> IO[bytes]:
    """Lock a file for this process alone, as long as it lives or until it is closed.

    The file is never replaced or removed, so that all processes lock the same one. The lock is of
    the kind that forked data workers do not inherit (they may outlive a killed run). It ends when
    this process closes the file, through whichever object.

    Raises:
        EsrlError: another process has it.
        OSError: it cannot be made.
    """
    file = open(path, "ab")  # noqa: SIM115 (it stays open)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise EsrlError(
                f"another run is using {os.path.dirname(path)} (it holds {path}): wait for its "
                "end, or give each run a --save-dir (and --capability-store) of its own"
            ) from error
        logger.warning("%s cannot be locked (%s): let no other run use it", path, error)
    return file


def sync_folder(path: str) -> None:
    """Have the names in a folder on the disk, too, where the file system can do that."""
    folder = os.open(path, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(folder)
    os.close(folder)
