"""What an epoch begins with: histograms of capability, samples and temperatures of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.sampling.plans import make_plan

ENOUGH = 100_000
"""Inputs, evenly spaced, whose histograms tell those of all."""
BINS = 20


def histograms(rl: Any, options: Any) -> dict[str, Any]:
    """Of the current shard's inputs.

    Each input is visited once an epoch, by the plan that its last visit gives. So these are the
    samples and temperatures of the epoch.

    Args:
        rl: the RL state, its epoch begun.
        options: of the sampler.
    """
    ids = np.arange(0, rl.store.size, -(-rl.store.size // ENOUGH))
    capability = rl.store.capability(ids)
    given = rl.quantiles(ids), rl.variances(ids), rl.mean_variance
    plan = make_plan(options, capability, *given)
    known = capability[~np.isnan(capability)]
    most = options.num_samples
    width = -(-(most + 1) // BINS)  # of whole numbers
    return {
        "known": len(known) / len(ids),
        "capability": histogram(known, np.linspace(0, 1, BINS + 1)),
        "samples": histogram(plan.counts, np.arange(-0.5, most + 0.5 + width, width)),
        "temperature": histogram(plan.temperature, edges_of(plan.temperature)),
    }


def histogram(values: NDArray[Any], edges: NDArray[Any]) -> dict[str, Any]:
    """Mean, and counts [bins] between edges [bins + 1]."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    mean = float(values.mean(dtype=np.float64)) if len(values) else None
    return {"mean": mean, "edges": edges, "counts": counts}


def edges_of(values: NDArray[Any]) -> NDArray[Any]:
    """Of bins from the smallest to the largest value; a narrow one where all are equal."""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.05, low + 0.05])
