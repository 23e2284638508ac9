"""Every shim for the versions we run on, each with its reason and when it can go."""

from __future__ import annotations

import argparse
import inspect

import torch
from fairseq import checkpoint_utils


def allow_fairseq_checkpoints() -> None:
    """Let ``torch.load`` read fairseq checkpoints with its safe loader.

    Reason: torch ≥ 2.6 loads with ``weights_only=True``, and fairseq checkpoints hold an
    ``argparse.Namespace``, which is plain data. Naming it keeps the safe loader on.
    Remove when: fairseq saves checkpoints without Namespace, or registers it itself.
    """
    if hasattr(torch.serialization, "add_safe_globals"):  # torch ≥ 2.4
        torch.serialization.add_safe_globals([argparse.Namespace])


def saves_task_state() -> bool:
    """Whether this fairseq keeps a task's state in its checkpoints.

    Reason: ``get_checkpoint_dict`` came to fairseq after some 0.12 releases; without it a resumed
    run would begin with an empty queue and store.
    Remove when: no supported fairseq lacks it.
    """
    return "get_checkpoint_dict" in inspect.getsource(checkpoint_utils.save_checkpoint)


def apply() -> None:
    """Apply every shim; harmless when repeated."""
    allow_fairseq_checkpoints()
