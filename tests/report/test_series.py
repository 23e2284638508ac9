"""What the axes of a report's plots show."""

import pytest

from esrl_fairseq.report.figures import Figure, line
from esrl_fairseq.report.series import framed
from esrl_fairseq.report.training import whole_epochs


def test_single_updates_do_not_flatten_the_rest():
    """Three of a hundred updates far off; the smoothed line and validations are always shown."""
    noisy = [0.1 + 0.001 * (number % 20) for number in range(100)]
    noisy[3] = noisy[40] = 0.9
    noisy[70] = -0.8
    x = list(range(100))
    traces = [line("samples", x, noisy, opacity=0.25), line("samples", x, [0.11] * 100)]
    figure = framed(Figure("Reward", [*traces, line("validation", [0, 99], [0.2, 0.25])]))
    low, high = figure.layout["yaxis"]["range"]
    assert 0.09 < low < 0.1 and 0.25 < high < 0.26
    (low, high) = framed(Figure("Reward", traces)).layout["yaxis"]["range"]
    assert 0.09 < low < 0.102 and 0.118 < high < 0.121


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5], [None, 0.5]])
def test_nothing_to_choose_from(values):
    assert "yaxis" not in framed(Figure("", [line("", list(range(len(values))), values)])).layout


def test_epochs_are_whole():
    assert whole_epochs([3])["xaxis"]["dtick"] == whole_epochs([1, 2, 9])["xaxis"]["dtick"] == 1
    assert "dtick" not in whole_epochs(range(1, 200))["xaxis"]
