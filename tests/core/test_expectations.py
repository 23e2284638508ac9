"""What an input's last visit lets expect of its rewards: exact small cases."""

import math

import numpy as np
import pytest

from esrl_fairseq.core.expectations import Inputs, known_inputs, offsets

NAN = math.nan


def test_by_hand():
    means, samples = [0.2, 0.6, NAN, 0.7], [2, 4, 0, 1]
    inputs = known_inputs(means, samples, within=0.01)
    assert inputs.mean == pytest.approx(0.5)
    variance = (0.3**2 + 0.1**2 + 0.2**2) / 3
    between = variance - 0.01 * (1 / 2 + 1 / 4 + 1) / 3
    assert inputs.between == pytest.approx(between)
    found = offsets(means, samples, inputs)
    weights = [between / (between + 0.01 / n) for n in (2, 4, 1)]
    expected = [-0.3 * weights[0], 0.1 * weights[1], 0, 0.2 * weights[2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_more_samples_are_believed_more():
    inputs = Inputs(mean=0.5, between=0.04, within=0.05)
    found = offsets([0.9] * 4, [1, 2, 8, 10**6], inputs)
    assert (np.diff(found) > 0).all() and found[-1] == pytest.approx(0.4, rel=1e-4)


@pytest.mark.parametrize("samples", [1, 8])
def test_it_is_the_best_linear_guess(samples):
    """Of the mean of further samples: a line fitted to a large population is the same one."""
    draw = np.random.default_rng(1)
    level = 0.4 + 0.2 * draw.standard_normal(200_000)
    means = level + 0.3 / math.sqrt(samples) * draw.standard_normal(len(level))
    inputs = known_inputs(means, np.full(len(level), samples), within=0.09)
    again = level + 0.3 * draw.standard_normal(len(level))
    slope = np.cov(means, again)[0, 1] / means.var()
    found = offsets(means, np.full(len(level), samples), inputs)
    assert np.polyfit(means, found, 1)[0] == pytest.approx(slope, abs=0.01)
    assert inputs.between == pytest.approx(0.04, rel=0.02)


def test_chance_alone_is_not_believed():
    """Means that differ less than samples do by chance say nothing of the inputs."""
    inputs = known_inputs([0.4, 0.5, 0.6], [2, 2, 2], within=0.1)
    assert inputs.between == 0 and not offsets([0.4, 0.5, 0.6], [2, 2, 2], inputs).any()


def test_nothing_known():
    assert not offsets([NAN, 0.3], [0, 2], known_inputs([NAN], [0], NAN)).any()
    half = known_inputs([0.2, 0.6], [1, 1], NAN)  # one sample each tells no variance within
    np.testing.assert_allclose(offsets([0.2, 0.6], [1, 1], half), [-0.1, 0.1])
    alike = known_inputs([0.5, 0.5], [3, 3], 0.0)
    assert not offsets([0.5, 0.7], [3, 3], alike).any()
