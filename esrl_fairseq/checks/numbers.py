"""NaN and infinity: which parameter, gradient or input has them.

Nothing here is asked for in an update that goes well: what fairseq and the logs read anyway tells
that something is wrong, and only then the culprit is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.errors import EsrlError


class NotFinite(EsrlError):
    """Something of an update, or of a validation, is NaN or infinite."""


def first_not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str:
    """The first of them that has NaN or infinity, with what it has; empty if none has."""
    for name, tensor in tensors:
        if tensor is not None and not bool(tensor.detach().isfinite().all()):
            finite = tensor.detach().isfinite()
            kind = "NaN" if bool(tensor.detach().isnan().any()) else "infinity"
            half = "" if tensor.dtype == torch.float32 else f" in {str(tensor.dtype)[6:]}"
            number, size = int((~finite).sum()), tensor.numel()
            return f"{name} holds {kind}{half} ({number:,} of {size:,} values)"
    return ""


def bad_parameter(model: Any) -> str:
    """See :func:`first_not_finite`, of a model's parameters; not wrapped."""
    return first_not_finite(model.named_parameters())


def bad_gradient(model: Any) -> str:
    """Of its parameters' gradients."""
    return first_not_finite((name, p.grad) for name, p in model.named_parameters())


def largest_parameter(model: Any) -> str:
    """The one that reaches furthest, with how far."""
    reach = {name: float(p.detach().abs().max()) for name, p in model.named_parameters()}
    name = max(reach, key=lambda name: reach[name])
    return f"{name} reaches {reach[name]:.3g}"


def refuse_bad_parameters(model: Any, what: str) -> None:
    """Refuse a model that has been loaded with NaN or infinity.

    Args:
        model: not wrapped.
        what: where it comes from, for the message.

    Raises:
        EsrlError: naming the parameter.
    """
    found = bad_parameter(model)
    if found:
        raise EsrlError(
            f"the parameters of {what} are not all numbers: {found}; take an earlier checkpoint"
        )


def one_line(error: Exception) -> str:
    """Of what fairseq says, in one line, as a part of ours."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def loss_scale(optimizer: Any) -> float:
    """That of ``--amp``, which falls where a step is skipped; otherwise 1."""
    scaler = getattr(optimizer, "scaler", None)
    return scaler.get_scale() if isinstance(scaler, torch.amp.GradScaler) else 1.0
