"""What RL remembers between updates: reward baseline, KL weight, capability stores, what an epoch's
dynamic sampling compares inputs with (quantile reference and mean variance of the rewards), and
samples that further updates are made from.

It belongs to the checkpoint (docs/method.md 7). Within an update it is only read; what the update
showed is kept aside and committed when the optimizer has stepped, from all ranks at once. So a
baseline never sees its own rewards, and several batches an update equal one large batch.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esrl_fairseq.core.baselines import KINDS, Baseline, FifoBaseline
from esrl_fairseq.core.expectations import Inputs, known_inputs, offsets
from esrl_fairseq.core.kl import adapted_weight
from esrl_fairseq.core.schedules import cdf_reference, mean_variance, quantile, shrunk_variance
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.capability import RECORD, CapabilityStore, Records
from esrl_fairseq.state.ranks import from_all_ranks, own_rank
from esrl_fairseq.state.replay import Replay

logger = logging.getLogger(__name__)


@dataclass
class Visit:
    """What one batch showed of its inputs.

    Attributes:
        ids: int64 ``[inputs]`` sample ids of the visited inputs.
        records: ``[inputs]`` of :data:`capability.RECORD`, the epoch left open.
        rewards: float32, what the baseline gets: every draw's reward, duplicates included.
        kl: sum of the same draws' log-ratios to the frozen model, 0 without one.
    """

    ids: NDArray[np.int64]
    records: Records
    rewards: NDArray[np.float32]
    kl: float = 0.0


@dataclass
class KLState:
    """The KL penalty's weight λ, and which model it is measured from.

    Attributes:
        weight: λ of the current update; 0 where there is no penalty.
        target: nats a sequence that λ is adapted to; None keeps λ.
        reference: fingerprint of the frozen model; empty before it is loaded.
    """

    weight: float = 0.0
    target: float | None = None
    reference: str = ""

    def measure_from(self, fingerprint: str) -> None:
        """The frozen model was loaded: it must be the one that the run began with.

        Raises:
            EsrlError: the checkpoint that was resumed from knows another one.
        """
        if self.reference not in ("", fingerprint):
            raise EsrlError(
                "the frozen model of --kl-weight is not the one that this run began with: give "
                "--kl-reference the file with that one, or start anew with --restore-file "
                "CHECKPOINT --reset-dataloader --reset-optimizer --reset-lr-scheduler "
                "--reset-meters"
            )
        self.reference = fingerprint

    def end_update(self, kl: float) -> None:
        """Adapt λ to the mean log-ratio of an update's draws, over all ranks."""
        if self.target is not None:
            self.weight = adapted_weight(self.weight, kl, self.target)

    def restore(self, weight: float, reference: str) -> None:
        """Continue from a checkpoint: with its λ if λ is adapted; a fixed one is as it was given.

        Raises:
            EsrlError: λ is not what a checkpoint keeps.
        """
        if not reference:  # it was trained without a penalty
            return
        self.reference = reference
        if self.target is not None:
            if not 0 < weight < math.inf:
                raise _unreadable("KL weight", f"it is {weight!r}")
            self.weight = weight


def gather_visits(visits: list[Visit]) -> list[Visit]:
    """The visits of all ranks, rank by rank; every rank must call it."""
    return [visit for own in from_all_ranks(visits) for visit in own]


class RLState:
    """Reward baseline, KL weight, capability stores and kept samples of a run.

    Args:
        store_dir: folder for the store files; ``None`` keeps them in memory. Only rank 0 has
            files, the others hold the same records in memory.
    """

    def __init__(self, store_dir: str | None):
        self.store_dir = store_dir if own_rank() == 0 else None
        self.baseline: Baseline = FifoBaseline(1)
        self.kl = KLState()
        self.replay = Replay()
        self.stores: dict[int, CapabilityStore] = {}
        self.shard = 0
        self.epoch = 1
        self.reference: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.mean_variance = math.nan
        self.inputs = Inputs()
        self.reference_epoch = 0  # of these three
        self._pending: list[Visit] = []
        self._visits: list[Visit] | None = None  # of all ranks, once gathered
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
        """Refresh what is an epoch's, unless a checkpoint already brought this epoch's.

        That is what inputs are compared with: quantile reference, mean and variances of rewards.
        """
        self.epoch = epoch
        self.replay.begin_epoch(epoch)
        if epoch == self.reference_epoch:
            return
        self.reference = cdf_reference(self._all("capability"))
        samples = self._all("samples")
        self.mean_variance = mean_variance(self._all("reward_std"), samples)
        self.inputs = known_inputs(self._all("reward_mean"), samples, self.mean_variance)
        self.reference_epoch = epoch

    def _all(self, field: str) -> NDArray[Any]:
        """A field of the records of all shards, in an order that resuming does not change."""
        shards = {shard: _records(snapshot) for shard, snapshot in self._snapshots.items()}
        shards.update({shard: store.records for shard, store in self.stores.items()})
        return np.concatenate([[], *(shards[shard][field] for shard in sorted(shards))])

    def quantiles(self, ids: Tensor) -> NDArray[np.float64]:
        """u_i of ``ids`` [inputs], NaN for inputs not yet known."""
        return quantile(self.store.capability(ids.cpu().numpy()), self.reference)

    def variances(self, ids: Tensor) -> NDArray[np.float64]:
        """σ̂_i² of ``ids`` [inputs], NaN for inputs not yet known."""
        records = self.store.records[ids.cpu().numpy()]
        return shrunk_variance(records["reward_std"], records["samples"], self.mean_variance)

    def begin_update(self) -> None:
        """Before an update's batches: forget those of one that fairseq gave up."""
        self._pending, self._visits = [], None
        self.replay.begin_update()

    def offsets(self, ids: Tensor) -> NDArray[np.float32]:
        """o_i of ``ids`` [inputs], 0 for inputs not yet known."""
        records = self.store.records[ids.cpu().numpy()]
        return offsets(records["reward_mean"], records["samples"], self.inputs)

    def add(self, visit: Visit) -> None:
        """Keep a batch's visit until the update is over."""
        self._pending.append(visit)

    def gather(self) -> None:
        """Before the optimizer steps: learn what all ranks showed. A collective.

        Later nothing waits for another rank: one that is lost leaves no half update.
        """
        self._visits = gather_visits(self._pending)
        self.replay.gather()

    def commit(self) -> None:
        """The update is over: push its rewards, adapt λ and write its records."""
        if self._visits is None:
            self.gather()
        visits = self._visits or []
        if visits:
            rewards = np.concatenate([visit.rewards for visit in visits])
            self.baseline.push(rewards)
            if len(rewards):
                self.kl.end_update(math.fsum(visit.kl for visit in visits) / len(rewards))
        for visit in visits:
            visit.records["epoch"] = self.epoch
            self.store.write(visit.ids, visit.records)
        self._pending, self._visits = [], None
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
            "kl": {"weight": self.kl.weight, "reference": self.kl.reference},
            "reference": torch.from_numpy(self.reference.copy()),
            "mean_variance": self.mean_variance,
            "inputs": asdict(self.inputs),
            "reference_epoch": self.reference_epoch,
            "stores": stores,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; stores are filled when their shard is opened.

        Raises:
            EsrlError: the state of the reward baseline or of the KL penalty cannot be read.
        """
        # Checkpoints of versions that had no other kind hold the queue itself.
        old = {"kind": FifoBaseline.kind, "state": {"rewards": state.get("rewards")}}
        restore_baseline(self.baseline, state.get("baseline", old))
        if "kl" in state:  # earlier versions had no penalty
            self.kl.restore(**state["kl"])
        self.reference = state["reference"].numpy().copy()
        # Checkpoints from before --elimination-ratio auto have none: K samples until next epoch.
        self.mean_variance = state.get("mean_variance", math.nan)
        self.inputs = Inputs(**state.get("inputs", {}))
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
        raise _unreadable("reward baseline", f"its kind {kind!r} is none of {', '.join(KINDS)}")
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
        raise _unreadable("reward baseline", f"there are no tensors of kind {kind!r}")
    try:
        baseline.restore({name: tensor.numpy() for name, tensor in arrays.items()})
    except ValueError as error:
        raise _unreadable("reward baseline", str(error)) from error


def _unreadable(part: str, why: str) -> EsrlError:
    return EsrlError(
        f"the checkpoint's {part} cannot be read ({why}): choose another checkpoint, or start anew "
        "with --restore-file CHECKPOINT --reset-dataloader --reset-optimizer --reset-lr-scheduler "
        "--reset-meters"
    )


def _records(snapshot: dict[str, Any]) -> Records:
    return np.frombuffer(snapshot["records"].numpy(), dtype=RECORD)
