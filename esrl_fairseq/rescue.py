"""A run that fails in the middle keeps its last state: the same command goes on from there."""

from __future__ import annotations

import logging
import os
from typing import Any

from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from esrl_fairseq.checks.numbers import bad_parameter, largest_parameter
from esrl_fairseq.data.place import state_at
from esrl_fairseq.rescoring.rescoring import unwrap

logger = logging.getLogger(__name__)


class Rescue:
    """Saves what the last whole update left, when a later one or a validation fails.

    Nothing of an update that failed is in the state: parameters change in the optimizer's step,
    RL state after it (:meth:`RLState.commit`). Only fairseq's place in the data has moved on.

    Args:
        trainer: fairseq's.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.epoch_itr: Any = None  # over the training data, in the current epoch
        self.batches = 0  # of the epoch that whole updates have used
        self.fetched = 0  # and with those of the current update
        self.updates = trainer.get_num_updates()
        self.saved = -1  # what fairseq's last checkpoint, if any, is of

    def begin(self, epoch_itr: Any) -> None:
        """The first epoch of this process follows; until then the start is all there is."""
        self.epoch_itr = epoch_itr
        self.updates = self.trainer.get_num_updates()

    def begin_epoch(self) -> None:
        """The epoch's batches follow."""
        self.batches = self.fetched = self.epoch_itr.iterations_in_epoch

    def begin_update(self) -> None:
        """An update's batches have been fetched; --amp may try the same ones again."""
        fetched = self.epoch_itr.iterations_in_epoch
        if fetched != self.fetched:
            self.batches, self.fetched = self.fetched, fetched

    def save(self, in_update: bool) -> str:
        """Save, if there is anything new that can be, and tell what came of it.

        Args:
            in_update: the current update's batches were not used.
        """
        cfg, trainer = self.trainer.cfg.checkpoint, self.trainer
        updates = trainer.get_num_updates()
        if bad_parameter(unwrap(trainer.model)):
            return self.nothing_to_save()
        if cfg.no_save or cfg.no_last_checkpoints:
            return ""
        if updates == self.updates:
            return ""
        if trainer.data_parallel_rank > 0:
            return ""  # the first rank learns of it, and saves
        if self.sharded():
            return "the last checkpoint is the last state that there is"
        self.save_last(None, self.batches if in_update else None)
        self.updates = updates
        where = f"the state after update {updates} is in {self.last}"
        return f"{where}: the same command goes on from there"

    @property
    def last(self) -> str:
        """Path of the checkpoint that the same command goes on from."""
        name = f"checkpoint_last{self.trainer.checkpoint_suffix}.pt"
        return os.path.join(self.trainer.cfg.checkpoint.save_dir, name)

    def nothing_to_save(self) -> str:
        """The sentence for a model that gives no numbers."""
        model = unwrap(self.trainer.model)
        found = bad_parameter(model) or largest_parameter(model)
        updates, last = self.trainer.get_num_updates(), ""
        if os.path.exists(self.last):
            last = "is the same model" if updates == self.saved else "is as it was before"
            last = f"; {self.last} {last}"
        return (
            f"update {updates} left a model that is not saved, since its {found}: lower --lr{last}"
        )

    def save_last(self, val_loss: float | None, batches: int | None) -> None:
        """checkpoint_last.pt and, if ``val_loss`` is the best, checkpoint_best.pt."""
        cfg = OmegaConf.create(OmegaConf.to_container(self.trainer.cfg.checkpoint))
        cfg.save_interval_updates, cfg.keep_interval_updates, cfg.keep_last_epochs = 0, -1, -1
        cfg.no_epoch_checkpoints = True
        place = _Place(self.epoch_itr, batches)
        checkpoint_utils.save_checkpoint(cfg, self.trainer, place, val_loss)

    def sharded(self) -> bool:
        """Whether each rank has a part of the state, so that none can save without the others."""
        trainer = self.trainer
        several = trainer.data_parallel_world_size > 1
        zero = trainer.cfg.distributed_training.zero_sharding == "os"
        return several and (zero or trainer.is_fsdp)


class _Place:
    """What fairseq's saving asks an iterator over batches.

    Args:
        epoch_itr: fairseq's.
        batches: of the epoch that were used; None where its own place is right.
    """

    def __init__(self, epoch_itr: Any, batches: int | None):
        self.epoch_itr, self.batches = epoch_itr, batches
        self.epoch = epoch_itr.epoch

    def end_of_epoch(self) -> bool:
        """Whether the epoch's last batch was used."""
        return self.batches is None and self.epoch_itr.end_of_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        if self.batches is None:
            state: dict[str, Any] = self.epoch_itr.state_dict()
            return state
        state = {
            "version": 2,
            "epoch": self.epoch,
            "iterations_in_epoch": self.batches,
            "shuffle": self.epoch_itr.shuffle,
        }
        return state_at(self.epoch_itr, state)
