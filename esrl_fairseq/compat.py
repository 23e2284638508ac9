"""Every shim for the versions we run on, each with its reason and when it can go."""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.util
import inspect
import sys
import types
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils
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


def hide_torchaudio_that_does_not_load() -> None:
    """Let transformers be imported where torchaudio is installed but does not load.

    Reason: fairseq-fixed asks for torchaudio. On Linux the index's is linked with CUDA, beside a
    torch without CUDA its import fails, and so does that of transformers, which takes what is
    installed for what can be imported. scripts/setup_env.sh makes environments without it; this is
    for others.
    Remove when: fairseq-fixed does without it, or the index's loads without CUDA.
    """
    if importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception:  # OSError of the loader, and whatever else a broken binary leads to
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # to Python: not installed


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
