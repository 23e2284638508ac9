"""Dynamic sampling: samples and temperature of each input, before anything is generated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.core.schedules import Plan, neyman_counts, sample_counts, temperatures
from esrl_fairseq.sampling.options import SamplingConfig, elimination_ratio, temperature_range


def make_plan(
    options: SamplingConfig,
    capability: NDArray[np.float32],
    quantiles: NDArray[np.float64],
    variances: NDArray[np.float64],
    mean_variance: float,
) -> Plan:
    """The plan of a batch from what its inputs' last visits showed (docs/method.md 1).

    Args:
        capability, quantiles, variances: ``[inputs]``, NaN for inputs not yet known.
        mean_variance: of all known inputs' rewards.
    """
    most, least, beta = options.num_samples, options.min_samples, elimination_ratio(options)
    u = quantiles
    if options.capability == "none":
        u, counts = np.full(len(u), np.nan), np.full(len(u), most)
    elif beta is None:
        counts = neyman_counts(variances, mean_variance, most, least)
    else:
        counts = sample_counts(u, most, least, beta)
    if not counts.any():
        counts[0] = 1  # a batch without any row would leave other ranks waiting
    temperature = temperatures(u, *temperature_range(options), options.sample_temperature)
    return Plan(counts, temperature, capability)


def least_plan(options: SamplingConfig, inputs: int) -> Plan:
    """One sample of one input, for what fairseq gives to a rank without a batch.

    It may be one of validation, whose ids are not those of the store.
    """
    counts, unknown = np.zeros(inputs, np.int64), np.full(inputs, np.nan, np.float32)
    counts[0] = 1
    temperature = np.full(inputs, options.sample_temperature, np.float32)
    return Plan(counts, temperature, unknown)
