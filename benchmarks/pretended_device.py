"""A device "gpu:0" that does not exist: its tensors are computed on the CPU, but live elsewhere.

It refuses to mix host and device tensors as CUDA does, and counts what costs a GPU's host time
(pretended_rules.py), each with the line of the package that caused it:

    with PretendedDevice() as counts:
        loss = criterion(move_module(model), move(batch))
    print(summed(counts.events, "line"))

Autograd, views, operations in place, ``.to`` and device arguments are those of a real one. Streams,
memory, time and the kernels themselves are not pretended. It is torch's own support for back ends
written in Python, so a process that has imported this file keeps the device: import it before the
first backward pass, in a process of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from pretended_rules import (
    ONLY_ON_GPUS,
    Cost,
    Event,
    Mixed,
    cost_of,
    each,
    is_decomposed,
    line,
    name_of,
    refuse_mixing,
    tensors_of,
)
from torch.utils import backend_registration, checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

if not hasattr(getattr(torch._C, "_acc", None), "register_python_privateuseone_device_guard"):
    raise ImportError(
        f"the pretended device needs a torch with back ends in Python, 2.10 or later; this is "
        f"{torch.__version__}"
    )

NAME = "gpu"
NOT_YET = 77
"""What the host reads of a copy that it did not wait for."""

_counting: PretendedDevice | None = None  # of all threads: autograd has its own


class _Module:
    """What torch asks the module of a back end for."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])

    @staticmethod
    def get_rng_state(device: Any = 0) -> torch.Tensor:
        _note("get_rng_state", Cost(rng=1))
        return torch.zeros(16, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = 0) -> None:
        _note("set_rng_state", Cost(rng=1))

    @staticmethod
    def synchronize(device: Any = None) -> None:
        _note("synchronize", Cost(syncs=1))

    class device(contextlib.nullcontext):  # noqa: N801
        """The only one is chosen."""


class _Event:
    """A time in the device's queue."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        """Milliseconds."""
        return 1e3 * (end.at - self.at)


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


class DeviceTensor(torch.Tensor):
    """A tensor of the device; ``raw`` has its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise Mixed(f"numpy of a device tensor, at {line()}")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"


class _Dispatch(TorchDispatchMode):
    """Within, operations that make a tensor from nothing are seen, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class PretendedDevice:
    """While it is active, operations of the device are counted, and torch.cuda answers for it.

    Attributes:
        events: what happened.
        part: of the work, for the events that follow.
        coming: memory of the host, and the copies that are on their way there.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.part = ""
        self.coming: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._paused = False

    def __enter__(self) -> PretendedDevice:
        global _counting
        self._before = _counting, torch._C._only_lift_cpu_tensors()
        _counting = self
        _lift_on_the_host()
        self._active = contextlib.ExitStack()
        for context in (*_stand_ins(), _Dispatch()):
            self._active.enter_context(context)
        return self

    def __exit__(self, *error: Any) -> None:
        global _counting
        self._active.close()
        _counting, lifts = self._before
        torch._C._set_only_lift_cpu_tensors(lifts)

    def note(self, name: str, cost: Cost) -> None:
        if cost.syncs:
            for memory, copy in self.coming:
                with torch.inference_mode():
                    memory.copy_(copy)
            self.coming.clear()
        if not self._paused:
            self.events.append(Event(name, cost, line(), self.part))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing is counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What happens within belongs to this part of the work."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before


def move(value: Any) -> Any:
    """Tensors in any nesting of lists, tuples and dictionaries, on the device; not counted."""
    return each(lambda x: DeviceTensor(x.detach().clone()), value)


def move_module(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters and buffers on the device, in place, shared ones still shared; not counted."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                if x is not None and id(x) not in moved:
                    moved[id(x)] = move(x)
                    if tensors is part._parameters:
                        moved[id(x)] = torch.nn.Parameter(moved[id(x)], x.requires_grad)
                if x is not None:
                    tensors[name] = moved[id(x)]
    return module


def _stand_ins() -> list[Any]:
    """The product asks torch.cuda for what concerns a device as a whole, and so do fairseq and
    torch's checkpoints."""
    names = ("is_available", "get_rng_state", "set_rng_state", "synchronize")
    cuda = {name: getattr(_Module, name) for name in names}
    cuda["current_device"] = lambda: DEVICE
    return [
        mock.patch.object(torch.cuda, "Event", _Event),
        *(mock.patch.object(torch.cuda, name, value) for name, value in cuda.items()),
        mock.patch.object(checkpoint.DefaultDeviceType, "_default_device_type", NAME),
    ]


# Running an operation


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    here = any(map(_on_device, tensors_of(args, kwargs)))
    device = kwargs.get("device")
    goes_there = device is not None and torch.device(device).type == NAME
    if not here and not goes_there:
        return func(*args, **kwargs)
    name = name_of(func)
    if is_decomposed(func):
        with _Dispatch():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    _lift_on_the_host()
    if here:
        try:
            refuse_mixing(func, args, kwargs, _on_device)
        except Mixed as error:
            raise Mixed(f"{error}, at {line()}") from None
    result = ONLY_ON_GPUS.get(name, func)(*each(_raw, args), **_on_host(each(_raw, kwargs)))
    _note(name, cost_of(func, args, kwargs, _on_device))
    if name == "_to_copy" and device is not None and not goes_there:
        result = result.clone() if result is args[0].raw else result
        return _on_its_way(result) if kwargs.get("non_blocking") else result
    if name == "_pack_padded_sequence":  # how many rows each step has stays on the host
        return _wrap(result[0]), result[1]
    return _wrapped(func, args, kwargs, result)


def _on_its_way(copy: torch.Tensor) -> torch.Tensor:
    """Memory of the host that has the copy once the host has waited for the device."""
    if _counting is None:
        return copy
    memory = torch.full_like(copy, 1 if copy.dtype == torch.bool else NOT_YET)
    _counting.coming.append((memory, copy))
    return memory


def _lift_on_the_host() -> None:
    """Have ``torch.tensor(data, device=…)`` make a CPU tensor and copy it where that is seen; each
    thread has this switch."""
    torch._C._set_only_lift_cpu_tensors(True)


def _raw(x: torch.Tensor) -> torch.Tensor:
    return x.raw if isinstance(x, DeviceTensor) else x


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What makes a tensor of the device, for one of the CPU."""
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    return kwargs


def _on_device(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def _wrapped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Results on the device; what was written to is the very tensor that was given."""
    returns = func._schema.returns

    def found(i: int, x: Any) -> Any:
        info = returns[i].alias_info if i < len(returns) else None
        if info is not None and info.is_write:
            for j, argument in enumerate(func._schema.arguments):
                own = argument.alias_info
                if own is not None and own.is_write and own.before_set & info.before_set:
                    return args[j] if j < len(args) else kwargs.get(argument.name)
        return each(_wrap, x)

    if len(returns) > 1:
        return tuple(found(i, x) for i, x in enumerate(result))
    return found(0, result)


def _wrap(x: torch.Tensor) -> DeviceTensor:
    if torch.is_inference_mode_enabled() and not x.is_inference():  # a view of one from outside
        with torch.inference_mode(False):
            return DeviceTensor(x)
    return DeviceTensor(x)


def _note(name: str, cost: Cost) -> None:
    if _counting is not None:
        _counting.note(name, cost)
