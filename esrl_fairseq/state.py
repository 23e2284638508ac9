"""What RL remembers between updates: reward baseline, capability stores and their quantile
reference, samples that further updates are made from.

It belongs to the checkpoint (docs/method.md 7). Within an update it is only read; what the update
showed is kept aside and committed when the optimizer has stepped, from all ranks at once. So a
baseline never sees its own rewards, and several batches an update equal one large batch.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esrl_fairseq.capability import RECORD, CapabilityStore, Records
from esrl_fairseq.core.baselines import KINDS, Baseline, FifoBaseline
from esrl_fairseq.core.schedules import cdf_reference, quantile
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.ranks import from_all_ranks, own_rank
from esrl_fairseq.replay import Replay

logger = logging.getLogger(__name__)


@dataclass
class Visit:
    """What one batch showed of its inputs.

    Attributes:
        ids: int64 ``[inputs]`` sample ids of the visited inputs.
        records: ``[inputs]`` of :data:`capability.RECORD`, the epoch left open.
        rewards: float32, what the baseline gets: every draw's reward, duplicates included.
    """

    ids: NDArray[np.int64]
    records: Records
    rewards: NDArray[np.float32]


def gather_visits(visits: list[Visit]) -> list[Visit]:
    """The visits of all ranks, rank by rank; every rank must call it."""
    return [visit for own in from_all_ranks(visits) for visit in own]


class RLState:
    """Reward baseline, capability stores and kept samples of a run.

    Args:
        store_dir: folder for the store files; ``None`` keeps them in memory. Only rank 0 has
            files, the others hold the same records in memory.
    """

    def __init__(self, store_dir: str | None):
        self.store_dir = store_dir if own_rank() == 0 else None
        self.baseline: Baseline = FifoBaseline(1)
        self.replay = Replay()
        self.stores: dict[int, CapabilityStore] = {}
        self.shard = 0
        self.epoch = 1
        self.reference: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.reference_epoch = 0
        self._pending: list[Visit] = []
        self._snapshots: dict[int, dict[str, Any]] = {}  # of shards not opened since the resume

    @property
    def store(self) -> CapabilityStore:
        """The current shard's store."""
        return self.stores[self.shard]

    def open_store(self, shard: int, size: int, fingerprint: bytes) -> None:
        """Make ``shard`` the current one: from the checkpoint if it has it, otherwise empty.

        Raises:
            EsrlError: the file or the checkpoint belongs to other data.
        """
        self.shard = shard
        if shard in self.stores:
            return
        path = self.store_dir and os.path.join(self.store_dir, f"capability.{shard}.store")
        store = CapabilityStore(size, fingerprint, path)
        snapshot = self._snapshots.pop(shard, None)
        if snapshot is None:
            store.clear()  # left by a run that did not reach a checkpoint, or by an earlier one
        else:
            store.restore(
                bytes.fromhex(snapshot["fingerprint"]), snapshot["records"].numpy().tobytes()
            )
        self.stores[shard] = store

    def begin_epoch(self, epoch: int) -> None:
        """Refresh what is an epoch's, unless a checkpoint already brought this epoch's."""
        self.epoch = epoch
        self.replay.begin_epoch(epoch)
        if epoch != self.reference_epoch:
            known = [store.records["capability"] for store in self.stores.values()]
            known += [_records(s)["capability"] for s in self._snapshots.values()]
            self.reference = cdf_reference(np.concatenate(known) if known else [])
            self.reference_epoch = epoch

    def quantiles(self, ids: Tensor) -> NDArray[np.float64]:
        """u_i of ``ids`` [inputs], NaN for inputs not yet known."""
        return quantile(self.store.capability(ids.cpu().numpy()), self.reference)

    def add(self, visit: Visit) -> None:
        """Keep a batch's visit until the update is over."""
        self._pending.append(visit)

    def commit(self) -> None:
        """The update is over: push its rewards, write its records. A collective."""
        visits = gather_visits(self._pending)
        if visits:
            self.baseline.push(np.concatenate([visit.rewards for visit in visits]))
        for visit in visits:
            visit.records["epoch"] = self.epoch
            self.store.write(visit.ids, visit.records)
        self._pending = []
        self.replay.commit()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so the safe loader reads it."""
        stores = dict(self._snapshots)
        for shard, store in self.stores.items():
            records = torch.frombuffer(bytearray(store.snapshot()), dtype=torch.uint8)
            stores[shard] = {"fingerprint": store.fingerprint.hex(), "records": records}
        return {
            "baseline": {
                "kind": self.baseline.kind,
                "state": {name: torch.from_numpy(x) for name, x in self.baseline.state().items()},
            },
            "reference": torch.from_numpy(self.reference.copy()),
            "reference_epoch": self.reference_epoch,
            "stores": stores,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; stores are filled when their shard is opened.

        Raises:
            EsrlError: the state of the reward baseline cannot be read.
        """
        # Checkpoints of versions that had no other kind hold the queue itself.
        old = {"kind": FifoBaseline.kind, "state": {"rewards": state.get("rewards")}}
        restore_baseline(self.baseline, state.get("baseline", old))
        self.reference = state["reference"].numpy().copy()
        self.reference_epoch = state["reference_epoch"]
        if "replay" in state:  # not in checkpoints of versions that made one update only
            self.replay.load_state_dict(state["replay"])
        self._snapshots = dict(state["stores"])
        self.stores = {}


def restore_baseline(baseline: Baseline, saved: Any) -> None:
    """Continue ``baseline`` from a checkpoint; one of another kind begins anew, with a warning.

    Raises:
        EsrlError: ``saved`` is not what :meth:`RLState.state_dict` keeps of a baseline.
    """
    kind = saved.get("kind") if isinstance(saved, dict) else None
    if kind not in KINDS:
        raise _unreadable(f"its kind {kind!r} is none of {', '.join(KINDS)}")
    if kind != baseline.kind:
        logger.warning(
            "the checkpoint was trained with --reward-baseline %s, this run has %s, which begins "
            "without the rewards seen so far",
            kind,
            baseline.kind,
        )
        return
    arrays = saved.get("state")
    if not isinstance(arrays, dict) or not all(map(torch.is_tensor, arrays.values())):
        raise _unreadable(f"there are no tensors of kind {kind!r}")
    try:
        baseline.restore({name: tensor.numpy() for name, tensor in arrays.items()})
    except ValueError as error:
        raise _unreadable(str(error)) from error


def _unreadable(why: str) -> EsrlError:
    return EsrlError(
        f"the checkpoint's reward baseline cannot be read ({why}): choose another checkpoint, or "
        "start anew with --restore-file CHECKPOINT --reset-dataloader --reset-optimizer "
        "--reset-lr-scheduler --reset-meters"
    )


def _records(snapshot: dict[str, Any]) -> Records:
    return np.frombuffer(snapshot["records"].numpy().tobytes(), dtype=RECORD)
