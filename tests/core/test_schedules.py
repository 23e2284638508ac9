"""(g) Dynamic sampling: sample counts and temperatures as functions of capability."""

import itertools

import numpy as np
import pytest

from esrl_fairseq.core.schedules import (
    PRIOR_FREEDOM,
    cdf_reference,
    kept_share,
    mean_variance,
    neyman_counts,
    quantile,
    sample_counts,
    shrunk_variance,
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


def test_neyman_by_hand():
    """K = 8: (k - 1) k <= 56 ratio: for 1/2 that is 5 (20 <= 28 < 30), for 1/4 it is 4."""
    variance = np.array([1, 1 / 2, 1 / 4, 20 / 56, 19.9 / 56, 0, 9, np.nan])
    expected = [8, 5, 4, 5, 4, 1, 8, 8]
    assert neyman_counts(variance, 1, 8, 1).tolist() == expected
    assert neyman_counts(variance, 1, 8, 5).tolist() == [max(k, 5) for k in expected]
    assert neyman_counts(variance, 1, 1, 1).tolist() == [1] * 8
    for nothing_to_compare in (0, np.nan):
        assert neyman_counts(variance, nothing_to_compare, 8, 1).tolist() == [8] * 8


def greedy(variance, price, most):
    """One sample each, then the largest gain over all inputs while it is worth the price."""
    counts = np.ones(len(variance), dtype=int)
    while True:
        gain = np.where(counts < most, variance / counts - variance / (counts + 1), -1)
        best = gain.argmax()
        if gain[best] < price * (1 - 1e-6):
            return counts
        counts[best] += 1


@pytest.mark.parametrize("most", [2, 3, 5])
def test_neyman_is_greedy_and_the_best_of_all_allocations(most):
    """Against greedy at K's price, and against all allocations that cost as much."""
    draw = np.random.default_rng(most)
    seen = set()
    for _ in range(40):
        variance = draw.gamma(0.7, size=4)
        mean = variance.mean()
        counts = neyman_counts(variance, mean, most, 1)
        assert counts.tolist() == greedy(variance, mean / ((most - 1) * most), most).tolist()
        every = np.array(list(itertools.product(range(1, most + 1), repeat=4)))
        every = every[every.sum(1) == counts.sum()]
        assert np.isclose((variance / counts).sum(), (variance / every).sum(1).min())
        seen.update(counts.tolist())
    assert seen == set(range(1, most + 1))


def rewards_of(sigma, samples, draw):
    """What the store keeps of normal rewards of each input: float32 std, number of samples."""
    rewards = draw.normal(size=(len(sigma), samples)) * sigma[:, None]
    return rewards.std(1).astype(np.float32), np.full(len(sigma), samples)


def automatic_counts(std, samples, most, least=1):
    """From what the store keeps to counts."""
    mean = mean_variance(std, samples)
    return neyman_counts(shrunk_variance(std, samples, mean), mean, most, least)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 16, 100])
def test_inputs_of_equal_variance_have_all_samples(most):
    """Whatever their number of samples and the scale; rounding takes none away."""
    for sigma in (0.1, 1 / 3, 30.0, 0.0):
        for samples in (np.full(50, 8), np.arange(2, 52)):
            std = np.float32(sigma * np.sqrt((samples - 1) / samples))  # the unbiased is sigma
            assert (automatic_counts(std, samples, most) == most).all()


def test_neyman_does_not_depend_on_the_rewards_scale():
    """Rewards times c give the same counts."""
    std, samples = rewards_of(
        np.random.default_rng(3).gamma(2, size=500), 6, np.random.default_rng(5)
    )
    counts = automatic_counts(std, samples, 16)
    assert len(set(counts.tolist())) > 6
    for c in (100, 0.013, 1e-6, 1e6):
        assert automatic_counts(std.astype(np.float64) * c, samples, 16).tolist() == counts.tolist()


@pytest.mark.parametrize("least", [1, 3])
def test_neyman_rises_with_the_spread(least):
    """Never more samples for less variance, about K sigma_i / sigma between the limits."""
    sigma = np.linspace(0, 2, 2001)
    counts = neyman_counts(sigma**2, 1, 12, least)
    assert (np.diff(counts) >= 0).all()
    assert counts[0] == least and (counts[sigma >= 1] == 12).all()
    between = (counts > least) & (sigma < 1)
    assert np.abs(counts - 12 * sigma)[between].max() <= 1


def test_mean_variance_by_hand():
    """Pooled over degrees of freedom; one sample, or none, has no part in it."""
    std, samples = [0.5, 1.0, 9.0, np.nan], [2, 4, 1, 0]
    assert mean_variance(std, samples) == (2 * 0.25 + 4 * 1) / (1 + 3)
    rewards = np.random.default_rng(4).random((7, 5))
    unbiased = rewards.var(1, ddof=1).mean()
    assert np.isclose(mean_variance(rewards.std(1), np.full(7, 5)), unbiased)
    assert np.isnan(mean_variance([0.0, np.nan], [1, 0]))
    assert np.isnan(mean_variance([], []))


def test_shrinkage_by_hand():
    """One sample has the mean variance, many their own; the unbiased mean one stays as it is."""
    nu = PRIOR_FREEDOM
    expected = [9, (nu * 9 + 8 * 4) / (nu + 7), nu * 9 / (nu + 7), np.nan]
    found = shrunk_variance([0, 2, 0, np.nan], np.array([1, 8, 8, 0], np.uint32), 9)
    assert np.allclose(found, expected, equal_nan=True)
    assert np.allclose(shrunk_variance([2], [10**6], 9), 4, rtol=1e-4)
    assert np.allclose(shrunk_variance([3 * np.sqrt(7 / 8)], [8], 9), 9)
    assert np.isnan(shrunk_variance([2], [8], np.nan)).all()
    assert automatic_counts([0.1, 0.2, 0.0, np.nan], [8, 8, 1, 0], 8).tolist()[2:] == [8, 8]


def test_the_prior_has_the_least_error_where_variances_vary_as_much_as_their_mean():
    """What PRIOR_FREEDOM claims: exponential variances and normal rewards."""
    draw = np.random.default_rng(5)
    variance = draw.exponential(size=100_000)
    std, samples = rewards_of(np.sqrt(variance), 6, draw)
    own = samples * std.astype(np.float64) ** 2

    def error(nu):
        return (((nu * 1 + own) / (nu + samples - 1) - variance) ** 2).mean()

    found = ((shrunk_variance(std, samples, 1.0) - variance) ** 2).mean()
    assert np.isclose(found, error(PRIOR_FREEDOM))
    assert found < min(error(PRIOR_FREEDOM / 1.5), error(PRIOR_FREEDOM * 1.5), error(0))


def test_the_gradient_has_less_variance_for_its_cost():
    """Against equally many samples of each input, at no less tokens.

    A toy with the premises of the allocation: the score of a text of T tokens is a sum of T random
    signs, an input's cost is T a sample, and its rewards are normal around the baseline. Counts are
    chosen from the estimated spread of a first visit.
    """
    draw, inputs, most = np.random.default_rng(5), 40, 12
    sigma, length = draw.lognormal(-1, 1, inputs), draw.integers(2, 30, inputs)
    counts = automatic_counts(*rewards_of(sigma, most, draw), most)
    tokens = (counts * length).sum()
    equal = np.full(inputs, -(-tokens // length.sum()))  # rounded up
    assert 3 < equal[0] < most and (equal * length).sum() >= tokens

    def gradients(counts, times=2000):
        """[times] sums over inputs of the mean of reward times score."""
        total = np.zeros(times)
        for k, s, t in zip(counts, sigma, length):
            score = 2 * draw.binomial(t, 0.5, (times, k)) - t
            total += (draw.normal(0, s, (times, k)) * score).mean(1)
        return total

    variances = [gradients(k).var() for k in (counts, equal)]
    exact = [(sigma**2 * length / k).sum() for k in (counts, equal)]
    assert np.allclose(variances, exact, rtol=0.12)  # 4 standard errors
    assert variances[0] < 0.9 * variances[1]
