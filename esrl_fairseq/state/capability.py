"""The capability store: what each input's last visit showed (docs/method.md 7).

One a data shard: a record of fixed size for each sample, in memory. A checkpoint holds the whole
store of a small shard. Of a large one it names files that checkpoints share
(:mod:`~esrl_fairseq.state.store_files`): each has the records that changed between two of them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.ranks import from_first_rank, own_rank
from esrl_fairseq.state.store_files import Damaged, Readable, SavedFile, StoreFiles, opened

logger = logging.getLogger(__name__)

RECORD = np.dtype(
    [
        ("capability", "<f4"),  # in [0, 1]; NaN: never visited, or not measured
        ("reward_mean", "<f4"),
        ("reward_std", "<f4"),
        ("samples", "<u2"),  # 0: never visited
        ("epoch", "<u2"),
    ]
)
EARLIER_RECORD = np.dtype(
    [(name, "<f4") for name in ("capability", "reward_mean", "reward_std", "entropy")]
    + [("samples", "<u4"), ("epoch", "<u4")]
)
"""In checkpoints from before there were files; they hold the whole array."""
MOST = np.iinfo(np.uint16).max
"""Samples and epochs beyond count as this many."""
FAST = np.dtype("c16")
"""Of a record's size: NumPy picks numbers ten times as fast as records."""
Records = NDArray[Any]

WHOLE = 1 << 20
"""Samples up to which a checkpoint holds the store itself: 16 MB."""
CHUNK = 1 << 20
"""Samples that are read and written together."""
LONGEST = 2
"""Times the store's own size that its files may have together before it is written anew."""


class CapabilityStore:
    """Records of one data shard, by sample id.

    Args:
        size: samples in the shard.
        fingerprint: of the shard, see :func:`~esrl_fairseq.data.fingerprint.data_fingerprint`.
    """

    def __init__(self, size: int, fingerprint: str):
        self.size = size
        self.fingerprint = fingerprint
        self.records: Records = np.zeros(size, RECORD)
        forget(self.records)
        self.files: list[SavedFile] = []  # in this order they give all records but these:
        self.changed = np.zeros(size, bool)

    def capability(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Known capabilities of ``ids``, NaN where never visited or not measured."""
        return np.array(self.records["capability"][np.asarray(ids)])

    def write(self, ids: ArrayLike, records: Records) -> None:
        """Replace the records of ``ids``."""
        self.records[np.asarray(ids)] = records
        self.changed[np.asarray(ids)] = True

    def check_data(self, size: int, fingerprint: str) -> None:
        """Refuse other data than those that the records are of.

        Raises:
            EsrlError: with how to mend it.
        """
        if size == self.size and fingerprint.startswith(self.fingerprint):
            self.fingerprint = fingerprint  # earlier versions knew its beginning only
            return
        what = f"it had {self.size} samples, this one has {size}"
        if size == self.size:
            what = "as many samples, but of other tokens, order or dictionary"
        raise EsrlError(
            f"the checkpoint's capability store belongs to other training data ({what}): resume "
            "with the data that it was trained on, or start anew with --restore-file CHECKPOINT "
            "--reset-dataloader --reset-optimizer --reset-lr-scheduler --reset-meters"
        )

    def state(self, shard: int, folder: StoreFiles | None) -> dict[str, Any]:
        """For a checkpoint: the names of files, and what is not in them.

        Args:
            folder: where large stores are saved; None: the checkpoint gets all records.
        """
        known = self.records["samples"] > 0
        packed = known
        if folder is not None and self.size > WHOLE:
            packed = self._save(shard, folder, known)
        elif own_rank() and self.size > WHOLE:
            packed = np.zeros(self.size, bool)  # the first rank's are read
        return {
            "samples": self.size,
            "fingerprint": self.fingerprint,
            "files": [list(file) for file in self.files],
            "packed": _tensor(b"".join(pack(self.records, packed)) if packed.any() else b""),
        }

    def _save(self, shard: int, folder: StoreFiles, known: NDArray[Any]) -> NDArray[Any]:
        """Write what no file has; which records that failed for, ``[samples]`` of bool."""
        if not folder.have(self.files):
            logger.warning(
                "files of the capability store in %s are gone, cut off or another run's: all of it "
                "is written anew, and earlier checkpoints may have lost theirs",
                folder.path,
            )
            self.files = []
        rest = self.changed if self.files else known
        together = sum(file.bytes for file in self.files) + packed_bytes(rest)
        try:
            if together > LONGEST * packed_bytes(known):
                self.files = [folder.write(shard, pack(self.records, known))]
            elif rest.any():
                self.files = [*self.files, folder.write(shard, pack(self.records, rest))]
        except OSError as error:
            logger.warning(
                "the capability store cannot be written to %s (%s): the checkpoint itself gets the "
                "%d records that it is about",
                *(folder.path, error.strerror, rest.sum()),
            )
            return rest
        self.changed[:] = False
        return self.changed


def restored(state: dict[str, Any], folders: list[str]) -> CapabilityStore:
    """The store that a checkpoint has :meth:`CapabilityStore.state` of; a collective.

    Files that are missing or damaged are said to be so in a warning; the store is then empty.

    Args:
        folders: where its files may be; those in the first one are shared with further checkpoints.
    """
    if "records" in state:
        return _of_an_earlier_version(state)
    store = CapabilityStore(state["samples"], state["fingerprint"])
    files = [SavedFile(*file) for file in state["files"]]
    if files:
        if own_rank() == 0:
            store.files = _read_files(store, files, folders)
        for start in range(0, store.size, CHUNK):
            part = slice(start, start + CHUNK)
            store.records[part] = from_first_rank(store.records[part])
    if not store.files:
        store.changed = store.records["samples"] > 0
    if len(state["packed"]):
        changed = unpack(store.records, io.BytesIO(state["packed"].numpy()))
        store.changed |= changed
    return store


def _read_files(
    store: CapabilityStore, files: list[SavedFile], folders: list[str]
) -> list[SavedFile]:
    """Fill ``store``; the files, where further checkpoints can share them."""
    try:
        own = True
        for file in files:
            with opened(file, folders) as (content, first):
                unpack(store.records, content)
                own = own and first
        return files if own else []
    except Damaged as error:
        logger.warning(
            "the checkpoint's capability store cannot be read (%s): the visits of its %d inputs so "
            "far are forgotten; to keep them, stop, copy this folder along with the checkpoint, "
            "and resume again",
            *(error, store.size),
        )
        forget(store.records)
        return []


def _of_an_earlier_version(state: dict[str, Any]) -> CapabilityStore:
    """From a checkpoint that holds the array of all records."""
    found = np.frombuffer(state["records"].numpy(), EARLIER_RECORD)
    store = CapabilityStore(len(found), state["fingerprint"])
    for name in RECORD.names or ():
        values = found[name]
        store.records[name] = values if values.dtype.kind == "f" else np.minimum(values, MOST)
    store.changed = store.records["samples"] > 0
    return store


def forget(records: Records) -> None:
    """Make them records of inputs that were never visited."""
    records[:] = 0
    for name in ("capability", "reward_mean", "reward_std"):
        records[name] = np.nan


def pack(records: Records, chosen: NDArray[Any]) -> Iterator[bytes]:
    """The chosen records, as bytes: of each :data:`CHUNK` samples a bit each, then the records."""
    for start in range(0, len(records), CHUNK):
        part = slice(start, start + CHUNK)
        yield np.packbits(chosen[part]).tobytes()
        yield records[part].view(FAST)[chosen[part]].tobytes()


def packed_bytes(chosen: NDArray[Any]) -> int:
    """The length of what :func:`pack` gives."""
    return -(-len(chosen) // 8) + int(np.count_nonzero(chosen)) * RECORD.itemsize


def unpack(records: Records, file: Readable) -> NDArray[Any]:
    """Replace records by packed ones; which ones those were, ``[samples]`` of bool.

    Raises:
        ValueError: the bytes end too early.
    """
    every = np.zeros(len(records), bool)
    for start in range(0, len(records), CHUNK):
        part = slice(start, start + CHUNK)
        count = len(records[part])
        bits = _read(file, -(-count // 8), np.dtype("u1"))
        chosen = np.unpackbits(bits, count=count).astype(bool)
        records[part].view(FAST)[chosen] = _read(file, int(np.count_nonzero(chosen)), FAST)
        every[part] = chosen
    return every


def _read(file: Readable, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    found = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers are left of {count}")
    return found


def _tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
