"""The capability store: an indexed side dataset of each input's last visit (docs/method.md 7).

One file a data shard: a fixed header and one fixed-size record a sample, so access is O(1) and the
file is memory mapped. The header pins format version, number of samples and a fingerprint of the
data; anything that does not fit is refused, never reused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

MAGIC = b"ESRLCAPA"
VERSION = 1
HEADER = struct.Struct("<8sIIQ32s8x")  # magic, version, record bytes, samples, fingerprint
RECORD = np.dtype(
    [
        ("capability", "<f4"),  # in [0, 1]; NaN: never visited, or not measured
        ("reward_mean", "<f4"),
        ("reward_std", "<f4"),
        ("entropy", "<f4"),  # mean token entropy in nats, at temperature 1
        ("samples", "<u4"),
        ("epoch", "<u4"),
    ]
)
UNKNOWN = np.array((np.nan, np.nan, np.nan, np.nan, 0, 0), dtype=RECORD)
Records = NDArray[Any]


def data_fingerprint(dataset: Any, probes: int = 64) -> bytes:
    """SHA-256 over the lengths of all samples and the tokens of some, 32 bytes.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        probes: how many evenly spaced samples to hash in full.
    """
    digest = hashlib.sha256()
    for sizes in (dataset.src_sizes, dataset.tgt_sizes):
        if sizes is not None:
            digest.update(np.asarray(sizes, dtype="<i8").tobytes())
    for index in np.unique(np.linspace(0, len(dataset) - 1, probes).astype(np.int64)):
        sample = dataset[int(index)]
        for side in ("source", "target"):
            if sample[side] is not None:
                digest.update(sample[side].numpy().astype("<i8").tobytes())
    return digest.digest()


class CapabilityStore:
    """Records of one data shard, by sample id.

    Args:
        size: samples in the shard.
        fingerprint: 32 bytes, see :func:`data_fingerprint`.
        path: file to map; ``None`` keeps the records in memory (ranks other than 0).

    An existing file is checked against ``size`` and ``fingerprint`` before anything is written.

    Raises:
        EsrlError: the file is not a store, truncated, of another version or of other data, or
            another run has it.
    """

    def __init__(self, size: int, fingerprint: bytes, path: str | None = None):
        self.size = size
        self.fingerprint = fingerprint
        self.path = path
        self.records: Records
        if path is None:
            self.records = np.full(size, UNKNOWN)
            return
        if os.path.exists(path):
            check_store_file(path, size, fingerprint)
        else:
            self._create(path)
        self._file = lock_store_file(path)
        self.records = np.memmap(self._file, RECORD, "r+", offset=HEADER.size, shape=(size,))

    def _create(self, path: str) -> None:
        """Write an empty store beside ``path`` and move it there, so no half file can remain."""
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        partial = f"{path}.{os.getpid()}.partial"
        with open(partial, "wb") as f:
            f.write(HEADER.pack(MAGIC, VERSION, RECORD.itemsize, self.size, self.fingerprint))
            np.full(self.size, UNKNOWN).tofile(f)
        os.replace(partial, path)

    def capability(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Known capabilities of ``ids``, NaN where never visited or not measured."""
        return np.array(self.records["capability"][np.asarray(ids)])

    def write(self, ids: ArrayLike, records: Records) -> None:
        """Replace the records of ``ids``."""
        self.records[np.asarray(ids)] = records

    def clear(self) -> None:
        """Forget every visit."""
        self.records[:] = UNKNOWN

    def snapshot(self) -> bytes:
        """All records as bytes, for a checkpoint."""
        return self.records.tobytes()

    def restore(self, fingerprint: bytes, snapshot: bytes) -> None:
        """Replace all records by a checkpoint's.

        Raises:
            EsrlError: the snapshot belongs to other data.
        """
        if fingerprint != self.fingerprint or len(snapshot) != self.size * RECORD.itemsize:
            raise EsrlError(
                "the checkpoint's capability store belongs to other training data; "
                "resume with the data that it was trained on, or start anew with "
                "--restore-file CHECKPOINT --reset-dataloader --reset-optimizer "
                "--reset-lr-scheduler --reset-meters"
            )
        self.records[:] = np.frombuffer(snapshot, dtype=RECORD)


def lock_store_file(path: str) -> IO[bytes]:
    """Open a store's file for this process alone, as long as it lives or until it is closed.

    The lock is of the kind that forked data workers do not inherit (they may outlive a killed run).
    It ends when this process closes the file, through whichever object.

    Raises:
        EsrlError: another process has it.
    """
    file = open(path, "r+b")  # noqa: SIM115 (it stays open)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise EsrlError(
                f"another run is using the capability store {path}: wait for its end, or give each "
                "run a --save-dir (and --capability-store) of its own"
            ) from error
        logger.warning("%s cannot be locked (%s): let no other run use it", path, error)
    return file


def check_store_file(path: str, size: int, fingerprint: bytes) -> None:
    """Refuse a file that is not the store of exactly this data.

    Raises:
        EsrlError: with what is wrong and how to mend it.
    """
    mend = "move it away, or name another place with --capability-store"
    with open(path, "rb") as f:
        head = f.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise EsrlError(f"{path} is not a capability store (or its header is cut off): {mend}")
    _, version, record_bytes, samples, owner = HEADER.unpack(head)
    if version != VERSION or record_bytes != RECORD.itemsize:
        raise EsrlError(
            f"capability store {path} has format version {version}, this program reads "
            f"version {VERSION}: {mend}"
        )
    if samples != size or owner != fingerprint:
        differs = f"{samples} samples, this one has {size}"
        if samples == size:
            differs = f"also of {size} samples, but their lines, order or dictionary are other ones"
        raise EsrlError(f"capability store {path} belongs to another data set ({differs}): {mend}")
    expected = HEADER.size + size * RECORD.itemsize
    if os.path.getsize(path) != expected:
        raise EsrlError(
            f"capability store {path} is truncated or damaged: {os.path.getsize(path)} bytes "
            f"instead of {expected}: {mend}"
        )
