"""What CUDA does with an operation: which tensors it takes, and what it costs the host.

Known from the sources of torch's CUDA back end, for the pretended device (pretended_device.py),
which has no kernels that could be counted. An operation that needs any is one launch, however many
they are.
"""

from __future__ import annotations

import collections
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACKAGE = str(Path(__file__).resolve().parents[1] / "esrl_fairseq") + os.sep
OWN = {__file__, str(Path(__file__).with_name("pretended_device.py"))}
OnDevice = Callable[[Any], bool]
"""Whether something is a tensor of the device."""


@functools.cache
def name_of(func: Any) -> str:
    """Of an operation of ATen, without its overload."""
    return func._schema.name.split("::")[1]


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Those that an operation is given, alone or in lists."""
    found = []
    for value in (*args, *kwargs.values()):
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(x, torch.Tensor):
                found.append(x)
    return found


def each(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """With every tensor changed, in any nesting of lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: each(change, x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each(change, x) for x in value)
    return value


class Cost(NamedTuple):
    """Numbers of one operation, or of many.

    Attributes:
        launches: operations that run at least one kernel.
        syncs: times that the host waits for the device.
        to_device, to_host: copies between the two.
        rng: calls that read or write the state of the device's random numbers.
        views: operations that run no kernel.
    """

    launches: int = 0
    syncs: int = 0
    to_device: int = 0
    to_host: int = 0
    rng: int = 0
    views: int = 0


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return Cost(*map(sum, zip(Cost(), *costs)))


class Event(NamedTuple):
    """An operation that was counted: its name, cost, line of the package, and part of the work."""

    name: str
    cost: Cost
    line: str
    part: str


def summed(events: list[Event], key: str) -> dict[str, Cost]:
    """Sums by ``line``, ``part`` or ``name`` of the events, most launches first."""
    groups = collections.defaultdict(list)
    for event in events:
        groups[getattr(event, key)].append(event.cost)
    sums = {name: total(costs) for name, costs in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: item[1], reverse=True))


def line() -> str:
    """The innermost line of the package, or else the innermost one outside of torch."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        file = _shown(frame.f_code.co_filename)
        if file and (file[0] != "/" or not other):
            found = f"{file.lstrip('/')}:{frame.f_lineno} {frame.f_code.co_name}"
            if file[0] != "/":
                return found
            other = found
        frame = frame.f_back
    return other or "autograd"


@functools.cache
def _shown(file: str) -> str:
    """A file of the package from there on, of others the name behind a slash, and of torch none."""
    if file.startswith(PACKAGE):
        return file[len(PACKAGE) :]
    if file in OWN or file.startswith("<") or f"{os.sep}torch{os.sep}" in file:
        return ""
    return f"/{os.path.basename(file)}"


WHOLE = {"scaled_dot_product_attention"}
"""Operations of several steps that are one kernel on a GPU."""


@functools.cache
def is_decomposed(func: Any) -> bool:
    """Whether it is several operations, also on a GPU; without autograd it arrives whole."""
    return name_of(func) not in WHOLE and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )


COPIES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
NO_KERNEL = set(
    "empty empty_like new_empty empty_strided new_empty_strided detach detach_ alias lift "
    "lift_fresh _unsafe_view _reshape_alias set_ resize_ squeeze_ unsqueeze_ transpose_ t_ "
    "as_strided_ unsafe_split unsafe_chunk _fused_sdp_choice is_same_size is_pinned".split()
)
"""Allocations and metadata, beside the operations that torch calls views."""
SYNCS = {
    "equal": 1,
    "nonzero": 1,
    "masked_select": 1,
    "_unique": 1,
    "_unique2": 1,
    "unique_consecutive": 1,
    "unique_dim": 3,
    "unique_dim_consecutive": 2,
    "bincount": 2,
    "repeat_interleave": 1,
    "_nested_tensor_from_mask_left_aligned": 1,
}
"""Waits within an operation: what it gives has a size that the device has to tell."""


def cost_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: OnDevice) -> Cost:
    """The cost of ``func(*args, **kwargs)``.

    Args:
        func: an operation of ATen.
    """
    name = name_of(func)
    if name in COPIES:
        return _cost_of_copy(name, args, kwargs, on_device)
    if name == "_local_scalar_dense":  # .item()
        return Cost(syncs=1, to_host=1)
    if func.is_view or name in NO_KERNEL:
        return Cost(views=1)
    if name in INDEXING:
        return _cost_of_indexing(name, args, on_device)
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return Cost(launches=1)
    return Cost(launches=1, syncs=SYNCS.get(name, 0))


def _cost_of_copy(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: OnDevice
) -> Cost:
    """Of ``_to_copy(source, device=…)`` or ``copy_(target, source)``."""
    if name == "copy_":
        source, target, waits = args[1], on_device(args[0]), not (len(args) > 2 and args[2])
    else:
        source, waits = args[0], not kwargs.get("non_blocking")
        device = kwargs.get("device")
        target = on_device(source) if device is None else torch.device(device).type != "cpu"
    if on_device(source) and target:
        return Cost(launches=1)
    if target:
        return Cost(syncs=int(waits), to_device=1)
    # Another type is made on the device first.
    converts = name == "_to_copy" and kwargs.get("dtype") not in (None, source.dtype)
    return Cost(launches=int(converts), syncs=int(waits), to_host=1)


def _cost_of_indexing(name: str, args: tuple[Any, ...], on_device: OnDevice) -> Cost:
    """Masks become places, whose number the device has to tell; indices of the host are copied."""
    indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
    masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
    from_host = [x for x in indices if not on_device(x)]
    values = args[2] if len(args) > 2 else None
    accumulates = len(args) > 3 and args[3]
    one_value = isinstance(values, torch.Tensor) and values.numel() == 1
    if len(indices) == len(masks) == 1 and one_value and not accumulates:  # x[mask] = value
        masks = []
    return Cost(1, len(masks) + len(from_host), to_device=len(from_host))


class Mixed(RuntimeError):
    """What CUDA would refuse."""


SCALARS_OF_THE_HOST = set(
    "where masked_fill masked_fill_ fill_ full_like index_fill index_fill_ lerp addcmul addcdiv "
    "addcmul_ addcdiv_ _foreach_mul _foreach_mul_ _foreach_add_ _foreach_div_".split()
)
"""Operations that take 0-dimensional CPU tensors, beside those that torch calls pointwise."""
LENGTHS_OF_THE_HOST = {"_pack_padded_sequence", "_pad_packed_sequence"}


def refuse_mixing(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: OnDevice
) -> None:
    """For an operation with tensors of the device.

    Raises:
        Mixed: it has tensors of the host that CUDA does not take.
    """
    name = name_of(func)
    host = [x for x in tensors_of(args, kwargs) if not on_device(x)]
    if not host or name in COPIES or name in LENGTHS_OF_THE_HOST:
        return
    if name in INDEXING:  # indices may be anywhere
        values = args[2] if len(args) > 2 else args[0]
        if not on_device(args[0]) or (not on_device(values) and values.dim()):
            raise Mixed(f"{name}: of a CPU tensor with device tensors")
        return
    takes_scalars = torch.Tag.pointwise in func.tags or name in SCALARS_OF_THE_HOST
    for x in host:
        if x.dim() or not takes_scalars:
            raise Mixed(f"{name}: a CPU tensor {tuple(x.shape)} with device tensors")
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            if any(x is target for x in host):
                raise Mixed(f"{name}: writes device values into a CPU tensor")


# Operations that no CPU has


def _lstm_cell(gates, hidden_gates, cx, b_ih=None, b_hh=None):
    gates = gates + hidden_gates + (0 if b_ih is None else b_ih + b_hh)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(grad_hy, grad_cy, cx, cy, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    t = cy.tanh()
    grad_hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    c = grad_hy * o * (1 - t * t) + (0 if grad_cy is None else grad_cy)
    gates = [c * g * i * (1 - i), c * cx * f * (1 - f), c * i * (1 - g * g)]
    gates = torch.cat([*gates, grad_hy * t * o * (1 - o)], 1)
    return gates, c * f, gates.sum(0) if has_bias else torch.zeros(0)


ONLY_ON_GPUS: dict[str, Callable[..., Any]] = {
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
}
