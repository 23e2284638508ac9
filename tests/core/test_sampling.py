"""(h) One token from a softmax with one uniform number, and the uniform numbers themselves."""

import numpy as np
import pytest
import torch
from helpers import chi_square_p

from esrl_fairseq.core.sampling import (
    MANY_WORDS,
    inverse_cdf_sample,
    row_uniforms,
    sample_and_score,
)

BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def draw(logits, temperature, uniforms):
    """Sample as many rows from the same logits [words] as there are uniforms."""
    rows = len(uniforms)
    return inverse_cdf_sample(
        logits.expand(rows, -1).clone(), torch.full((rows,), temperature), uniforms
    )


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6, 4.0])
@pytest.mark.parametrize("words", [5, 300])
def test_frequencies_match_the_softmax(temperature, words):
    """Chi-square over 50,000 draws, with forbidden words among the others."""
    logits = 2 * torch.randn(words, generator=torch.Generator().manual_seed(words))
    logits[[1, words - 1]] = -torch.inf
    uniforms = row_uniforms(3, [words], [50_000], [1])[:, 0]
    found = torch.bincount(draw(logits, temperature, uniforms), minlength=words)
    assert chi_square_p(found, torch.softmax(logits.double() / temperature, 0)) > 1e-3


def test_chi_square_sees_a_wrong_temperature():
    """The test above has power: the softmax at another temperature is refused."""
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniforms = row_uniforms(3, [1], [50_000], [1])[:, 0]
    found = torch.bincount(draw(logits, 1.0, uniforms), minlength=3)
    assert chi_square_p(found, torch.softmax(logits / 1.05, 0)) < 1e-5


def test_rows_have_their_own_temperature():
    """Each row is divided by its own temperature, and by its own maximum."""
    logits = torch.tensor([[0.0, 2.0], [1000.0, 1002.0]]).repeat(20_000, 1)
    temperature = torch.tensor([0.5, 2.0]).repeat(20_000)
    uniforms = row_uniforms(1, [1], [40_000], [1])[:, 0]
    found = inverse_cdf_sample(logits, temperature, uniforms).view(-1, 2).double().mean(0)
    expected = torch.sigmoid(torch.tensor([4.0, 1.0], dtype=torch.float64))
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all()


@pytest.mark.parametrize("words", [5, 64, 300])
def test_several_draws_from_one_row(words):
    """`rows` picks each draw's logits and temperature, in any order, some of them never."""
    generator = torch.Generator().manual_seed(words)
    logits = 2 * torch.randn(7, words, generator=generator)
    logits[:, 1] = -torch.inf
    temperature = torch.tensor([0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 4.0])
    rows = torch.randint(6, (500,), generator=generator)
    uniforms = torch.rand(500, generator=generator)
    found = inverse_cdf_sample(logits.clone(), temperature, uniforms, rows)
    alone = [
        inverse_cdf_sample(logits[[r]], temperature[[r]], uniforms[[k]]).item()
        for k, r in enumerate(rows.tolist())
    ]
    assert found.tolist() == alone and len(found.unique()) > 3
    none = torch.empty(0, dtype=torch.long)
    assert inverse_cdf_sample(logits.clone(), temperature, uniforms[:0], none).tolist() == []


@pytest.mark.parametrize("words", [2, 7, 1000, 50_000])
@pytest.mark.parametrize("uniform", [0.0, 1e-45, 0.5, BELOW_ONE])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_impossible_words_are_never_drawn(words, uniform, temperature):
    """Neither forbidden nor underflown words, at both ends of the uniform numbers."""
    generator = torch.Generator().manual_seed(words)
    logits = torch.randn(64, words, generator=generator)
    impossible = torch.rand(64, words, generator=generator) < 0.4
    impossible[:, 0] = impossible[:, -1] = True
    if words == 2:
        impossible[:, torch.arange(64) % 2] = False
    impossible[torch.arange(64), words // 2] = False
    logits[impossible] = (
        torch.where(torch.arange(64) % 2 == 0, -torch.inf, -1e30).expand(words, 64).T[impossible]
    )
    uniforms = torch.full((64,), uniform)
    chosen = inverse_cdf_sample(logits, torch.full((64,), temperature), uniforms)
    assert not impossible[torch.arange(64), chosen].any()


def test_one_possible_word_is_always_drawn():
    """Wherever it stands."""
    logits = torch.full((9, 9), -torch.inf).fill_diagonal_(-50.0)
    for uniform in (0.0, 0.3, BELOW_ONE):
        chosen = inverse_cdf_sample(logits.clone(), torch.ones(9), torch.full((9,), uniform))
        assert chosen.tolist() == list(range(9))


def test_uniforms_are_uniform():
    """In [0, 1), with the right histogram along rows and along steps."""
    uniforms = row_uniforms(11, range(20), [50] * 20, [30] * 20)
    assert uniforms.shape == (1000, 30) and uniforms.dtype == torch.float32
    assert uniforms.min() >= 0 and uniforms.max() < 1
    for part in (uniforms, uniforms[:, 0], uniforms[:, -1], uniforms[::50]):
        cells = torch.histc(part, 20, 0, 1)
        assert chi_square_p(cells, torch.full((20,), 0.05)) > 1e-3
    assert len(uniforms.unique()) > 29_900


def test_uniforms_do_not_depend_on_the_batch():
    """An input's numbers are those of the input alone, whatever stands around it."""
    ids, counts, steps = [5, 2, 9], [3, 0, 2], [4, 6, 2]
    together = row_uniforms(8, ids, counts, steps)
    assert together.shape == (5, 6)
    assert torch.equal(together[:3, :4], row_uniforms(8, [5], [3], [4]))
    assert torch.equal(together[3:, :2], row_uniforms(8, [9], [2], [2]))
    assert not together[:3, 4:].any() and not together[3:, 2:].any()
    turned = row_uniforms(8, ids[::-1], counts[::-1], steps[::-1])
    assert torch.equal(turned[:2], together[3:]) and torch.equal(turned[2:], together[:3])
    more = row_uniforms(8, [5], [7], [4])
    assert torch.equal(more[:3], together[:3, :4])  # more samples leave the first as they are


def test_uniforms_depend_on_seed_and_input():
    """Other seed, other input or both exchanged: other numbers; any int is a seed."""
    keys = [(1, 2), (2, 1), (1, 3), (-1, 2), (2**63, 2)]
    drawn = torch.stack([row_uniforms(seed, [i], [1], [8])[0] for seed, i in keys])
    assert len(drawn.unique()) == drawn.numel()
    assert torch.equal(drawn[0], row_uniforms(1, [2], [1], [8])[0])
    assert row_uniforms(1, [], [], []).shape == (0, 0)


def test_many_words_need_many_bits():
    """Words of 1e-9 are drawn at their place, which no number of 24 bits reaches."""
    words = MANY_WORDS + 7
    uniforms = row_uniforms(3, [1, 2], [4, 0], [5, 5], words=words)
    assert uniforms.dtype == torch.float64 and (uniforms[:, 0] % 2**-24 > 0).all()
    assert row_uniforms(3, [1], [4], [5], words=MANY_WORDS).dtype == torch.float32
    weights = torch.full((1, words), 1.0)
    weights[:, :2] = weights[:, -1] = 1e-9 * words
    logits, ones, row = weights.log(), torch.ones(1), torch.zeros(6, dtype=torch.long)
    at = torch.tensor([0, 0.9e-9, 1.1e-9, 1.9e-9, 2.1e-9, 1 - 0.5e-9], dtype=torch.float64)
    found = inverse_cdf_sample(logits.clone(), ones, at, row).tolist()
    assert found == [0, 0, 1, 1, 2, words - 1]
    chosen, known = sample_and_score(logits, None, at, row)
    assert chosen.tolist() == found and known.dtype == torch.float32
