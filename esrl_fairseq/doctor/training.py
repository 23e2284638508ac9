"""The road of fairseq-train up to its first update, with the checks that the training makes.

What fails is noted, and what can still be looked at is. Nothing is trained, nothing is written.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.data.iterators import EpochBatchIterator
from fairseq.trainer import Trainer
from omegaconf import open_dict

from esrl_fairseq import registration  # noqa: F401 (fairseq then knows this package)
from esrl_fairseq.checks.vocabulary import OTHER
from esrl_fairseq.doctor.findings import OK, WARNING, Finding
from esrl_fairseq.doctor.given import completed, configuration
from esrl_fairseq.doctor.machine import free_memory
from esrl_fairseq.doctor.road import Road, alone
from esrl_fairseq.monitoring.memory import estimate
from esrl_fairseq.monitoring.summary import summary
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.start.first_validation import OFF, check_counts, validate_now
from esrl_fairseq.start.reading import read_start
from esrl_fairseq.start.source import NONE, RESUMED, find_start

ESRL = "esrl"
INPUTS = 64
"""Of each validation set that the start model is tried on, evenly spread over their lengths."""
TOO_LONG = 0.01
"""Share of references that are longer than samples can be; above it there is a warning."""
JOIN = "reward_post_process"
OF_REWARD = ("reward", "reward_options", "reward_model", "reward_device")
WITHOUT_REWARD = {"reward": "length", **dict.fromkeys(OF_REWARD[1:])}
"""Options of a reward that is always there."""
MEMORY = (
    "lower --max-sampled-tokens, or --batch-size or --max-tokens with a higher --update-freq, or "
    "--num-samples; or choose --bf16"
)


def look_at_training(words: list[str], whole: bool) -> list[Finding]:
    """What is found of a command.

    Args:
        words: those behind ``fairseq-train``.
        whole: whether that stood before them; otherwise what is missing is filled in.
    """
    road = Road()
    with alone(road):
        given = completed(road, words, whole)
        sys.argv = ["fairseq-train", *given]  # fairseq looks there, too
        cfg, known = configuration(road, given)
        if cfg is not None:
            Checkup(road, cfg, known).go()
    return road.findings


class Checkup:
    """Of one training.

    Args:
        road: gets what is found.
        cfg: fairseq's configuration, which writes nothing.
        known: whether it has the model's architecture.
    """

    def __init__(self, road: Road, cfg: Any, known: bool):
        self.road, self.cfg, self.known = road, cfg, known
        self.step = road.step
        self.reward_trained = getattr(cfg.criterion, "_name", "") == ESRL
        self.task: Any = None
        self.model: Any = None
        self.criterion: Any = None

    def go(self) -> None:
        """From the task to the start model's validation."""
        cfg = self.cfg
        utils.set_torch_seed(cfg.common.seed)
        self.task = self.step("data", lambda: tasks.setup_task(cfg.task))
        if self.task is None:
            self.look_at_start_alone()
            return
        if self.known:
            self.model = self.step("model", lambda: self.task.build_model(cfg.model))
        self.build_criterion()
        if not cfg.dataset.disable_validation:
            for subset in cfg.dataset.valid_subset.split(","):
                self.step("validation data", partial(self.task.load_dataset, subset, epoch=1))
        if self.model is None or self.criterion is None:
            train = partial(self.task.load_dataset, cfg.dataset.train_subset, epoch=1, combine=True)
            self.step("training data", train)
            self.look_at_start_alone()
            self.road.add("not looked at", WARNING, "lengths, memory, what the start model gives")
            return
        trainer = self.step(
            "options", lambda: Trainer(cfg, self.task, self.model, self.criterion, None)
        )
        if trainer is not None:
            self.look_at(trainer)

    def look_at_start_alone(self) -> None:
        """Whether it can be read at all."""
        start = self.step("start model", lambda: find_start(self.cfg.checkpoint))
        if start is not None and start.kind != NONE:
            self.step("start model", lambda: read_start(start))

    def build_criterion(self) -> None:
        """As it is given; where it is refused, by parts, so that not only the first fault is found:
        the reward alone, the joining of sub-words alone, all others, and at last the defaults."""
        options = self.cfg.criterion
        self.criterion = self.step("reward", lambda: self.task.build_criterion(options))
        if not self.reward_trained:
            says = f"--criterion {options._name}: what belongs to --criterion esrl is not looked at"
            self.road.add("training", OK, says)
            return
        if self.criterion is not None:
            self.road.fits("reward", self.criterion.scorer.reward.signature())
            return
        given = {name: options[name] for name in options if name != "_name"}
        defaults = vars(CRITERION_DATACLASS_REGISTRY[ESRL]())
        plain = {n: x for n, x in defaults.items() if n in given and not str(x).startswith("${")}
        of_reward = {n: given[n] for n in OF_REWARD}
        no_join, join = {JOIN: "none"}, {JOIN: given[JOIN]}
        self.road.deaf = True
        for others in (
            plain | of_reward | no_join,
            plain | WITHOUT_REWARD | join,
            given | WITHOUT_REWARD | no_join,
            plain | WITHOUT_REWARD | no_join,
        ):
            with open_dict(options):
                options.update(others)
            build = partial(self.task.build_criterion, options)
            self.criterion = self.step("reward", build) or self.criterion
        self.road.deaf = False

    def look_at(self, trainer: Any) -> None:
        """All is built: start model, training data, lengths, memory."""
        task, cfg, what = self.task, self.cfg, "start, options"
        checks = getattr(task, "checks_of_start", None)
        sound = checks is None or self.road.each(what, checks(trainer))
        load_once(trainer)
        self.step("training data", lambda: trainer.get_train_iterator(1))
        loaded = self.load(trainer, sound)
        batches = loaded
        if loaded is None and cfg.dataset.train_subset in task.datasets:
            batches = self.step("training data", lambda: trainer.get_train_iterator(1))
        if batches is None:
            return
        if not cfg.dataset.disable_validation:
            for subset in filter(task.datasets.get, cfg.dataset.valid_subset.split(",")):
                self.step("lengths", partial(trainer.get_valid_iterator, subset))
        self.look_at_lengths(batches)
        self.look_at_memory(trainer, batches)
        run = getattr(task, "run", None)
        if run is None or loaded is None:
            return
        sound = self.road.each("start model", run.checks_when_loaded(loaded))
        if sound and "reward" not in self.road.failed:
            self.try_start(trainer, run, loaded)

    def load(self, trainer: Any, sound: bool) -> Any:
        """The start's parameters, as the training loads them; an iterator over the data.

        Args:
            sound: whether the start passed its checks. If not, only its vocabulary is of interest.
        """
        read = getattr(checkpoint_utils.load_checkpoint, "__wrapped__", None)
        read = read or checkpoint_utils.load_checkpoint
        road, before = self.road, len(self.road.findings)
        found = self.step("start model", lambda: read(self.cfg.checkpoint, trainer))
        if not sound:
            added = road.findings[before:]
            road.findings[before:] = [f for f in added if f.says.startswith(OTHER)]
            return None
        if found is None:
            return None
        start = find_start(self.cfg.checkpoint, trainer.checkpoint_suffix)
        if start.kind == RESUMED:
            says = f"{start.path}: the run goes on after update {trainer.get_num_updates():,}"
            road.fits("start model", says)
        return found[1]

    def look_at_lengths(self, batches: Any) -> None:
        """Lines that the model cannot read are left out of the training; samples have an end."""
        dataset, road = self.task.datasets[self.cfg.dataset.train_subset], self.road
        number = len(dataset)
        kept = sum(map(len, getattr(batches, "frozen_batches", ()))) or number
        if kept < number:
            says = (
                f"{number - kept:,} of {number:,} training lines are longer than what the model "
                "reads, and are left out"
            )
            mend = (
                "raise --max-source-positions and --max-target-positions (with learned positions "
                "the model has to have them), cut them by --truncate-source, or leave them out"
            )
            road.add("lengths", WARNING, says, mend)
        options, sizes = getattr(self.task, "options", None), getattr(dataset, "tgt_sizes", None)
        if options is not None and sizes is not None:
            most = options.sample_max_len_a * np.asarray(dataset.src_sizes)
            share = float((np.asarray(sizes) > most + options.sample_max_len_b + 1).mean())
            if share > TOO_LONG:
                says = f"{share:.0%} of the references are longer than samples can be"
                road.add("lengths", WARNING, says, "raise --sample-max-len-a or --sample-max-len-b")
        sources = np.asarray(dataset.src_sizes)
        says = f"{number:,} training inputs of up to {int(sources.max()):,} tokens"
        road.fits("lengths", says)

    def look_at_memory(self, trainer: Any, batches: Any) -> None:
        """What the run takes, by the estimate that it begins with, and what there is."""
        if not self.reward_trained:
            return
        road, sizes = self.road, getattr(batches, "frozen_batches", ())
        found = self.step("memory needed", lambda: estimate(trainer, unwrap(trainer.model), sizes))
        if found is None:
            return
        there = free_memory()
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
            there = torch.cuda.mem_get_info()[0] + torch.cuda.memory_allocated()
        says = found.words.removeprefix("memory, estimated: ")
        if there is not None and found.least > there:
            road.add("memory needed", WARNING, f"{says}; {there / 1e9:.1f} GB are free", MEMORY)
        else:
            road.fits("memory needed", says)

    def try_start(self, trainer: Any, run: Any, batches: Any) -> None:
        """Validate the start model on some inputs, and judge it as the training does."""
        road, cfg = self.road, self.cfg
        if cfg.dataset.disable_validation:
            self.step("start model", lambda: check_counts(self.task.rl.corpus.missing))
            return
        severity = self.criterion.cfg.check_start
        if run.start.kind in (NONE, RESUMED) or severity == OFF:
            road.fits("start model", f"{run.start.path or 'random weights'}: not tried")
            return
        spread(trainer)
        if self.step("start model", lambda: (validate_now(trainer, batches),)) is None:
            return
        self.step("start model", lambda: run.judge_start(severity))
        stats = {name: run.stats[name] for name in ("reward", "ppl") if name in run.stats}
        given = ", ".join(f"{name} {float(value):.4g}" for name, value in stats.items())
        road.fits("start model", f"{run.start.path}: {given}, on up to {INPUTS} validation inputs")
        parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        inputs = len(self.task.datasets[cfg.dataset.train_subset])
        lines = summary(trainer, run.start.path, parameters, inputs)[:-1]
        road.add("training", OK, "; ".join(lines))


def load_once(trainer: Any) -> None:
    """Have the trainer read the first shard of the training data once."""
    stock, task, subset = trainer.get_train_iterator, trainer.task, trainer.cfg.dataset.train_subset

    def get_train_iterator(epoch: int, load_dataset: bool = True, **keywords: Any) -> Any:
        load_dataset = load_dataset and (epoch != 1 or subset not in task.datasets)
        return stock(epoch, load_dataset=load_dataset, **keywords)

    trainer.get_train_iterator = get_train_iterator


def spread(trainer: Any) -> None:
    """Have the trainer validate on some inputs of each set, from the shortest to the longest."""
    stock = trainer.get_valid_iterator

    def get_valid_iterator(subset: str, *given: Any, **keywords: Any) -> Any:
        whole = stock(subset, *given, **keywords)  # which refuses inputs that are too long
        ids = np.concatenate([np.asarray(batch) for batch in whole.frozen_batches])
        chosen = ids[np.unique(np.linspace(0, len(ids) - 1, INPUTS).astype(int))]
        size = max(map(len, whole.frozen_batches))
        batches = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        dataset = trainer.task.dataset(subset)
        return EpochBatchIterator(dataset, dataset.collater, batches)

    trainer.get_valid_iterator = get_valid_iterator
