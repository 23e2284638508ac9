"""The head of a fairseq checkpoint, and one sentence for whatever file is none."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from esrl_fairseq.checkpoints.configuration import refuse_code
from esrl_fairseq.checkpoints.reading import ANOTHER, check_file, is_archive, why_not_loaded
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.source import RESUMED, Start

AFRESH = "go on from another of its checkpoints with --restore-file, or choose another --save-dir"
"""How to mend a file that is none, of the run's own; :data:`ANOTHER` of any other."""


@dataclass
class Checkpoint:
    """What a checkpoint says beside its parameters.

    Attributes:
        cfg: the whole configuration of its training, with ``model`` and ``task``; also of old
            checkpoints, which hold ``args``.
        extra_state: fairseq's, where tasks keep theirs.
        shapes: of the model's tensors by their names, as they lie in the file.
        optimized: names of the classes of criterion and optimizer whose state it holds; empty
            where it holds none.
    """

    path: str
    cfg: Any
    extra_state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    optimized: tuple[str, ...] = ()


def read_checkpoint(path: str, named: str, mend: str = ANOTHER) -> Checkpoint:
    """Read all but the parameters, which stay on the disk where torch can map the file.

    Args:
        named: what names the file, for messages: an option, or what it is for.
        mend: what to do where it is none.

    Raises:
        EsrlError: there is no such file, it is no checkpoint of fairseq, or its configuration holds
            code.
    """
    check_file(path, named, mend)
    local = PathManager.get_local_path(path)
    try:
        state = torch.load(local, map_location="cpu", weights_only=True, mmap=is_archive(local))
    except Exception as error:  # whatever a damaged file leads to
        raise EsrlError(f"{named} {path} {why_not_loaded(error)}: {mend}") from error
    problem = look_into(state)
    if problem:
        raise EsrlError(f"{named} {path} {problem}: {mend}")
    refuse_code(path, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
    try:
        if isinstance(state.get("cfg"), dict):
            state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        state = checkpoint_utils._upgrade_state_dict(state)
    except Exception as error:  # it is for whole checkpoints
        problem = f"lacks what fairseq goes on from ({type(error).__name__}: {error})"
        raise EsrlError(f"{named} {path} {problem}: {mend}") from error
    # A copy, since the file may be written over.
    extra_state = copy.deepcopy(state["extra_state"])
    return Checkpoint(path, state["cfg"], extra_state, shapes, optimized_by(state))


def optimized_by(state: dict[str, Any]) -> tuple[str, ...]:
    """See :class:`Checkpoint`."""
    history = state.get("optimizer_history")
    if not history or state.get("last_optimizer_state") is None:
        return ()
    return history[-1]["criterion_name"], history[-1]["optimizer_name"]


def read_start(start: Start) -> Checkpoint:
    """The checkpoint that a run starts from; see :func:`read_checkpoint`."""
    if start.kind == RESUMED:
        return read_checkpoint(start.path, "the last checkpoint of this run,", AFRESH)
    return read_checkpoint(start.path, start.option)


def look_into(state: Any) -> str:
    """What a loaded file holds if it is no checkpoint of fairseq; empty if it is one."""
    if not isinstance(state, dict):
        return f"is no checkpoint of fairseq but holds a {type(state).__name__}"
    if state and are_tensors(state):
        return (
            f"holds weights alone ({next(iter(state))}, …) without the options of their model (a "
            "model of Hugging Face is for --hf-model)"
        )
    options = state.get("cfg") or state.get("args")
    missing = [] if are_tensors(state.get("model")) else ["parameters (model)"]
    missing += [] if options is not None else ["options (cfg or args)"]
    return f"is no checkpoint of fairseq: it has no {' and no '.join(missing)}" if missing else ""


def are_tensors(state: Any) -> bool:
    """Whether it is a dictionary of nothing but tensors."""
    return isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
