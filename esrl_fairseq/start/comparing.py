"""Refusals of a start model with another architecture than the run's."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fairseq.dataclass.configs import CheckpointConfig
from torch import nn

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.architecture import IMPLIED, model_class, name_of, options_of, same
from esrl_fairseq.start.dictionary import check_dictionaries
from esrl_fairseq.start.freezing import refuse_other_parts
from esrl_fairseq.start.reading import Checkpoint, read_checkpoint, read_start
from esrl_fairseq.start.source import NONE, RESUMED, Start, find_start

logger = logging.getLogger(__name__)

MAY_DIFFER = re.compile(
    # in training alone
    "drop|quant_noise|checkpoint_activations|offload_activations|min_params_to_wrap|freez|mask_"
    "|reg_scale_factor|loss_factor|hf_attention|export|"
    # before training alone, or of other outputs than words
    "embed_path|pretrained|bert_init|pooler|classification_head|alignment|"
    # how much the model reads, which its tensors tell where they depend on it; where it lies
    "positions$|hf_model|layers_to_keep"
)
"""Names of options that do not change what a model's parameters compute."""

OWN_VALUES = (
    "give the checkpoint's values, or, on a command line, neither --arch nor its options: then "
    "they are taken from there"
)
OTHER_REFERENCE = "give the checkpoint of a model with the run's architecture"


Check = Callable[[], None]
"""Refuses something by an EsrlError, or does nothing."""


def checks_of_start(trainer: Any, ignore: str = "^$") -> Iterator[Check]:
    """What refuses checkpoints of another architecture or other words: that which the run starts
    from, and ``--kl-reference``; and has the model refuse other tensors when it is loaded.

    Each can be made whether those before it passed or not.

    Args:
        trainer: of fairseq, before it loads a checkpoint.
        ignore: pattern of options that the run's model does not use.

    Raises:
        EsrlError: a file is no checkpoint. (The checks raise it where its options differ, and list
            them.)
    """
    cfg, task = trainer.cfg, trainer.task
    yield partial(refuse_two_starts, cfg.checkpoint)
    start = find_start(cfg.checkpoint, trainer.checkpoint_suffix)
    if start.kind != NONE and is_here(start.path, trainer):
        checkpoint = read_start(start)
        named = f"{start.option or 'the last checkpoint of this run,'} {start.path}"
        yield partial(check_architecture, cfg.model, checkpoint, OWN_VALUES, ignore)
        yield partial(check_words, task, named, checkpoint)
        yield partial(refuse_state_of_another_training, trainer, start, checkpoint)
        if not trainer.is_fsdp:  # whose tensors are pieces
            yield partial(refuse_other_tensors, trainer.get_model(), start.path)
    reference = getattr(cfg.criterion, "kl_reference", None)
    if reference and reference != start.path and is_here(reference, trainer):
        checkpoint = read_checkpoint(reference, "--kl-reference")
        yield partial(check_architecture, cfg.model, checkpoint, OTHER_REFERENCE, ignore)
        yield partial(check_words, task, f"--kl-reference {reference}", checkpoint)


def check_words(task: Any, named: str, checkpoint: Checkpoint) -> None:
    """See :func:`~esrl_fairseq.start.dictionary.check_dictionaries`."""
    check_dictionaries(task, named, checkpoint.cfg.task, checkpoint.extra_state)


def refuse_state_of_another_training(trainer: Any, start: Start, checkpoint: Checkpoint) -> None:
    """Refuse to go on with an optimizer that another criterion, or another kind, has left.

    Raises:
        EsrlError: naming both, and how to start from the parameters alone.
    """
    fresh = start.option == "--finetune-from-model" or trainer.cfg.checkpoint.reset_optimizer
    if fresh or trainer.is_fsdp:
        return
    own = type(trainer.get_criterion()).__name__, type(trainer.optimizer).__name__
    if not checkpoint.optimized:
        return
    if checkpoint.optimized == own:
        what = f"{start.option or 'the last checkpoint in --save-dir,'} {start.path}"
        refuse_other_parts(trainer.cfg.criterion, checkpoint.cfg.criterion, what)
        return
    there, here = next(pair for pair in zip(checkpoint.optimized, own) if pair[0] != pair[1])
    if start.kind == RESUMED:
        mend = "choose another --save-dir, and start from it with --finetune-from-model"
    else:
        mend = "start from its parameters alone, with --finetune-from-model in place of that option"
    raise EsrlError(
        f"{start.option or 'the last checkpoint in --save-dir,'} {start.path} was trained with "
        f"{there}, but this run has {here}: {mend}"
    )


def refuse_two_starts(cfg: Any) -> None:
    """Refuse what fairseq does, in a sentence.

    Args:
        cfg: ``cfg.checkpoint``.

    Raises:
        EsrlError: naming the options that do not go together.
    """
    if cfg.finetune_from_model is None:
        return
    if cfg.restore_file != CheckpointConfig.restore_file:
        raise EsrlError(
            "--finetune-from-model and --restore-file both name a start model: give one of them"
        )
    resets = ("optimizer", "lr_scheduler", "meters", "dataloader")
    given = [f"--reset-{x.replace('_', '-')}" for x in resets if getattr(cfg, f"reset_{x}")]
    if given:
        raise EsrlError(f"--finetune-from-model resets all there is: leave out {' '.join(given)}")


def is_here(path: str, trainer: Any) -> bool:
    """Whether this rank reads the file: fairseq reads it on the first, others may not have it."""
    return trainer.data_parallel_rank == 0 or os.path.exists(path)


def check_architecture(options: Any, checkpoint: Checkpoint, mend: str, ignore: str) -> None:
    """Refuse a checkpoint whose options of the architecture differ from a run's.

    Args:
        options: ``cfg.model`` of the run.

    Raises:
        EsrlError: with the list of those that change what the parameters compute.
    """
    here, there = options_of(options), options_of(checkpoint.cfg.model)
    arch, other = name_of(options), name_of(checkpoint.cfg.model)
    if not here or not there:
        logger.warning(
            "%s is of --arch %s, whose options cannot be compared with those of --arch %s here",
            *(checkpoint.path, other, arch),
        )
        return
    if not related(model_class(arch), model_class(other)):
        raise EsrlError(f"--arch is {arch} here but {other} in {checkpoint.path}: {mend}")
    changing, harmless = differences(here, there, ignore)
    if changing:
        raise EsrlError(f"{listed(changing, checkpoint.path)}: {mend}")
    if harmless:
        logger.info("options that differ, as they may: %s", listed(harmless, checkpoint.path))


def related(one: Any, other: Any) -> bool:
    """Whether one class of models is a kind of the other."""
    return issubclass(one, other) or issubclass(other, one)


def differences(
    here: dict[str, Any], there: dict[str, Any], ignore: str = "^$"
) -> tuple[list[str], list[str]]:
    """Options that differ, in words: those that change what the parameters compute, and others."""
    differing = [name for name in here if name in there and not same(here[name], there[name])]
    implied = {IMPLIED.get(name) for name in differing}
    found: tuple[list[str], list[str]] = ([], [])
    for name in differing:
        if name in implied or re.search(ignore, name):
            continue
        pruned = here.get(f"{name}_to_keep")  # fairseq leaves out the checkpoint's other layers
        may_differ = MAY_DIFFER.search(name) or pruned
        option = f"--{name.replace('_', '-')}"
        text = f"{option} is {in_words(here[name])} here but {in_words(there[name])}"
        found[bool(may_differ)].append(text)
    return found


def listed(found: list[str], where: str) -> str:
    """The options that differ from the checkpoint's; its path comes once."""
    return "; ".join([f"{found[0]} in {where}", *(f"{text} there" for text in found[1:])])


def in_words(value: Any) -> str:
    """An option's value; flags are on or off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


def refuse_other_tensors(model: nn.Module, what: str) -> None:
    """Have ``model`` refuse parameters of other names or shapes, once it has looked at all of them.

    It is a plain ``SystemExit``, for the reason that checks/vocabulary.py has.

    Args:
        what: what is loaded, for the message.
    """
    given: dict[str, tuple[int, ...]] = {}

    def remember(_module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        given.update({name: tuple(tensor.shape) for name, tensor in state.items()})

    def refuse(module: nn.Module, names: Any) -> None:
        own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        problems = [f"{name} is here alone" for name in names.missing_keys]
        problems += [f"{name} is there alone" for name in names.unexpected_keys]
        problems += [
            f"{name} is {list(own[name])} here but {list(shape)} there"
            for name, shape in given.items()
            if name in own and own[name] != shape
        ]
        if problems:
            raise SystemExit(tensors_differ(what, problems))

    model.register_load_state_dict_pre_hook(remember)
    model.register_load_state_dict_post_hook(refuse)


def tensors_differ(what: str, problems: list[str]) -> str:
    """The sentence, with the first few."""
    first, others = "; ".join(problems[:3]), len(problems) - 3
    more = f" (and {others} more)" if others > 0 else ""
    mend = OWN_VALUES
    if any("embed_positions" in problem for problem in problems):
        mend += "; lengths of learned positions are --max-source-positions, --max-target-positions "
        mend += "and, of language models, --tokens-per-sample"
    return f"the parameters of {what} do not fit this run's model: {first}{more}: {mend}"
