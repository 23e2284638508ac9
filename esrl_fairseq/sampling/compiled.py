"""Fixed rows with a compiled step: one launch of a CUDA graph each (docs/method.md 2).

A step is compiled once for each :class:`~.static_step.Shape`. So that these are few, their numbers
are rounded up to powers of two, and a batch becomes smaller by halves alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.checks.memory import out_of_memory
from esrl_fairseq.checks.models import what_failed
from esrl_fairseq.compat import compiled, static
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling import fixed_rows
from esrl_fairseq.sampling.draws import Draws, Strategy
from esrl_fairseq.sampling.static_step import Shape, StaticStep
from esrl_fairseq.sampling.steps import TransformerSteps

LEAST_INPUTS = 16
LEAST_SOURCE = 32
LEAST_ROWS = 64
"""Fewer places cost a GPU no less time, and each further shape a compilation."""
KEPT = 4
"""Times the memory of a batch, at most, that stays with the steps of its smaller shapes."""


class CompiledDecoding:
    """Strategy of ``--compile-decoding``; it keeps what was compiled, and the memory of that.

    Args:
        backend: of torch.compile.

    Attributes:
        steps: those so far, with what runs each.
        compiled: shapes of those that have run.
        memory: of all of them.
    """

    def __init__(self, backend: Any = "inductor"):
        self.backend = backend
        self.steps: dict[Shape, tuple[StaticStep, Callable[[], None]]] = {}
        self.compiled: set[Shape] = set()
        self.memory: dict[Any, Tensor] = {}

    @property
    def strategy(self) -> Strategy:
        """For :attr:`RowSampler.strategy`."""
        return Strategy(self.decode, most_rows)

    @torch.no_grad()
    def decode(
        self,
        sampler: Any,
        draws: Draws,
        encoder_out: Any,
        temperature: Tensor | None,
        device: torch.device,
    ) -> None:
        """See :class:`Strategy`."""
        there, (rows, length) = draws.to(device), draws.tokens.shape
        if temperature is not None:
            temperature = temperature[there.input_index]
        shape, inputs, places = first_shape(sampler, draws, encoder_out, temperature is not None)
        inputs, places = (x.to(device, non_blocking=True) for x in (inputs, places))
        live = torch.arange(rows, device=device)  # rows that are in the batch, at their places
        step = self.step(sampler, shape, device)
        step.begin(encoder_out, inputs, there.start, places)
        step.load(there, places, temperature)
        for number in range(length):
            going = None
            if number % fixed_rows.LOOK_EVERY == 0 and number:
                going = step.going.cpu().nonzero().squeeze(1)
                if not len(going):
                    break
            shape, left = next_shape(step.shape, number, going)
            if shape != step.shape:
                step.store(there, live, places)
                old, step = step, self.step(sampler, shape, device)
                left = left.to(device, non_blocking=True)
                if shape.rows != old.shape.rows:
                    owner = torch.zeros_like(old.fed).index_copy_(0, places, live)
                    live, places = owner[left], torch.arange(len(left), device=device)
                step.go_on(old, left)
                own = None if temperature is None else temperature[live]
                step.load(there[live], places, own)
            self.run(step)
        step.store(there, live, places)
        draws.take(there)

    def step(self, sampler: Any, shape: Shape, device: torch.device) -> StaticStep:
        """The one of this shape."""
        if shape not in self.steps:
            step = StaticStep(sampler, shape, partial(self.buffer, device))
            self.steps[shape] = step, compiled(step.take, self.backend, device.type != "cpu")
        return self.steps[shape][0]

    def buffer(
        self, device: torch.device, name: str, size: tuple[int, ...], kind: torch.dtype
    ) -> Tensor:
        """See :class:`StaticStep`: steps of different shapes share what has the same size."""
        key = name, size, kind
        if key not in self.memory:
            self.memory[key] = static(torch.zeros(size, dtype=kind, device=device))
        return self.memory[key]

    def run(self, step: StaticStep) -> None:
        """One step; compiled before, if it is the first of its shape.

        Raises:
            EsrlError: it cannot be compiled.
        """
        first = step.shape not in self.compiled
        try:
            with step.running():
                self.steps[step.shape][1]()
        except Exception as error:
            if not first or out_of_memory(error):
                raise
            why = what_failed(error).partition(" Set TORCH")[0]  # what else torch could print
            raise EsrlError(
                f"--compile-decoding: torch {torch.__version__} cannot compile the decoding step "
                f"here ({why}): leave it out"
            ) from error
        self.compiled.add(step.shape)


def first_shape(
    sampler: Any, draws: Draws, encoder_out: Any, tempered: bool
) -> tuple[Shape, Tensor, Tensor]:
    """Of the first step; all on the host.

    Returns:
        The shape; int64 ``[inputs]``, what is in its places for inputs; int64 ``[rows]``, the place
        of each row.
    """
    decoder = sampler.model.single_model.decoder
    inputs, own_input, counts = draws.input_index.unique(return_inverse=True, return_counts=True)
    number, width = rounded(len(inputs), LEAST_INPUTS), rounded(int(counts.max()))
    rows = rounded(len(own_input), LEAST_ROWS)
    if number * width <= 2 * rows:
        first = (counts.cumsum(0) - counts)[own_input]  # rows are in the order of their inputs
        places = own_input * width + torch.arange(len(own_input)) - first
    else:  # a few inputs have many
        number, width, inputs = rows, 1, draws.input_index
        places = torch.arange(len(own_input))
    source, key = 0, decoder.layers[0].self_attn.k_proj
    if encoder_out is not None and decoder.layers[0].encoder_attn is not None:
        source = rounded(encoder_out["encoder_out"][0].size(0), LEAST_SOURCE)
    shape = Shape(
        inputs=number,
        width=width,
        source=source,
        steps=fixed_rows.ROOM,
        tempered=tempered,
        weights=key.weight.dtype,
        cache=key(key.weight.new_zeros(1, key.in_features)).dtype,  # half with --amp
        uniforms=draws.uniforms.dtype,
    )
    return shape, inputs, places


def next_shape(shape: Shape, number: int, going: Tensor | None) -> tuple[Shape, Tensor]:
    """Of a step's number ``number``, and the old places that it goes on from.

    Args:
        going: int64, places of rows that go on, on the host; None: not looked at.
    """
    left = torch.arange(shape.rows)
    if number == shape.steps:
        shape = shape._replace(steps=2 * shape.steps)
    if going is not None:
        fewer = rounded(len(going), LEAST_ROWS)
        if 2 * fewer <= shape.rows:
            return shape._replace(inputs=fewer, width=1), going
    return shape, left


def rounded(number: int, least: int = 1) -> int:
    """Up to a power of two."""
    return max(1 << (number - 1).bit_length(), least)


def most_rows(sampler: Any, length: int, device: torch.device) -> int:
    """See :class:`Strategy`."""
    return max(fixed_rows.most_rows(sampler, length, device) // KEPT, 1)


def check_compiled(model: Any) -> None:
    """Refuse a model (not wrapped) whose step is not known here.

    Raises:
        EsrlError: its decoder is not fairseq's own Transformer, or was changed.
    """
    decoder = model.decoder
    if not TransformerSteps.fits(decoder):
        raise EsrlError(
            "--compile-decoding is for fairseq's own Transformer, of which nothing has been "
            f"changed, but this decoder ({type(decoder).__name__}) is another: leave it out"
        )
