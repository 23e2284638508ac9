"""Comparing two systems' outputs, against counts by hand and sacreBLEU."""

import re
from collections import Counter

import pytest
import sacrebleu

from esrl_fairseq.report import comparing
from esrl_fairseq.report.differences import marked

REFERENCES = [["a dog runs"], ["two cats", "a pair of cats"], ["a house stands there today"]]
START = ["a dog", "two cats", ""]
BEST = ["a dog runs", "cats cats cats", "a house a house a house"]


def test_scores_are_those_of_sacrebleu():
    found = comparing.scores(START, BEST, REFERENCES, "none")
    assert [score.name for score in found] == ["BLEU", "chrF2"]
    padded = [[own[0] for own in REFERENCES], [None, "a pair of cats", None]]
    for outputs, name in ((START, "start"), (BEST, "best")):
        bleu = sacrebleu.corpus_bleu(outputs, padded, tokenize="none").score
        assert getattr(found[0], name) == pytest.approx(bleu)
        assert getattr(found[1], name) == pytest.approx(
            sacrebleu.corpus_chrf(outputs, padded).score
        )
    assert "bs:1000" in found[0].signature and "tok:none" in found[0].signature
    assert all(0 < score.p <= 1 for score in found)


def test_buckets_have_every_line_once():
    for lengths in ([3], [5, 5, 5], [1, 2, 3, 50], list(range(1, 40))):
        buckets = comparing.length_buckets([["w " * n] for n in lengths])
        assert sorted(i for _, lines in buckets for i in lines) == list(range(len(lengths)))
        assert len(buckets) <= 6
        for name, lines in buckets:
            low, *high = map(int, re.findall(r"\d+", name))
            assert all(low <= lengths[i] <= (high or [low])[0] for i in lines)


def test_word_classes():
    """Of the references' words, by how often they come in training; F1 by hand."""
    frequency = Counter({"a": 2000, "dog": 7, "cats": 7, "two": 1, "house": 15})
    found = {c.name: c for c in comparing.word_classes(START, BEST, REFERENCES, frequency)}
    assert list(found) == ["0", "1", "5–9", "10–99", "1,000+"]
    common = found["1,000+"]  # "a": twice in the references, once and four times in the outputs
    assert common.words == 2
    assert (common.start, common.best) == (pytest.approx(2 / 3), pytest.approx(4 / 6))
    assert found["5–9"].start == 1 and found["5–9"].best == pytest.approx(4 / 6)
    assert found["1"].best == 0 and found["0"].words == 4


def test_odd_ngrams():
    often, seldom = comparing.odd_ngrams(START * 3, BEST * 3, REFERENCES * 3)
    by_text = {n.text: n for n in often}
    assert "a house a" in by_text or "a house a house" in by_text
    cats = by_text["cats"]
    assert (cats.start, cats.best, cats.reference) == (3, 9, 3)
    assert cats.excess == pytest.approx(6 / 12**0.5)
    # What is a part of another with the same counts says nothing of its own.
    texts = [n.text for n in seldom]
    assert "stands there today" not in texts and "house stands there today" in texts
    assert all(n.excess <= -1 for n in seldom) and all(n.excess >= 1 for n in often)


@pytest.mark.parametrize("texts", [["", ""], ["same words", "same words"]])
def test_equal_systems(texts):
    references = [["some words"], ["other words"]]
    found = comparing.scores(texts, texts, references, "13a")
    assert all(score.start == score.best and score.p > 0.5 for score in found)
    assert comparing.word_classes(texts, texts, references, Counter())[0].name == "0"


def test_differences_are_marked_and_escaped():
    old, new = marked("a <b> cat sat", "a dog sat & ate")
    assert old == "a <del>&lt;b&gt; cat</del> sat"
    assert new == "a <ins>dog</ins> sat <ins>&amp; ate</ins>"
    assert marked("", "x") == ("<i>(empty)</i>", "<ins>x</ins>")
