"""Whether a model gives stage two what it gave stage one: its decoder in one pass and by steps."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from esrl_fairseq.checks.models import what_failed
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.modes import kept_modes

INPUTS, DRAWS, LONGEST = 16, 2, 48
"""Most inputs that are tried, rows of each, and tokens of a row."""
TOLERANCE = 1e-3
"""Nats a token; rounding in float32 stays far below."""
SEED = 1


def check_stages(model: Any, sample: dict[str, Any], task: Any) -> None:
    """Refuse a model whose rows have other log-probabilities in stage two than in stage one.

    Such a run would train another policy than the one that it samples, and that generates later.
    Modes, weights and random numbers are left as they were.

    Args:
        model: not wrapped.
        sample: any of fairseq's batches for it.
        task: has ``build_sampler``.

    Raises:
        EsrlError: they differ, or the model cannot do what a stage asks of it.
    """
    name = type(model).__name__
    try:
        difference = stage_difference(model, sample, task.build_sampler(model))
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(
            f"{name} fails where criterion esrl samples from it or scores samples "
            f"({what_failed(error)}): it needs a model that reads and writes tokens, one step "
            "after another, as fairseq-generate does; mend it, or choose another --arch"
        ) from error
    if not difference <= TOLERANCE:
        raise EsrlError(
            f"the decoder of {name} is another policy step by step, as it samples and generates, "
            "than in one pass, as it would be trained: log-probabilities of a row differ by "
            f"{difference:.2g} nats a token; mend its incremental decoding, or choose another "
            "--arch"
        )


@torch.no_grad()
def stage_difference(model: Any, sample: dict[str, Any], sampler: RowSampler) -> float:
    """Mean difference of a token's log-probability between the stages, in nats, of the row where it
    is largest; a few short rows are drawn for some inputs of the batch.

    Args:
        model: not wrapped.
        sampler: stage one of that model.
    """
    batch = some_inputs(sample)
    counts, ones = [DRAWS] * len(batch["id"]), [1.0] * len(batch["id"])
    with _set_apart(model):
        rows, known = sampler.sample(batch, counts, ones, SEED, longest=LONGEST)
        two = (
            rescore(
                model,
                batch["net_input"],
                rows,
                sampler.pad,
                sampler.eos,
                min_len=sampler.min_len,
                tokens=True,
            )
            .on_host()
            .token_log_probs
        )
    one = known.token_log_probs
    assert one is not None and two is not None
    return float(((one - two).abs().sum(1) / rows.scored().sum(1).clamp(min=1)).max())


def some_inputs(sample: dict[str, Any]) -> dict[str, Any]:
    """The first inputs of a batch; the longest come first, so that no more padding is needed."""
    net_input = sample["net_input"]
    names = ("src_tokens", "src_lengths")
    return {
        "id": sample["id"][:INPUTS],
        "net_input": {name: net_input[name][:INPUTS] for name in names},
    }


@contextlib.contextmanager
def _set_apart(model: Any) -> Iterator[None]:
    """Eval mode and float32; what changes within is undone: modes, precision, random numbers."""
    tensors = [
        (x, x.data)
        for x in itertools.chain(model.parameters(), model.buffers())
        if x.is_floating_point() and x.dtype != torch.float32
    ]
    device = next(model.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    with (
        kept_modes(model),
        torch.random.fork_rng(devices),
        torch.autocast(device.type, enabled=False),
    ):
        model.eval()
        try:
            for tensor, _ in tensors:
                tensor.data = tensor.data.float()
            yield
        finally:
            for tensor, data in tensors:
                tensor.data = data
