"""Parts of the forward pass that keep nothing for backward.

Either backward computes them again (:func:`recomputed`), or their gradient is computed at once
(:func:`with_gradient`), which takes a third less work, and half precision with a loss scale cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states


def recomputed(
    run: Callable[[Any], tuple[Tensor, ...]], argument: Any, parameters: Iterable[Tensor]
) -> tuple[Tensor, ...]:
    """``run(argument)``, whose last result carries no gradient; the others do.

    ``torch.utils.checkpoint`` also drops activations, but builds the graph, whose many small nodes
    lie scattered among the freed activations: the heap of a CPU process then grows with every
    call. Here the forward pass builds none. Gradients go to the tensors of ``argument`` and to
    ``parameters`` as to the inputs of one operation, so that distributed wrappers see each
    parameter's gradient once.

    Args:
        run: must give the same result when called again (random numbers are replayed).
        argument: tensors in any nesting of lists, tuples and dictionaries.
        parameters: every parameter that ``run`` uses; others may be among them.
    """
    leaves, structure = tree_flatten(argument)
    wanted = [p for p in parameters if p.requires_grad]
    return _Recomputed.apply(run, structure, len(leaves), *leaves, *wanted)


def with_gradient(
    terms: Iterable[Callable[[Any], Tensor]], argument: Any, parameters: Iterable[Tensor]
) -> Tensor:
    """Σ ``term(argument)``; each term's graph is gone before the next one begins.

    A sum's gradient is known up to a factor, which backward brings. So each term is differentiated
    as soon as it is there; what is kept is one gradient, however many terms there are. As in
    :func:`recomputed`, distributed wrappers see each parameter's gradient once.

    Args:
        terms: each gives a scalar.
        argument, parameters: as in :func:`recomputed`.
    """
    leaves, structure = tree_flatten(argument)
    wanted = [p for p in parameters if p.requires_grad]
    return _WithGradient.apply(terms, structure, len(leaves), *leaves, *wanted)


def loses_small_gradients(x: Tensor) -> bool:
    """Whether gradients at ``x`` are of float16, in which they need fairseq's loss scale."""
    kind, device = x.dtype, x.device.type
    if kind == torch.float32 and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    return kind == torch.float16


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Any, structure: Any, count: int, *inputs: Any) -> Tensor:
        leaves = [_detached(x) for x in inputs[:count]]
        everything = (*leaves, *inputs[count:])
        places = [i for i, x in enumerate(everything) if _requires_grad(x)]
        wanted = [everything[i] for i in places]
        values: list[Tensor] = []
        found: dict[int, Tensor] = {}
        own: set[int] = set()
        for term in terms:
            with torch.enable_grad():
                value = term(tree_unflatten(leaves, structure))
            values.append(value.detach())
            gradients = torch.autograd.grad(value, wanted, allow_unused=True)
            _add({i: x for i, x in zip(places, gradients) if x is not None}, found, own)
        ctx.found, ctx.inputs = found, len(everything)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = _scaled(ctx.found, grad)
        return None, None, None, *(found.get(i) for i in range(ctx.inputs))


# In few launches for all. In place only where a tensor is known to be nobody else's: autograd gives
# one to both terms of a sum.


def _add(gradients: dict[int, Tensor], to: dict[int, Tensor], own: set[int]) -> None:
    """Add gradients to those that there are; ``own`` are the places of sums made here."""
    both = gradients.keys() & to.keys()
    if ours := list(both & own):
        torch._foreach_add_([to[i] for i in ours], [gradients[i] for i in ours])
    if others := list(both - own):
        sums = torch._foreach_add([to[i] for i in others], [gradients[i] for i in others])
        to.update(zip(others, sums))
        own.update(others)
    to.update({i: x for i, x in gradients.items() if i not in both})


def _scaled(found: dict[int, Tensor], by: Tensor) -> dict[int, Tensor]:
    scaled: dict[int, Tensor] = {}
    for kind in {x.dtype for x in found.values()}:
        places = [i for i, x in found.items() if x.dtype == kind]
        products = torch._foreach_mul([found[i] for i in places], by.to(kind))
        scaled.update(zip(places, products))
    return scaled


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, structure: Any, count: int, *inputs: Any) -> Any:
        ctx.run, ctx.structure, ctx.count, ctx.inputs = run, structure, count, inputs
        ctx.precision = _autocast_of(inputs)
        # One tensor a device: torch asks for the state once a tensor.
        devices = {x.device: x for x in inputs if isinstance(x, Tensor)}
        ctx.random = torch.get_rng_state(), *get_device_states(*devices.values())
        results = run(tree_unflatten(inputs[:count], structure))
        ctx.mark_non_differentiable(results[-1])
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # Leaves of their own: the gradient must stop at them, whatever else they are part of.
        leaves = [_detached(x) for x in ctx.inputs[: ctx.count]]
        wanted = [x for x in (*leaves, *ctx.inputs[ctx.count :]) if _requires_grad(x)]
        random, devices, states = ctx.random
        precision = torch.autocast(**ctx.precision)
        with precision, torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(random)
            set_device_states(devices, states)
            results = ctx.run(tree_unflatten(leaves, ctx.structure))[:-1]
            found = iter(torch.autograd.grad(results, wanted, grads[:-1], allow_unused=True))
        inputs = (*leaves, *ctx.inputs[ctx.count :])
        return None, None, None, *(next(found) if _requires_grad(x) else None for x in inputs)


def _autocast_of(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What ``torch.autocast`` takes to compute as now (``--amp``), on the device of the inputs;
    outside of the forward pass, backward must also not find it on where it was off."""
    device = next(x.device.type for x in inputs if isinstance(x, Tensor))
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
    }


def _requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _detached(x: Any) -> Any:
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
