"""Around the updates of a run: checks before the first one, progress, and what it came to."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from esrl_fairseq.checks.models import check_model
from esrl_fairseq.checks.numbers import refuse_bad_parameters
from esrl_fairseq.compat import at_bad_numbers, at_end_of_training
from esrl_fairseq.data.place import refuse_other_batches
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.failures import Failures
from esrl_fairseq.monitoring.card import Card
from esrl_fairseq.monitoring.corpus import mean_counts
from esrl_fairseq.monitoring.progress import Progress
from esrl_fairseq.monitoring.record import Record, generate_command
from esrl_fairseq.monitoring.shown import Shown
from esrl_fairseq.monitoring.summary import summary
from esrl_fairseq.processes.backends import refuse_shards
from esrl_fairseq.processes.running import rescue_by
from esrl_fairseq.rescoring.agreement import check_stages
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.sampling.compiled import check_compiled
from esrl_fairseq.sampling.options import check_places
from esrl_fairseq.start.first_validation import OFF, check_counts, judge_start, validate_now
from esrl_fairseq.start.metric import check_best_metric, check_logged
from esrl_fairseq.start.source import NONE, RESUMED, STARTED, Start, find_start
from esrl_fairseq.state.ranks import own_rank

logger = logging.getLogger(__name__)

Check = Callable[[], Any]
"""Refuses something by an EsrlError, or does nothing."""


def end_if_over(trainer: Any) -> None:
    """Where no update is left of ``--max-update``, fairseq would make one more."""
    optimization = trainer.cfg.optimization
    if 0 < optimization.max_update <= trainer.get_num_updates():
        logger.info("nothing is left of --max-update %d", optimization.max_update)
        optimization.max_epoch = -1


def place_state(trainer: Any) -> None:
    """Tell the task's RL state its folders; of stock tasks, too."""
    cfg, rl = trainer.cfg.checkpoint, trainer.task.rl
    rl.save_dir = None if cfg.no_save else cfg.save_dir
    rl.resumed_from = os.path.dirname(find_start(cfg, trainer.checkpoint_suffix).path)


class Run(Failures):
    """One training run, from what it starts from to what it came to.

    Args:
        trainer: fairseq's; its task samples.
    """

    def __init__(self, trainer: Any):
        super().__init__(trainer)
        self.start = self.find_start()
        first = own_rank() == 0
        self.progress = Progress(self.cfg.common.log_interval if first else None)
        cfg = self.cfg.checkpoint
        self.record = Record(trainer, cfg.save_dir if first and not cfg.no_save else None)
        self.card = Card(self.record)
        self.task.shown = Shown(self.criterion.cfg.show_samples if first else 0)
        self.subset_open = False  # whether the next validated subset is a validation's first
        self.stats: Mapping[str, Any] = {}

    def find_start(self) -> Start:
        """Where the parameters come from; a model of Hugging Face is one, too."""
        found = find_start(self.cfg.checkpoint, self.trainer.checkpoint_suffix)
        if found.kind == NONE and self.task.pretrained:
            return Start(self.task.pretrained, "--hf-model", STARTED)
        return found

    def checks(self) -> Iterator[Check]:
        """Before the start's checkpoint is loaded: what refuses options that do not fit together,
        or warns of them."""
        yield partial(refuse_shards, self.trainer)
        yield partial(check_model, unwrap(self.trainer.model))
        yield self.check_room
        if self.task.options.compile_decoding:
            yield partial(check_compiled, unwrap(self.trainer.model))
        yield self.check_precision
        yield partial(check_best_metric, self.cfg, self.task, self.has_references())
        yield self.warn_of_no_start

    def check_room(self) -> None:
        """Refuse a least length of samples that the model has no room for."""
        model = unwrap(self.trainer.model)
        if hasattr(model, "max_decoder_positions"):
            check_places(self.task.options, model.max_decoder_positions())

    def check_precision(self) -> None:
        """Refuse half precision that needs a GPU, where there is none."""
        if self.cfg.common.fp16 and self.trainer.device.type == "cpu":
            raise EsrlError(
                "--fp16 and --memory-efficient-fp16 need a GPU: fairseq ends at the first overflow "
                "without one; choose --bf16 or --memory-efficient-bf16, or no half precision"
            )

    def warn_of_no_start(self) -> None:
        """Nothing good is to be expected of random weights."""
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
        at_bad_numbers(self.trainer, self.bad_gradients)
        rescue_by(self.save_without_others)
        # They may refuse: before the validation, which takes its time.
        for check in self.checks_when_loaded(epoch_itr):
            check()
        self.say_what_is_trained()
        self.record.begin(self.start)
        if own_rank() == 0:
            at_end_of_training(self.end)
        self.validate_first(epoch_itr)

    def checks_when_loaded(self, epoch_itr: Any) -> Iterator[Check]:
        """What refuses parameters, data or a frozen model once they are loaded."""
        model = unwrap(self.trainer.model)
        yield partial(refuse_bad_parameters, model, self.start.path or "the new model")
        yield self.task.open_store
        yield partial(self.task.frozen_model, model)
        yield partial(refuse_other_batches, epoch_itr)
        yield partial(self.warn_of_few_updates, epoch_itr)
        if self.start.kind != RESUMED and not self.trainer.is_fsdp:  # which has parts of weights
            batch, _ = self.trainer._prepare_sample(epoch_itr.first_batch)
            yield partial(check_stages, model, batch, self.task)

    def warn_of_few_updates(self, epoch_itr: Any) -> None:
        """Samples are kept within an epoch, which may be too short for all passes of PPO."""
        passes, frequencies = self.task.rl.replay.passes, self.cfg.optimization.update_freq
        if passes == 1 or not hasattr(epoch_itr, "frozen_batches"):  # of a stream it is not known
            return
        frequency = frequencies[min(epoch_itr.next_epoch_idx, len(frequencies)) - 1]
        updates = math.ceil(len(epoch_itr) / frequency)
        if updates < passes:
            logger.warning(
                "--ppo-passes %d, but an epoch has %d update(s) and begins with new samples, so "
                "that no more passes are made from any: give that number, or have more updates an "
                "epoch, by a smaller --batch-size, --max-tokens or --update-freq",
                passes,
                updates,
            )

    def validate_first(self, epoch_itr: Any) -> None:
        """Validate the start model, or what a run that is resumed has left out."""
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
        if not unjudged:
            self.judge_start(severity)

    def judge_start(self, severity: str) -> None:
        """Refuse a start model, or warn of it, by its validation; see :func:`judge_start`."""
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
        self.card.refresh()  # behind the validation's checkpoint
        self.record.begin_update()

    def begin_epoch(self) -> None:
        """The batches of an epoch follow; the capability store knows those before."""
        self.rescue.begin_epoch()
        self.record.add_epoch(self.task.rl, self.task.options)

    def begin_validation(self) -> None:
        """The subsets of a validation follow."""
        self.subset_open, self.in_update = True, False
        self.task.shown.begin()

    def validated(self, stats: Mapping[str, Any], meters: Any) -> None:
        """A subset was validated; ``meters`` are of all ranks."""
        first, self.subset_open = self.subset_open, False
        self.record.validated(stats, first)
        self.card.due = True
        if not first:
            return
        examples = self.task.shown.end(self.cfg, self.trainer.get_num_updates())
        self.record.add_examples(examples)
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
        self.record.updated(outputs)

    def failed(self, error: Exception, in_update: bool) -> None:
        """A batch raised, see :meth:`Failures.failed`; the record tells of it."""
        self.record.add("warning", level="ERROR", message=f"the run ends: {error}")
        super().failed(error, in_update)

    def end(self) -> None:
        """Say what the run came to, and what to do next."""
        cfg = self.cfg.checkpoint
        by_reward = cfg.best_checkpoint_metric == "reward"
        told = self.task.outcome.sentence(cfg.save_dir, by_reward, not cfg.no_save)
        logger.info(told)
        self.record.end(told)
        self.card.due = True
        self.card.refresh()
        if not cfg.no_save:
            logger.info("next: %s", generate_command(self.trainer))
