"""What RL remembers between updates: reward baseline, KL weight, capability stores, what an epoch's
dynamic sampling compares inputs with (quantile reference and mean variance of the rewards), and
samples that further updates are made from.

It belongs to the checkpoint (docs/method.md 7). Within an update it is only read; what the update
showed is kept aside and committed when the optimizer has stepped, from all ranks at once. So a
baseline never sees its own rewards, and several batches an update equal one large batch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from esrl_fairseq.core.baselines import Baseline, FifoBaseline
from esrl_fairseq.core.expectations import Inputs, known_inputs, offsets
from esrl_fairseq.core.schedules import cdf_reference, mean_variance, quantile, shrunk_variance
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.capability import MOST, RECORD, CapabilityStore, Records, restored
from esrl_fairseq.state.corpus import CorpusCounts
from esrl_fairseq.state.kl_state import KLState
from esrl_fairseq.state.ranks import from_all_ranks, from_first_rank, own_rank
from esrl_fairseq.state.reading import restore_baseline, unreadable
from esrl_fairseq.state.replay import Replay
from esrl_fairseq.state.store_files import StoreFiles

ENOUGH = 1 << 20
"""Inputs whose means, variances and quantiles tell those of all, to a thousandth."""


@dataclass
class Visit:
    """What one batch showed of its inputs.

    Attributes:
        ids: int64 ``[inputs]`` sample ids of the visited inputs.
        records: ``[inputs]`` of :data:`capability.RECORD`, the epoch left open.
        rewards: float32, what the baseline gets: every draw's reward, duplicates included.
        kl: sum of the same draws' log-ratios to the frozen model, 0 without one.
        counts: of rewards that follow a corpus's, see :func:`counts_of_inputs`.
    """

    ids: NDArray[np.int64]
    records: Records
    rewards: NDArray[np.float32]
    kl: float = 0.0
    counts: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def gather_visits(visits: list[Visit]) -> list[Visit]:
    """The visits of all ranks, rank by rank; every rank must call it."""
    return [visit for own in from_all_ranks(visits) for visit in own]


class RLState:
    """Reward baseline, KL weight, capability stores and kept samples of a run.

    Args:
        save_dir: folder of the run's checkpoints; None where there are none, or where they are to
            hold all.
        store_dir: folder for the files of large capability stores; None: ``save_dir``. Only the
            first rank writes there, the others hold the same records in memory.

    Attributes:
        resumed_from: folder of the checkpoint that the run starts from.
    """

    def __init__(self, save_dir: str | None, store_dir: str | None = None):
        self.save_dir = save_dir
        self.store_dir = store_dir
        self.resumed_from = ""
        self.files: StoreFiles | None = None
        self.baseline: Baseline = FifoBaseline(1)
        self.kl = KLState()
        self.replay = Replay()
        self.corpus = CorpusCounts()
        self.stores: dict[int, CapabilityStore] = {}
        self.shard = -1  # none is open
        self.epoch = 1
        self.reference: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.mean_variance = math.nan
        self.inputs = Inputs()
        self.reference_epoch = 0  # of these three
        self._pending: list[Visit] = []
        self._visits: list[Visit] | None = None  # of all ranks, once gathered

    @property
    def store(self) -> CapabilityStore:
        """The current shard's store."""
        return self.stores[self.shard]

    def open_store(self, shard: int, size: int, fingerprint: str) -> None:
        """Make ``shard`` the current one: from the checkpoint if it has it, otherwise empty.

        Raises:
            EsrlError: the checkpoint belongs to other data, another run has the folder of the
                store, or nothing can be written there.
        """
        if shard in self.stores:
            self.stores[shard].check_data(size, fingerprint)
        if self.shard < 0 and self.save_dir:
            self._take_folder(self.store_dir or self.save_dir, self.save_dir)
        if shard not in self.stores:
            self.stores[shard] = CapabilityStore(size, fingerprint)
        self.shard = shard

    def _take_folder(self, parent: str, save_dir: str) -> None:
        """The first rank takes it, and if it cannot, all ranks end with its sentence."""
        refusal = ""
        if own_rank() == 0 and self.files is None:
            try:
                self.files = StoreFiles(parent, save_dir)
            except EsrlError as error:
                refusal = str(error)
        refusal = from_first_rank(refusal)
        if refusal:
            raise EsrlError(refusal)

    def begin_epoch(self, epoch: int) -> None:
        """Refresh what is an epoch's, unless a checkpoint already brought this epoch's.

        That is what inputs are compared with: quantile reference, mean and variances of rewards.
        """
        self.epoch = epoch
        self.replay.begin_epoch(epoch)
        if epoch == self.reference_epoch:
            return
        records = self._enough_records()
        samples = records["samples"]
        self.reference = cdf_reference(records["capability"])
        self.mean_variance = mean_variance(records["reward_std"], samples)
        self.inputs = known_inputs(records["reward_mean"], samples, self.mean_variance)
        self.reference_epoch = epoch

    def _enough_records(self) -> Records:
        """All records, or :data:`ENOUGH` drawn ones: always the same in the same epoch."""
        stores = [self.stores[shard] for shard in sorted(self.stores)]
        ends = np.cumsum([0, *(store.size for store in stores)])
        if ends[-1] <= ENOUGH:
            return np.concatenate([np.zeros(0, RECORD), *(store.records for store in stores)])
        # One of each stretch of equal length, in which none is drawn more often than others.
        stretch = np.arange(ENOUGH) + np.random.default_rng(self.epoch).random(ENOUGH)
        drawn = np.minimum(stretch * (ends[-1] / ENOUGH), ends[-1] - 1).astype(np.int64)
        parts = np.split(drawn, np.searchsorted(drawn, ends[1:-1]))
        return np.concatenate([s.records[p - end] for s, p, end in zip(stores, parts, ends)])

    def quantiles(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """u_i of ``ids`` [inputs], NaN for inputs not yet known."""
        return quantile(self.store.capability(ids), self.reference)

    def variances(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """σ̂_i² of ``ids`` [inputs], NaN for inputs not yet known."""
        records = self.store.records[ids]
        return shrunk_variance(records["reward_std"], records["samples"], self.mean_variance)

    def begin_update(self) -> None:
        """Before an update's batches: forget those of one that fairseq gave up."""
        self._pending, self._visits = [], None
        self.replay.begin_update()

    def offsets(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """o_i of ``ids`` [inputs], 0 for inputs not yet known."""
        records = self.store.records[ids]
        return offsets(records["reward_mean"], records["samples"], self.inputs)

    def add(self, visit: Visit) -> None:
        """Keep a batch's visit until the update is over."""
        self._pending.append(visit)

    def rewards_of_update(self) -> tuple[float, float]:
        """The lowest and the highest of this rank's samples in the current update."""
        rewards = [float(reward) for visit in self._pending for reward in visit.rewards]
        return min(rewards, default=0.0), max(rewards, default=0.0)

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
        inputs = sum(len(visit.ids) for visit in visits)
        self.corpus.commit([visit.counts for visit in visits], inputs)
        for visit in visits:
            visit.records["epoch"] = min(self.epoch, MOST)
            self.store.write(visit.ids, visit.records)
        self._pending, self._visits = [], None
        self.replay.commit()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so the safe loader reads it.

        What large stores saw since the last checkpoint is written to files (:attr:`files`).
        """
        if self.files is not None:
            needed = [file for store in self.stores.values() for file in store.files]
            self.files.remove_unneeded(needed)
        stores = {shard: store.state(shard, self.files) for shard, store in self.stores.items()}
        return {
            "baseline": {
                "kind": self.baseline.kind,
                "state": {name: torch.from_numpy(x) for name, x in self.baseline.state().items()},
            },
            "kl": self.kl.state_dict(),
            "reference": torch.from_numpy(self.reference.copy()),
            "mean_variance": self.mean_variance,
            "inputs": asdict(self.inputs),
            "reference_epoch": self.reference_epoch,
            "stores": stores,
            "replay": self.replay.state_dict(),
            "corpus": self.corpus.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`. A collective.

        Raises:
            EsrlError: the state of baseline, KL penalty or capability store cannot be read.
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
        self.corpus.load_state_dict(state.get("corpus", {}))
        folders = [self.store_dir or self.save_dir or "", self.resumed_from]
        try:
            self.stores = {
                shard: restored(store, folders) for shard, store in state["stores"].items()
            }
        except (KeyError, TypeError, ValueError, MemoryError) as error:
            raise unreadable("capability store", repr(error)) from error
        self.shard = -1
