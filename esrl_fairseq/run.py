"""Around the updates of a run: checks before the first one, progress, and what it came to."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from esrl_fairseq.checks.memory import (
    MEMORY_ADVICE,
    free_memory,
    out_of_memory,
    skipped_by_fairseq,
)
from esrl_fairseq.checks.models import check_model
from esrl_fairseq.checks.numbers import (
    NotFinite,
    bad_gradient,
    bad_parameter,
    one_line,
    refuse_bad_parameters,
)
from esrl_fairseq.compat import at_bad_numbers, at_end_of_training
from esrl_fairseq.data.place import refuse_other_batches
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring.corpus import mean_counts
from esrl_fairseq.monitoring.outcome import next_command
from esrl_fairseq.monitoring.progress import Progress
from esrl_fairseq.monitoring.summary import summary
from esrl_fairseq.processes.backends import refuse_shards
from esrl_fairseq.processes.running import lost, rescue_by
from esrl_fairseq.rescoring.agreement import check_stages, stage_difference
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.rescue import Rescue
from esrl_fairseq.sampling.conditioning import is_decoder_only
from esrl_fairseq.start.first_validation import OFF, check_counts, judge_start, validate_now
from esrl_fairseq.start.metric import check_best_metric, check_logged
from esrl_fairseq.start.source import NONE, RESUMED, STARTED, Start, find_start
from esrl_fairseq.state.ranks import number_of_ranks, own_rank

logger = logging.getLogger(__name__)


class Run:
    """One training run, from what it starts from to what it came to.

    Args:
        trainer: fairseq's; its task samples.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.cfg, self.task = trainer, trainer.cfg, trainer.task
        self.criterion = trainer.get_criterion()
        self.start = self.find_start()
        self.progress = Progress(None if own_rank() else self.cfg.common.log_interval)
        self.rescue = Rescue(trainer)
        self.criterion.scorer.watch.last_words = self.last_words
        self.subset_open = False  # whether the next validated subset is a validation's first
        self.stats: Mapping[str, Any] = {}
        self.in_update = False  # its batches may be used by then, or not
        self.forwards = 0  # of batches, without those that failed
        self.criterion.register_forward_hook(self.forward_is_over)

    def find_start(self) -> Start:
        """Where the parameters come from; a model of Hugging Face is one, too."""
        found = find_start(self.cfg.checkpoint, self.trainer.checkpoint_suffix)
        if found.kind == NONE and self.task.pretrained:
            return Start(self.task.pretrained, "--hf-model", STARTED)
        return found

    def check(self) -> None:
        """Before the start's checkpoint is loaded: refuse what does not fit together."""
        refuse_shards(self.trainer)
        check_model(unwrap(self.trainer.model))
        if self.cfg.common.fp16 and self.trainer.device.type == "cpu":
            raise EsrlError(
                "--fp16 and --memory-efficient-fp16 need a GPU: fairseq ends at the first overflow "
                "without one; choose --bf16 or --memory-efficient-bf16, or no half precision"
            )
        check_best_metric(self.cfg, self.task, self.has_references())
        if self.start.kind == NONE:
            logger.warning(
                "no start model is given, so that a model with random weights is trained, which "
                "rewards teach next to nothing: give a trained one with --finetune-from-model"
            )

    def has_references(self) -> bool:
        """Whether the first validation set has references."""
        dataset = self.task.datasets.get(self.cfg.dataset.valid_subset.split(",")[0])
        return getattr(dataset, "tgt", None) is not None

    def begin(self, epoch_itr: Any) -> None:
        """All is loaded: say what is trained, and validate the start model."""
        self.rescue.begin(epoch_itr)
        refuse_bad_parameters(unwrap(self.trainer.model), self.start.path or "the new model")
        at_bad_numbers(self.trainer, self.bad_gradients)
        rescue_by(self.save_without_others)
        # They may be refused: before the validation, which takes its time.
        self.task.open_store()
        self.task.frozen_model(unwrap(self.trainer.model))
        refuse_other_batches(epoch_itr)
        self.say_what_is_trained()
        if self.start.kind != RESUMED and not self.trainer.is_fsdp:  # which has parts of weights
            batch, _ = self.trainer._prepare_sample(epoch_itr.first_batch)
            check_stages(unwrap(self.trainer.model), batch, self.task)
        if own_rank() == 0:
            at_end_of_training(self.end)
        severity = self.criterion.cfg.check_start
        if self.cfg.dataset.disable_validation:
            check_counts(self.task.rl.corpus.missing)
            return
        if self.task.outcome.due:  # the last one failed, or was left, when the run ended
            saves = self.task.outcome.due_best
            found = validate_now(self.trainer, epoch_itr)
            if saves:
                self.rescue.save_last(found, epoch_itr.iterations_in_epoch)
        unjudged = self.start.kind == RESUMED or severity == OFF
        if not unjudged or self.task.rl.corpus.missing:
            validate_now(self.trainer, epoch_itr)
        if unjudged:
            return
        reward = self.criterion.scorer.reward
        low, high = reward.validation_range
        judge_start(
            self.start,
            self.stats,
            len(self.task.target_dictionary),
            reward.needs_references and low == 0 and high <= 1,
            severity,
            self.criterion.cfg.reward_post_process,
        )

    def say_what_is_trained(self) -> None:
        """A few lines on rank 0."""
        if own_rank():
            return
        parameters = sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)
        start = self.start.path or "random weights"
        if self.start.kind == RESUMED:
            start = f"{start}, where this run was interrupted"
        inputs = len(self.task.datasets[self.cfg.dataset.train_subset])
        for line in summary(self.trainer, start, parameters, inputs, self.rescue.epoch_itr):
            logger.info(line)

    def begin_update(self) -> None:
        """The batches of an update follow."""
        self.in_update = True
        self.rescue.begin_update()
        self.progress.begin_update()

    def begin_validation(self) -> None:
        """The subsets of a validation follow."""
        self.subset_open, self.in_update = True, False

    def validated(self, stats: Mapping[str, Any], meters: Any) -> None:
        """A subset was validated; ``meters`` are of all ranks."""
        first, self.subset_open = self.subset_open, False
        if not first:
            return
        check_logged(self.cfg.checkpoint.best_checkpoint_metric, sorted(stats))
        self.stats = stats
        for part, _ in self.criterion.scorer.reward.counted:
            part.moving.validated(mean_counts(meters, part))
            self.task.monitor.set_validation(float(stats["reward"]))
        if "reward" in stats:
            self.task.outcome.add(float(stats["reward"]), self.trainer.get_num_updates())

    def updated(self, outputs: list[dict[str, Any]]) -> None:
        """An update is over; ``outputs`` are the sums that its batches logged."""
        self.in_update = False
        self.progress.add(outputs, self.task.rl.replay.update + 1)

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

    def end(self) -> None:
        """Say what the run came to, and what to do next."""
        cfg = self.cfg.checkpoint
        by_reward = cfg.best_checkpoint_metric == "reward"
        logger.info(self.task.outcome.sentence(cfg.save_dir, by_reward, not cfg.no_save))
        if not cfg.no_save:
            decoder_only = is_decoder_only(unwrap(self.trainer.model))
            post_process = self.criterion.cfg.reward_post_process
            logger.info("next: %s", next_command(self.cfg, post_process, decoder_only))
