"""(g) Dynamic sampling: sample counts and temperatures as functions of capability."""

import numpy as np
import pytest

from esrl_fairseq.core.schedules import (
    cdf_reference,
    kept_share,
    quantile,
    sample_counts,
    temperatures,
)

BETAS = [0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1]
GRID = (np.arange(100_000) + 0.5) / 100_000  # u uniform in [0, 1]


@pytest.mark.parametrize("beta", BETAS)
def test_share_averages_one_minus_beta(beta):
    """g decreases within [0, 1] and its mean over uniform u is 1 - beta."""
    share = kept_share(GRID, beta)
    assert abs(share.mean() - (1 - beta)) < 1e-6
    assert share.min() >= 0 and share.max() <= 1
    assert (np.diff(share) <= 0).all()


def test_share_by_hand():
    """Values from the formula: flat up to 1 - 2 beta, then linear; above one half a lower start."""
    assert np.allclose(kept_share([0, 0.4, 0.7, 1], 0.3), [1, 1, 0.5, 0])
    assert np.allclose(kept_share([0, 0.5, 1], 0.75), [0.5, 0.25, 0])
    assert kept_share([0, 1], 0).tolist() == [1, 1]
    assert kept_share([0, 1], 1).tolist() == [0, 0]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("most", "least"), [(8, 1), (8, 0), (4, 2), (1, 0), (3, 3), (64, 1)])
def test_counts_average_the_kept_budget(beta, most, least):
    """Mean k = k_min + (K - k_min)(1 - beta), up to what rounding to whole samples allows.

    With beta <= 1/2 the rounding errors cancel. Above, g runs from m / (K - k_min) down to 0 with
    m = 2 (1 - beta)(K - k_min), and the errors of rounding a uniform number in [0, m] leave at
    most 1/(8 m) on average, or m/2 where all are rounded to 0: never above a quarter of a sample.
    """
    counts = sample_counts(GRID, most, least, beta)
    m = 2 * (1 - beta) * (most - least)
    allowed = 0 if beta <= 0.5 else min(1 / (8 * m), m / 2) if m > 0 else 0
    assert abs(counts.mean() - (least + (most - least) * (1 - beta))) <= allowed + 1e-4
    assert counts.min() >= least and counts.max() <= most
    assert (np.diff(counts) <= 0).all()  # the more capable, the fewer


def test_counts_at_the_ends():
    """The least capable input gets K, the most capable k_min; k_min = 0 skips it."""
    assert sample_counts([0.0, 1.0], 8, 1, 0.3).tolist() == [8, 1]
    assert sample_counts([0.0, 1.0], 8, 0, 0.3).tolist() == [8, 0]
    assert sample_counts([0.0, 1.0], 1, 0, 0.5).tolist() == [1, 0]
    assert sample_counts([0.0, 0.5, 1.0], 8, 1, 0).tolist() == [8, 8, 8]
    assert sample_counts([0.0, 0.5, 1.0], 8, 2, 1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("beta", BETAS)
def test_unknown_inputs_get_everything(beta):
    """An input without capability gets K samples and the base temperature."""
    assert sample_counts([np.nan, 1.0], 8, 1, beta)[0] == 8
    assert temperatures([np.nan], 0.5, 1.5, 0.9).tolist() == [np.float32(0.9)]


def test_temperature_falls_with_capability():
    """tau = tau_min + (tau_max - tau_min)(1 - u), so its mean is the middle."""
    tau = temperatures(GRID, 0.6, 1.4, 1.0)
    assert tau.dtype == np.float32
    assert (np.diff(tau) <= 0).all()
    assert abs(tau.mean(dtype=np.float64) - 1) < 1e-6
    assert np.allclose(temperatures([0, 0.25, 1], 0.6, 1.4, 1.0), [1.4, 1.2, 0.6])


def test_quantile_by_hand():
    """Empirical CDF with mid-ranks for ties; unknown stays unknown."""
    reference = cdf_reference([0.3, np.nan, 0.1, 0.3, 0.9])
    assert np.allclose(reference, [0.1, 0.3, 0.3, 0.9])
    u = quantile([0.0, 0.1, 0.3, 0.5, 1.0, np.nan], reference)
    assert np.allclose(u, [0, 0.125, 0.5, 0.75, 1, np.nan], equal_nan=True)
    assert np.isnan(quantile([0.5], cdf_reference([np.nan]))).all()


@pytest.mark.parametrize("size", [7, 4096, 5000, 50_001])
def test_quantiles_do_not_depend_on_the_estimators_scale(size):
    """Another scale keeps u, and u is uniform over the known inputs."""
    capability = np.random.default_rng(1).random(size).astype(np.float32)
    u = quantile(capability, cdf_reference(capability))
    assert np.array_equal(quantile(capability / 8, cdf_reference(capability / 8)), u)
    exact = (np.argsort(np.argsort(capability)) + 0.5) / size
    assert np.abs(u - exact).max() <= 1 / min(size, 4096)
    assert abs(u.mean() - 0.5) < 1e-3


@pytest.mark.parametrize("beta", BETAS)
def test_budget_holds_from_capabilities_to_counts(beta):
    """From raw, oddly distributed capabilities the mean count is still the kept budget."""
    capability = np.random.default_rng(2).random(20_000) ** 5
    counts = sample_counts(quantile(capability, cdf_reference(capability)), 9, 1, beta)
    rounding = 0 if beta <= 0.5 else 1 / (8 * 16 * (1 - beta)) if beta < 1 else 0
    assert abs(counts.mean() - (1 + 8 * (1 - beta))) <= rounding + 0.01
