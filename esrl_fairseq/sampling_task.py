"""What any task needs for ESRL: dynamic sampling, stage one, state that checkpoints keep."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Optional

from fairseq.sequence_generator import SequenceGenerator

from esrl_fairseq import compat
from esrl_fairseq.checks.memory import MEMORY_ADVICE, out_of_memory
from esrl_fairseq.checks.models import arch_of, check_arch, check_model, what_failed
from esrl_fairseq.checks.numbers import NotFinite, loss_scale
from esrl_fairseq.checks.vocabulary import check_vocabulary_on_load
from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.schedules import Plan
from esrl_fairseq.data.fingerprint import check_shards, data_fingerprint
from esrl_fairseq.data.place import refuse_other_batches
from esrl_fairseq.data_task import DataTask
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring import corpus
from esrl_fairseq.monitoring.outcome import Outcome
from esrl_fairseq.monitoring.shown import Shown
from esrl_fairseq.monitoring.warnings import Monitor
from esrl_fairseq.processes.launch import refuse_copies
from esrl_fairseq.rescoring.frozen import FrozenModel
from esrl_fairseq.run import Run, end_if_over, place_state
from esrl_fairseq.sampling.compiled import CompiledDecoding
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.options import SamplingConfig, check_sampling_options
from esrl_fairseq.sampling.plans import least_plan, make_plan
from esrl_fairseq.start.comparing import checks_of_start
from esrl_fairseq.start.dictionary import ENTRY, fingerprints
from esrl_fairseq.start.freezing import freeze_parts
from esrl_fairseq.state.rl_state import RLState

logger = logging.getLogger(__name__)

SHARDS = "shards"
"""Of a task's state in checkpoints: what tells the shards of its training data from each other."""


class SamplingTask(DataTask):
    """What any task needs for ESRL; mixed in before the task's own class.

    fairseq's hooks are the whole interface: ``train_step`` tells dummy batches apart,
    ``optimizer_step`` ends an update, ``begin_epoch`` refreshes the capability quantiles,
    ``get_checkpoint_dict``/``set_checkpoint_dict`` keep the RL state in the checkpoint.
    """

    options: SamplingConfig
    rl: RLState
    monitor: Monitor
    dummy_batch = False
    frozen: Optional[FrozenModel] = None
    run: Optional[Run] = None  # while it trains
    shown = Shown(0)
    reference_splits: tuple[str, ...] = ()
    """Splits whose inputs can have further references."""
    reward_text = "continuation"  # what the reward sees: that, or the whole text with its prompt

    def start_sampling(self, options: SamplingConfig) -> None:
        """Give the task its options and an empty RL state."""
        check_sampling_options(options)
        self.options = options
        # Of a program's own configuration, without the other parts of fairseq's, it is no bool.
        save_dir = None if options.no_save is True else options.save_dir
        self.rl = RLState(save_dir, options.capability_store)
        self.monitor = Monitor()
        self.outcome = Outcome()
        self.sampler: Optional[RowSampler] = None
        if not compat.saves_task_state():
            logger.warning(
                "this fairseq does not keep a task's state in checkpoints: a resumed run begins "
                "with an empty reward queue and capability store; fairseq-fixed keeps it"
            )

    @property
    def eos(self) -> int:
        """Id of what ends a target, and is what the decoder reads first."""
        return self.target_dictionary.eos()

    @property
    def source_eos(self) -> int:
        """Id of what ends a source."""
        return self.source_dictionary.eos()

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        check_arch(cfg)
        try:
            model = super().build_model(cfg, from_checkpoint)
        except EsrlError:
            raise
        except Exception as error:
            raise EsrlError(
                f"--arch {arch_of(cfg)} cannot be built for this task and with these options "
                f"({what_failed(error)})"
            ) from error
        check_vocabulary_on_load(model, self.source_dictionary, self.target_dictionary)
        self.learn_words(model)
        return model

    def open_store(self) -> None:
        """Open the current shard's capability store, unless it is open."""
        if self.rl.shard != self.shard:
            dataset = self.datasets[self.cfg.train_subset]
            self.rl.open_store(self.shard, len(dataset), data_fingerprint(dataset))

    def frozen_model(self, model: Any) -> Any:
        """The frozen model of the KL penalty, beside ``model`` (not wrapped); None without one."""
        if self.frozen is None:
            return None
        frozen = self.frozen.beside(model)
        self.rl.kl.measure_from(self.frozen.fingerprint)
        return frozen

    def plan(self, sample: dict[str, Any]) -> Plan:
        """Dynamic sampling: samples and temperature of each input, before anything is generated."""
        options, ids = self.options, host_ids(sample)
        if self.dummy_batch:
            return least_plan(options, len(ids))
        self.open_store()
        rl = self.rl
        known = rl.store.capability(ids), rl.quantiles(ids), rl.variances(ids)
        return make_plan(options, *known, rl.mean_variance)

    def build_sampler(self, model: Any) -> RowSampler:
        """Stage one for ``model`` (not wrapped), built once."""
        if self.sampler is None:
            self.sampler = RowSampler([model], self.target_dictionary, **self.limits)
            if self.options.compile_decoding:
                self.sampler.strategy = CompiledDecoding().strategy
        return self.sampler

    @property
    def limits(self) -> dict[str, Any]:
        """What samplers and searches get of lengths, and what ends a sequence."""
        options = self.options
        return {
            "max_len_a": options.sample_max_len_a,
            "max_len_b": options.sample_max_len_b,
            "min_len": options.sample_min_len,
            "eos": self.eos,
        }

    @property
    def languages(self) -> tuple[str, str]:
        """Of sources and outputs, for the detokenizer."""
        return self.cfg.source_lang, self.cfg.target_lang

    def best_hypotheses(self, model: Any, sample: dict[str, Any], beam: int) -> list[list[int]]:
        """Tokens that beam search with ``model`` (not wrapped) finds for each input."""
        longest = self.build_sampler(model).length_limits(sample["net_input"]["src_lengths"]).max()
        limits = {**self.limits, "max_len_a": 0, "max_len_b": int(longest)}
        generator = SequenceGenerator([model], self.target_dictionary, beam_size=beam, **limits)
        return [hypotheses[0]["tokens"].tolist() for hypotheses in generator(sample)]

    def before_loading(self, trainer: Any) -> None:
        """Before the checkpoint is loaded that the run starts from (see compat.py)."""
        for check in self.checks_of_start(trainer):
            check()

    def checks_of_start(self, trainer: Any) -> Iterator[Callable[[], None]]:
        """What is checked then. On the way parts are frozen, before there is an optimizer, and the
        run begins."""
        yield refuse_copies
        yield partial(freeze_parts, trainer.get_model(), trainer.cfg.criterion)
        yield from checks_of_start(trainer)
        place_state(trainer)
        if self.trained_by_reward:
            self.run = Run(trainer)
            yield from self.run.checks()

    def after_loading(self, trainer: Any, epoch_itr: Any) -> None:
        """After that, before the first update."""
        if self.run is None:
            refuse_other_batches(epoch_itr)
        else:
            self.run.begin(epoch_itr)
        end_if_over(trainer)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        super().begin_epoch(epoch, model)
        if self.trained_by_reward:
            # Before the first batch: fairseq saves a crash.pt for errors in one.
            check_model(model)
            self.open_store()
            self.frozen_model(model)
        self.rl.begin_epoch(epoch)
        if self.run is not None:
            self.run.begin_epoch()

    def begin_update(self) -> None:
        """The criterion tells of it before the batches of each update."""
        self.rl.begin_update()
        self.monitor.begin_update()
        if self.run is not None:
            self.run.begin_update()

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if self.run is not None and dataset is self.datasets[self.cfg.train_subset]:
            self.run.rescue.epoch_itr = batches
        return batches

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        super().begin_valid_epoch(epoch, model)
        self.monitor.begin_validation()
        if self.run is not None:
            self.run.begin_validation()

    def post_validate(self, model: Any, stats: Any, agg: Any) -> None:
        """fairseq gives what it logs of each validated subset."""
        if self.run is not None:
            self.run.validated(stats, agg)

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """fairseq gives what the batches of an update logged, of all ranks."""
        super().reduce_metrics(logging_outputs, criterion)
        if self.trained_by_reward:
            corpus.reduce(logging_outputs, self.scorer.reward)
        if self.run is not None and logging_outputs and "draws" in logging_outputs[0]:
            self.run.updated(logging_outputs)

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        given = sample, model, criterion, optimizer, update_num
        step = partial(super().train_step, *given, **kwargs)
        self.dummy_batch, self.rl.replay.skips = ignore_grad, False
        self.rl.replay.update = update_num
        forwards = 0 if self.run is None else self.run.forwards
        try:
            return step(ignore_grad)
        except Exception as error:
            if out_of_memory(error):
                logger.error(MEMORY_ADVICE)
            if self.run is None:
                raise
            self.run.step_failed(error)
        # Behind the except clause, so that what the failed step held is free.
        self.dummy_batch = self.rl.replay.skips = True
        return self.run.skip_batch(partial(step, True), forwards)

    def valid_step(self, sample: dict[str, Any], model: Any, criterion: Any, **kwargs: Any) -> Any:
        try:
            return super().valid_step(sample, model, criterion, **kwargs)
        except Exception as error:
            if self.run is not None:
                self.run.validation_step_failed(error)
            raise

    def refuse_numbers(self, problem: str) -> None:
        """End an update, or a validation, in which something is NaN or infinite; it may be what
        half precision with a loss scale is made for, see :meth:`Run.overflows`.

        Raises:
            NotFinite: with ``problem``, unless it is empty.
        """
        if problem and self.run is not None and not self.run.overflows():
            raise NotFinite(problem)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        self.rl.gather()
        before = loss_scale(optimizer)
        super().optimizer_step(optimizer, model, update_num)
        if loss_scale(optimizer) < before:
            return  # overflow with --amp: no step was taken, and fairseq repeats the batches
        self.rl.commit()
        if self.trained_by_reward:
            self.monitor.end_update(optimizer.get_lr())

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """fairseq merges this into a checkpoint's ``extra_state``."""
        if self.run is not None:
            self.run.refuse_to_save()
        return {
            type(self).__name__: {
                "rl": self.rl.state_dict(),
                "monitor": self.monitor.state_dict(),
                "outcome": self.outcome.state_dict(),
                ENTRY: fingerprints(self),
                SHARDS: self.shard_marks(),
            }
        }

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_checkpoint_dict`; fairseq skips it with ``--reset-dataloader``."""
        if SHARDS in state:  # not in those before they were kept
            check_shards(state[SHARDS], self.shard_marks(), self.folders)
        self.rl.load_state_dict(state["rl"])
        self.monitor.load_state_dict(state["monitor"])
        self.outcome.load_state_dict(state.get("outcome", {}))  # not in those before it was kept
