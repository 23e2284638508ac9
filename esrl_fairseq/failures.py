"""What a run does where a batch fails: another takes its place, or the last state is saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from esrl_fairseq.checks.memory import (
    MEMORY_ADVICE,
    VALIDATION_MEMORY_ADVICE,
    free_memory,
    out_of_memory,
    skipped_by_fairseq,
)
from esrl_fairseq.checks.numbers import NotFinite, bad_gradient, bad_parameter, one_line
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.processes.running import lost
from esrl_fairseq.rescoring.agreement import stage_difference
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.rescue import Rescue
from esrl_fairseq.state.ranks import number_of_ranks, own_rank

logger = logging.getLogger(__name__)


class Failures:
    """The part of a run that looks after failures.

    Args:
        trainer: fairseq's; its task samples.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.cfg, self.task = trainer, trainer.cfg, trainer.task
        self.criterion = trainer.get_criterion()
        self.rescue = Rescue(trainer)
        self.criterion.scorer.watch.last_words = self.last_words
        self.in_update = False  # its batches may be used by then, or not
        self.forwards = 0  # of batches, without those that failed
        self.tried = -1  # how many there were when one of a validation ran out of memory
        self.criterion.register_forward_hook(self.forward_is_over)

    def failed(self, error: Exception, in_update: bool) -> None:
        """A batch of an update, or of a validation, raised: save the last state, and end the run.

        It never returns. What ends the run is no ``Exception`` that fairseq would write a crash.pt
        for, which no run can go on from.
        """
        if lost(error):
            raise error  # the others have failed, see save_without_others
        unsound = isinstance(error, NotFinite) and not self.is_sound()
        saved = self.rescue.nothing_to_save() if unsound else self.save(in_update)
        if isinstance(error, EsrlError):
            raise SystemExit("; ".join(filter(None, [str(error), saved])))
        if saved:
            logger.error(saved)
        if isinstance(error, RuntimeError):
            raise error
        raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def forward_is_over(self, *_: Any) -> None:
        """A batch's backward pass follows, if it is one of training."""
        self.forwards += 1

    def step_failed(self, error: Exception) -> None:
        """A batch of an update raised; it returns where :meth:`skip_batch` may help."""
        if not out_of_memory(error):
            self.failed(error, in_update=True)
        if number_of_ranks() > 1:
            return
        if skipped_by_fairseq(error):
            raise error
        self.failed(EsrlError(MEMORY_ADVICE), in_update=True)

    def validation_step_failed(self, error: Exception) -> None:
        """A batch of a validation raised; it returns where fairseq tries it once more."""
        if not out_of_memory(error):
            self.failed(error, in_update=False)
        if skipped_by_fairseq(error) and self.tried != self.forwards:
            self.tried = self.forwards
            return
        self.failed(EsrlError(VALIDATION_MEMORY_ADVICE), in_update=False)

    def skip_batch(self, dummy_step: Callable[[], Any], forwards: int) -> Any:
        """A batch ran out of memory on this rank, which the others do not know: a dummy takes its
        place, since they wait for what it has to say of the update and of its gradient.

        Args:
            dummy_step: the batch's step as one of the dummies that fairseq gives to ranks
                without a batch: one sample of one input, and no gradient.
            forwards: :attr:`forwards` before the step that failed.

        Returns:
            What ``dummy_step`` does. Where no dummy can help, the run ends in one sentence.
        """
        ranks, update = self.cfg.distributed_training, self.trainer.get_num_updates() + 1
        where = f"rank {own_rank()} of {number_of_ranks()} ran out of memory in update {update}"
        reason = ""
        if self.forwards != forwards:
            reason = "in the backward pass"  # of which the others may have a part already
        elif self.trainer.is_fsdp or ranks.broadcast_buffers:
            reason = "where the ranks' forward passes wait for each other"
        if not reason:
            try:
                free_memory()
                found = dummy_step()
                logger.warning("%s: its batch is left out, and the others go on", where)
                return found
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = "also for a single sample"
        return self.failed(EsrlError(f"{where}, {reason}: {MEMORY_ADVICE}"), in_update=True)

    def save_without_others(self) -> str:
        """Another rank has failed: what :meth:`Rescue.save` tells."""
        return self.save(self.in_update)

    def last_words(self, sentence: str) -> str:
        """Save the last state, and what the run ends with: why, and where that is."""
        saved = self.save(self.criterion.training)
        return "; ".join(filter(None, [sentence, saved]))

    def save(self, in_update: bool) -> str:
        """See :meth:`Rescue.save`; a validation that failed is made up for."""
        self.task.outcome.due = self.task.outcome.due or not in_update
        try:
            return self.rescue.save(in_update)
        except EsrlError as full:  # of a disk
            return str(full)

    def overflows(self) -> bool:
        """Whether values that are not finite are half precision's, with sound parameters: fairseq
        then leaves out the update and lowers the loss scale."""
        common = self.cfg.common
        return (common.fp16 or common.amp) and not bad_parameter(unwrap(self.trainer.model))

    def is_sound(self) -> bool:
        """Whether the model gives log-probabilities that are numbers."""
        model = unwrap(self.trainer.model)
        if self.trainer.is_fsdp or bad_parameter(model):
            return self.trainer.is_fsdp
        batch, _ = self.trainer._prepare_sample(self.rescue.epoch_itr.first_batch)
        return math.isfinite(stage_difference(model, batch, self.task.build_sampler(model)))

    def bad_gradients(self, error: FloatingPointError) -> None:
        """fairseq cannot use an update's gradients: say what they hold, and end the run."""
        found = bad_gradient(unwrap(self.trainer.model))
        where = f": the gradient of {found}" if found else ""
        low, high = self.task.rl.rewards_of_update()
        self.failed(
            NotFinite(
                f"update {self.trainer.get_num_updates() + 1} cannot be made, "
                f"{one_line(error)}{where}; its samples' rewards are from {low:g} to "
                f"{high:g}: look at the reward, or lower --lr"
            ),
            in_update=True,
        )

    def refuse_to_save(self) -> None:
        """A checkpoint of parameters that are not numbers would take a good one's place.

        Raises:
            SystemExit: with the sentence.
        """
        if bad_parameter(unwrap(self.trainer.model)):
            raise SystemExit(self.rescue.nothing_to_save())
        self.rescue.saved = self.trainer.get_num_updates()
