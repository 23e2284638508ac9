"""Reward corpus-bleu against sacrebleu's corpus score: counts, value, derivative, floors."""

import itertools
import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_texts import random_batch, real_batch

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, score_rows
from esrl_fairseq.rewards.asking import ask_rows
from esrl_fairseq.rewards.bleu_counts import TOKENIZERS

SETTINGS = list(itertools.product(TOKENIZERS, (False, True)))


def statistics(metric, hypothesis, references):
    """sacrebleu's own of a sentence: lengths, matches, totals."""
    return metric._extract_corpus_statistics([hypothesis], [[text] for text in references])[0]


def smooth_bleu(mean):
    """sacrebleu's corpus BLEU of mean counts, 0 to 1: of integers that have their ratios."""
    length, reference, *ngrams = (round(float(value) * 10**12) for value in mean)
    found = sacrebleu.BLEU.compute_bleu(ngrams[:4], ngrams[4:], length, reference)
    return found.score / 100


def numerical(mean, counts, step=1e-6):
    """Of corpus BLEU, when a sentence's counts get a weight."""
    high, low = (smooth_bleu(np.asarray(mean) + sign * step * counts) for sign in (1, -1))
    return (high - low) / (2 * step)


@pytest.mark.parametrize(("tokenize", "lowercase"), SETTINGS)
def test_counts_are_those_of_sacrebleu(tokenize, lowercase):
    """One to three references, empty texts, odd words, line breaks."""
    references, hypotheses, row_input = random_batch(random.Random(3), 60, 4)
    reward = build_reward("corpus-bleu", tokenize=tokenize, lowercase=lowercase)
    metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    expected = [statistics(metric, h, references[i]) for h, i in zip(hypotheses, row_input)]
    assert np.array_equal(reward.counts(references, hypotheses, row_input), expected)


@pytest.mark.parametrize(("tokenize", "lowercase"), SETTINGS)
@pytest.mark.parametrize("longer", [False, True])
def test_values_are_the_derivative_of_sacrebleus_score(tokenize, lowercase, longer):
    """Of a corpus whose hypotheses are shorter, or longer, than their references."""
    references, hypotheses, row_input = random_batch(random.Random(4), 60, 4)
    if longer:
        hypotheses = [f"{text} a b c d e f" for text in hypotheses]
    else:
        hypotheses = [text[: len(text) * 2 // 3] for text in hypotheses]
    reward = build_reward("corpus-bleu", tokenize=tokenize, lowercase=lowercase)
    counts = reward.counts(references, hypotheses, row_input)
    mean = counts.mean(axis=0)
    assert (mean[0] > mean[1]) == longer and mean[5] > 0
    reward.moving.validated(mean)
    inputs = range(len(references))
    values = score_rows(reward, [""] * 60, hypotheses, references, row_input, inputs)
    level = smooth_bleu(mean)
    expected = [level + numerical(mean, row) for row in counts]
    np.testing.assert_allclose(reward.values(counts), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(values, expected, rtol=2e-7, atol=1e-6)
    assert np.mean(reward.values(counts)) == pytest.approx(level, abs=1e-12)
    assert np.ptp(values) > 0.5


def test_a_sentence_more_moves_the_corpus_score():
    """Texts through sacrebleu.corpus_bleu, a sentence repeated in a corpus of 200."""
    references, hypotheses, _ = random_batch(random.Random(5), 200, 1)
    references = [[texts[0]] for texts in references]
    hypotheses = [f"{texts[0]} x" if i % 3 else "a b" for i, texts in enumerate(references)]
    reward = build_reward("corpus-bleu")
    values = score_rows(reward, [""] * 200, hypotheses, references, range(200), range(200))

    def score(rows):
        flat = [references[i][0] for i in rows]
        return sacrebleu.corpus_bleu([hypotheses[i] for i in rows], [flat]).score / 100

    whole = score(range(200))
    for i in range(0, 200, 17):
        moved = score([*range(200), i]) - whole
        assert 200 * moved == pytest.approx(values[i] - whole, abs=0.02)


@given(st.lists(st.lists(st.integers(0, 3), max_size=7), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_values_are_finite_for_any_texts(words, data):
    """No matches, empty hypotheses, corpora of short ones: with floors that are far from 0."""
    hypotheses = [" ".join(map(str, text)) for text in words]
    reference = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    reward = build_reward("corpus-bleu")
    lists = [[" ".join(map(str, reference))]] * len(words)
    values = reward([""] * len(words), hypotheses, lists)
    assert np.isfinite(values).all() and (np.abs(values) < 250).all()


def test_without_a_common_word_longer_matches_still_pay():
    """A weak model: M_4 = 0. A text with a 4-gram is then worth more, as is one with a word."""
    reward = build_reward("corpus-bleu")
    references = [["a b c d e f g h"]]
    weak = reward.counts(references, ["x y z u v w r s", "a x y z u v w r"], [0, 0])
    reward.moving.validated(weak.mean(axis=0))
    texts = ["x y z u v w r s", "a x y z u v w r", "a b x y z u v w", "a b c d x y z u"]
    values = score_rows(reward, [""], texts, references, [0] * 4, [0])
    assert (np.diff(values) > 0.001).all() and values[-1] < 10
    assert score_rows(reward, [""], [""], references, [0], [0])[0] > -1


def test_a_corpus_of_empty_texts_is_finite_and_wants_longer_ones():
    reward = build_reward("corpus-bleu")
    reward.moving.validated(np.array([0, 8.0, 0, 0, 0, 0, 0, 0, 0, 0]))
    values = score_rows(reward, [""], ["", "a", "a b"], [["a b c d e f g h"]], [0] * 3, [0])
    assert np.isfinite(values).all() and (np.diff(values) > 0.001).all()


@pytest.mark.parametrize("tokenize", TOKENIZERS)
def test_the_score_of_a_corpus_is_sacrebleus(tokenize):
    references, hypotheses, row_input = random_batch(random.Random(6), 50, 1)
    references = [[texts[0]] for texts in references]
    reward = build_reward("corpus-bleu", tokenize=tokenize)
    for texts in (hypotheses, ["x"] * 50, [""] * 50, [lists[0] for lists in references]):
        flat = [[references[i][0] for i in row_input]]
        expected = sacrebleu.corpus_bleu(texts, flat, tokenize=tokenize, force=True).score / 100
        totals = reward.counts(references, texts, row_input).sum(axis=0)
        assert reward.corpus_score(totals) == pytest.approx(expected, abs=1e-12)


def test_real_translations():
    references, hypotheses, row_input = real_batch(500)
    reward = build_reward("corpus-bleu")
    counts = reward.counts(references, hypotheses, row_input)
    flat = [[texts[0] for texts in references]]
    level = sacrebleu.corpus_bleu(hypotheses, flat).score / 100
    assert reward.corpus_score(counts.sum(axis=0)) == pytest.approx(level, abs=1e-12)
    expected = [level + numerical(counts.mean(axis=0), row) for row in counts]
    np.testing.assert_allclose(reward.values(counts), expected, rtol=0, atol=1e-6)


def test_a_sum_knows_what_is_left_beside_the_corpus():
    """Rest and counts make up what validation logs; the rewards are those of the parts."""
    references, hypotheses, row_input = random_batch(random.Random(7), 20, 2)
    given = [""] * 20, hypotheses, references, row_input, range(20)
    both = ask_rows(build_reward("corpus-bleu:0.5+chrf:0.25"), *given)
    alone = ask_rows(build_reward("corpus-bleu"), *given)
    chrf = score_rows(build_reward("chrf"), *given)
    np.testing.assert_allclose(both.rewards, 0.5 * alone.rewards + 0.25 * chrf, atol=1e-6)
    np.testing.assert_allclose(both.rest, 0.25 * chrf, atol=1e-7)
    assert np.array_equal(both.counts["corpus-bleu"], alone.counts["corpus-bleu"])
    assert not alone.rest.any()
    reward = build_reward("corpus-bleu:0.5+chrf:0.25")
    assert reward.validation_range == (0, 0.75) and reward.range == (-np.inf, np.inf)
    assert not reward.in_unit_interval


def test_moving_counts():
    """Samples: from the first validation on by 1 - decay an update; validation: the last one's."""
    one, two, three = (np.full(10, float(value)) for value in (1, 2, 3))
    samples = build_reward("corpus-bleu", decay=0.75).moving
    for seen, expected in (("validated", 1), ("sampled", 1.25), ("validated", 1.25)):
        getattr(samples, seen)(one if expected == 1 else two)
        assert samples.mean.tolist() == [expected] * 10
    validation = build_reward("corpus-bleu", statistics="validation").moving
    validation.sampled(three)
    assert validation.mean is None
    for counts in (one, two):
        validation.validated(counts)
        validation.sampled(three)
        assert validation.mean.tolist() == counts.tolist()


BAD = {
    "tokenize=13b": "tokenize must be one of 13a, none, intl, char, zh, not '13b'",
    "statistics=sample": "statistics must be one of samples, validation, not 'sample' (did you mean"
    " 'samples'?)",
    "decay=1": "decay must be a number from 0 to below 1, not 1",
    "decay=-0.1": "decay must be a number from 0 to below 1, not -0.1",
    "decay=much": "decay must be a number from 0 to below 1, not 'much'",
    "decay=true": "decay must be a number from 0 to below 1, not True",
    "decay=nan": "decay must be a number from 0 to below 1, not nan",
    "statistics=validation,corpus-bleu.decay=0.5": "decay is for statistics=samples",
    "lowercase=nein": "lowercase must be true or false, not 'nein'",
    "lowercase=": "lowercase must be true or false, not ''",
    "smooth_method=exp": "has no option 'smooth_method'",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_settings(options):
    from esrl_fairseq.rewards import command_line_options

    with pytest.raises(EsrlError) as error:
        given = command_line_options("corpus-bleu", f"corpus-bleu.{options}", None, None)
        build_reward("corpus-bleu", part_options=given)
    assert str(error.value).startswith("reward 'corpus-bleu'") and BAD[options] in str(error.value)
