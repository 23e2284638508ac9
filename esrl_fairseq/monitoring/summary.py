"""A few lines at the start of a run: what is trained, from what, on what, with which options."""

from __future__ import annotations

import dataclasses
from typing import Any

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from esrl_fairseq.monitoring.memory import memory_line
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.sampling.options import PromptConfig, SamplingConfig, elimination_ratio


def summary(
    trainer: Any, start: str, parameters: int, inputs: int, epoch_itr: Any = None
) -> list[str]:
    """Lines for a person.

    Args:
        trainer: fairseq's, whose task samples and whose criterion is ``esrl``.
        start: what the run starts from, in words.
        parameters: of the model that are trained.
        inputs: of the (first shard of the) training data.
        epoch_itr: over these.
    """
    cfg, task, criterion = trainer.cfg, trainer.task, trainer.get_criterion()
    options = task.options
    languages = " → ".join(language for language in task.languages if language)
    lines = [
        f"trains {cfg.model._name} ({parameters:,} parameters) from {start}",
        f"on {inputs:,} inputs of {cfg.task.data} ({languages})",
        f"objective {criterion.cfg.objective}; {samples(options)}; reward baseline "
        f"{criterion.cfg.reward_baseline}",
    ]
    given = given_options(cfg)
    if given:
        lines.append(f"options in force beside the defaults: {' '.join(given)}")
    batches = getattr(epoch_itr, "frozen_batches", ())  # of a stream not known
    lines.append(memory_line(trainer, unwrap(trainer.model), batches))
    return lines


def data_of(task: Any) -> dict[str, Any]:
    """What tells the data of a run from others: languages, inputs of each split, the beginning of
    the training data's fingerprint."""
    return {
        "languages": [language for language in task.languages if language],
        "sizes": {split: len(dataset) for split, dataset in task.datasets.items()},
        "fingerprint": task.rl.store.fingerprint[:32],
    }


def samples(options: Any) -> str:
    """How many samples an input gets, in words."""
    most, beta = options.num_samples, elimination_ratio(options)
    if options.capability == "none" or beta == 0:
        return f"{most} samples an input"
    if beta is None:
        return f"up to {most} samples an input, fewer where its rewards differ less"
    return f"up to {most} samples an input, fewer for the most capable (--elimination-ratio {beta})"


def given_options(cfg: Any) -> list[str]:
    """Options of ours that differ from their defaults, as they are typed."""
    criterion, task = (
        CRITERION_DATACLASS_REGISTRY["esrl"],
        TASK_DATACLASS_REGISTRY.get(cfg.task._name),
    )
    given = changed(cfg.criterion, criterion(), names(criterion))
    if task is not None:  # some of fairseq's have none, and no option of ours
        given += changed(cfg.task, task(), names(SamplingConfig) + names(PromptConfig))
    return given


def names(config: Any) -> list[str]:
    """Of the options of a dataclass."""
    return [field.name for field in dataclasses.fields(config) if field.name != "_name"]


def changed(values: Any, defaults: Any, options: list[str]) -> list[str]:
    """Those of some options that differ from their defaults."""
    found = []
    for name in options:
        default = getattr(defaults, name, None)
        if str(default).startswith("${"):  # of another part of the configuration
            continue
        value = getattr(values, name, default)
        if value != default:
            option = "--" + name.removesuffix("_mode").replace("_", "-")
            found.append(option if value is True else f"{option} {value}")
    return found
