"""Which rows are chosen under a budget, by hand and in expectation."""

import numpy as np
import pytest

from esrl_fairseq.core.selection import KINDS, inclusion, select

SIZES = np.array([0.1, 0.0, 0.9, 0.3, 0.9, 0.2, 0.05, 0.4])
TOKENS = np.array([10, 5, 20, 5, 10, 10, 30, 10])  # 100 in all


def chosen(share, kind="top", seed=0, sizes=SIZES, tokens=TOKENS):
    places, weights = select(sizes, tokens, share, kind, np.random.default_rng(seed))
    assert places.tolist() == sorted(set(places.tolist())) and len(weights) == len(places)
    return places.tolist(), weights


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, [0, 2, 3, 4, 5, 6, 7]),  # all that have a gradient
        (0.95, [0, 2, 3, 4, 5, 6, 7]),
        (0.94, [0, 2, 3, 4, 5, 7]),  # the smallest does not fit
        (0.4, [2, 4, 7]),
        (0.39, [2, 4]),  # row 3 would fit, but row 7 before it does not
        (0.2, [2]),  # of equal ones the first
        (0.01, [2]),  # one at least
    ],
)
def test_top_by_hand(share, expected):
    places, weights = chosen(share)
    assert places == expected and (weights == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn(kind):
    """Without any gradient one row is given, so that the model has something to do."""
    assert chosen(0.3, kind, sizes=np.zeros(8))[0] == [0]
    assert chosen(0.3, kind, sizes=np.zeros(0), tokens=np.zeros(0, int))[0] == []
    places, _ = chosen(1, kind, sizes=np.array([0, 1e-9, 1.0, 0, 0, 0, 0, 0]))
    assert places == [2]  # the other one is rounding


def test_inclusion_probabilities():
    """In proportion to the sizes, 1 at most, and the budget is spent in expectation."""
    draw = np.random.default_rng(1)
    for _ in range(200):
        n = int(draw.integers(1, 40))
        sizes = draw.exponential(size=n) ** draw.integers(1, 4)
        tokens = draw.integers(1, 30, size=n)
        budget = draw.random() * tokens.sum()
        chance = inclusion(sizes, tokens, budget)
        assert (chance > 0).all() and (chance <= 1).all()
        assert (chance * tokens).sum() == pytest.approx(budget)
        free = chance < 1 - 1e-9
        ratio = chance[free] / sizes[free]
        assert not free.any() or np.ptp(ratio) < 1e-9 * ratio.max()
        assert not free.any() or (~free).sum() == 0 or sizes[~free].min() >= sizes[free].max()
    assert inclusion(sizes, tokens, tokens.sum()) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("kind", ["unbiased", "mixed"])
def test_expected_weights_are_one(kind, share):
    """Over many draws each row with a gradient counts once, and the tokens are the budget's."""
    rounds = 4000
    total, squares, spent = np.zeros(8), np.zeros(8), []
    for seed in range(rounds):
        places, weights = chosen(share, kind, seed)
        total[places] += weights
        squares[places] += weights**2
        spent.append(TOKENS[places].sum())
    mean = total / rounds
    error = np.sqrt(np.maximum(squares / rounds - mean**2, 0) / rounds)
    moving = SIZES > 0
    assert mean[1] == 0
    assert (np.abs(mean - 1)[moving] < 4.5 * error[moving] + 1e-9).all()
    assert error[moving].max() < 0.3  # the test could tell another expectation
    if share > 0.05:  # with less than a row's tokens one is given nevertheless, of weight 0
        assert np.mean(spent) == pytest.approx(share * 100, rel=0.1)


def test_mixed_takes_the_largest_for_sure():
    for seed in range(50):
        places, weights = chosen(0.6, "mixed", seed)
        assert {2, 4} <= set(places) and weights[[places.index(2), places.index(4)]].tolist() == [
            1,
            1,
        ]
