"""Every shim for the versions we run on, each with its reason and when it can go."""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import inspect
import sys
import types
from typing import Any, Callable, NoReturn

import numpy as np
import torch
from fairseq import checkpoint_utils, options
from fairseq.distributed import utils as distributed_utils
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode


def allow_fairseq_checkpoints() -> None:
    """Let ``torch.load`` read fairseq checkpoints with its safe loader.

    Reason: torch ≥ 2.6 loads with ``weights_only=True``. fairseq checkpoints hold an
    ``argparse.Namespace``, those of runs with ``--eval-bleu`` NumPy arrays and numbers, and with
    several ranks the first one sends the others the checkpoint with its configuration. Naming
    these classes, which are plain data, keeps the safe loader on.
    Remove when: fairseq saves and broadcasts checkpoints without them, or registers them itself.
    """
    configuration = [DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, Any]
    containers = [argparse.Namespace, collections.defaultdict, dict, list, int]
    tensors = [distributed_utils._TensorPlaceholder]
    torch.serialization.add_safe_globals([*configuration, *containers, *tensors, *_numpy()])


def _numpy() -> list[Any]:
    """What pickles of arrays and numbers name; the functions have other places in NumPy 1."""
    numbers = (np.int64(0), np.float64(0))
    functions = {value.__reduce__()[0] for value in (np.zeros(0), *numbers)}
    return [np.ndarray, np.dtype, *(type(number.dtype) for number in numbers), *functions]


def give_numpy_long_back() -> None:
    """Let fairseq's language modeling read one sentence a sample (``--sample-break-mode eos``).

    Reason: fairseq's ``TokenBlockDataset`` asks for ``numpy.compat.long``, ``int`` on Python 3,
    which numpy 2 no longer has.
    Remove when: fairseq asks for ``int``.
    """
    if not hasattr(np, "compat"):
        setattr(np, "compat", types.SimpleNamespace(long=int))  # noqa: B010 (numpy is typed)


def saves_task_state() -> bool:
    """Whether this fairseq keeps a task's state in its checkpoints.

    Reason: ``get_checkpoint_dict`` came to fairseq after some 0.12 releases; without it a resumed
    run would begin with an empty queue and store.
    Remove when: no supported fairseq lacks it.
    """
    return "get_checkpoint_dict" in inspect.getsource(checkpoint_utils.save_checkpoint)


def forget_casts() -> None:
    """After a pass without graph under ``--amp``: let the next pass cast the weights anew.

    Reason: torch's autocast keeps the half-precision copies of weights. Before late 2025 it also
    kept copies made without a graph, through which the weights would get no gradient.
    Remove when: no supported torch does so.
    """
    torch.clear_autocast_cache()


def tell_tasks_of_the_start() -> None:
    """Call a task's ``before_loading`` and ``after_loading`` around the loading of the checkpoint
    that a training starts from, on every rank.

    Reason: fairseq has no hook between building and training. Only there are the whole
    configuration, the model and the start's checkpoint known, and nothing is lost yet.
    Remove when: fairseq gives tasks such a hook.
    """
    load = checkpoint_utils.load_checkpoint
    if getattr(load, "tells_tasks", False):
        return

    @functools.wraps(load)
    def load_checkpoint(cfg: Any, trainer: Any, **keywords: Any) -> Any:
        if not hasattr(trainer.task, "before_loading"):
            return load(cfg, trainer, **keywords)
        trainer.task.before_loading(trainer)
        extra_state, epoch_itr = load(cfg, trainer, **keywords)
        trainer.task.after_loading(trainer, epoch_itr)
        return extra_state, epoch_itr

    load_checkpoint.tells_tasks = True  # type: ignore[attr-defined]
    checkpoint_utils.load_checkpoint = load_checkpoint


def extend_parsing(
    from_start: Callable[[argparse.Namespace], dict[str, Any]],
    explain: Callable[[str, argparse.ArgumentParser, dict[str, Any]], str],
) -> None:
    """Let what a command starts from have a say when its options are parsed, and word its errors.

    Reason: without ``--arch`` fairseq ends in an empty RuntimeError; it has no hook between the
    import of the user directory and that. argparse's errors come after hundreds of lines of usage.
    Remove when: fairseq takes the architecture of a checkpoint itself.

    Args:
        from_start: defaults of options, from those that are known before the architecture is.
        explain: argparse's message to ours, for a parser and the values of its options.
    """
    parse = options.parse_args_and_arch
    if getattr(parse, "extended", False):
        return

    @functools.wraps(parse)
    def parse_args_and_arch(
        parser: argparse.ArgumentParser,
        input_args: Any = None,
        *positional: Any,
        modify_parser: Any = None,
        **keywords: Any,
    ) -> Any:
        chosen: dict[str, Any] = {}
        defaults: dict[str, Any] = {}

        def error(message: str) -> NoReturn:
            parser.exit(2, f"{parser.prog}: error: {explain(message, parser, chosen)}\n")

        def modify(parser: argparse.ArgumentParser) -> None:
            if modify_parser is not None:
                modify_parser(parser)
            parser.set_defaults(**defaults)

        parser.error = error  # type: ignore[method-assign]
        modify(parser)
        given, _ = parser.parse_known_args(input_args)
        defaults.update(from_start(given))
        chosen.update(vars(given), **defaults)
        return parse(parser, input_args, *positional, modify_parser=modify, **keywords)

    parse_args_and_arch.extended = True  # type: ignore[attr-defined]
    options.parse_args_and_arch = parse_args_and_arch


MOVED = {
    "generation": "sampling.generation",
    "steps": "sampling.steps",
    "conditioning": "sampling.conditioning",
    "standard": "rescoring.standard",
    "recompute": "rescoring.recompute",
    "frozen": "rescoring.frozen",
    "scoring": "rewards.scorer",
    "text": "data.text",
    "references": "data.references",
    "capability": "state.capability",
    "replay": "state.replay",
    "logs": "monitoring.logs",
    "monitor": "monitoring.warnings",
}


def keep_old_names() -> None:
    """Let ``import esrl_fairseq.generation`` and the like find the modules where they are now.

    Reason: until November 2026 they lay beside this file, and scripts of users import them there.
    Remove when: version 0.2 is out.
    """
    package = __name__.rpartition(".")[0]
    for old, new in MOVED.items():
        sys.modules[f"{package}.{old}"] = importlib.import_module(f"{package}.{new}")


def apply() -> None:
    """Apply every shim that has to come first; harmless when repeated."""
    allow_fairseq_checkpoints()
    give_numpy_long_back()
    tell_tasks_of_the_start()
