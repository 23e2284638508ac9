"""Training and eval mode of a model's modules, for one stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training or eval mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def training_mode(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Switch dropout; modes are restored at the end.

    A recurrent module stays in training mode with its dropout at 0: cuDNN refuses to
    differentiate one in eval mode. Layers of ``--checkpoint-activations`` keep their activations
    within: backward would compute them again in the restored mode, and fairseq's checkpoints refuse
    the ``autograd.grad`` of :func:`recomputed`, which bounds what is kept already.
    """
    recurrent = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    rates = [m.dropout for m in recurrent]
    checkpointed: dict[Any, Any] = {
        m: m.forward for m in model.modules() if hasattr(m, "precheckpoint_forward")
    }
    with kept_modes(model):
        model.train(dropout)
        for module in recurrent:
            module.train()
            module.dropout = module.dropout if dropout else 0.0
        for layer in checkpointed:
            layer.forward = layer.precheckpoint_forward
        try:
            yield
        finally:
            for module, rate in zip(recurrent, rates):
                module.dropout = rate
            for layer, forward in checkpointed.items():
                layer.forward = forward
