"""Gates, products of rewards, and what is only logged: outputs that fool rewards get nothing."""

import math
import sys

import numpy as np
import pytest

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import Product, Reward, WeightedSum, build_reward, score_rows
from esrl_fairseq.rewards.asking import ask_rows

SOURCE = "Ein kleiner Hund läuft über die grüne Wiese und spielt mit einem Ball ."
REFERENCE = "A small dog runs across the green meadow and plays with a ball ."
OUTPUTS = {
    "right": "A little dog is running over the green grass and playing with a ball .",
    "copied": SOURCE,
    "copied in capitals": SOURCE.upper(),
    "French": "Un petit chien court sur la prairie verte et joue avec un ballon .",
    "empty": "",
    "signs": "... 12 , 34 !",
    "unknown": "QQQQ QQQQ QQQQ QQQQ QQQQ QQQQ QQQQ QQQQ QQQQ QQQQ",
    "far too long": " ".join(["A little dog is running over the green grass ."] * 5),
    "far too short": "A dog .",
}


def passes(name, texts=None, source=SOURCE, **options):
    """What a gate says of outputs."""
    texts = list(OUTPUTS.values()) if texts is None else texts
    reward = build_reward(name, **options)
    return score_rows(reward, [source], texts, [[REFERENCE]], [0] * len(texts), ["x"]).tolist()


@pytest.fixture
def language():
    return pytest.importorskip("py3langid")


@pytest.mark.parametrize("code", ["en", "eng_Latn", "en_XX", "EN-us"])
def test_language(code, language):
    passed = [name for name, ok in zip(OUTPUTS, passes("language-gate", language=code)) if ok]
    assert passed == ["right", "far too long", "far too short"]


def test_language_of_short_texts(language):
    """The right language is never refused for being short; a copy has to be most probable."""
    short = ["A man sleeps", "a man", "two dogs playing"]
    assert passes("language-gate", short, language="en") == [1, 1, 1]
    assert passes("language-gate", ["QQQQ QQQQ"], language="kab") == [0]  # Kabyle, by its letters
    assert passes("language-gate", ["Ein Hund ."], "Ein Hund .", language="en") == [0]
    assert passes("language-gate", ["ein  hund ."], "Ein Hund .", language="en") == [0]
    assert passes("language-gate", ["A dog runs home ."], "A dog runs home .", language="en") == [1]


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "None is no language.*language-gate.language="),
        ({"language": "tgt"}, "'tgt' is no language that py3langid knows.*, de, "),
        ({"language": "en", "odds": 0.5}, "odds must be a number from 1, not 0.5"),
    ],
)
def test_languages_that_are_not_known(given, message, language):
    with pytest.raises(EsrlError, match=message):
        build_reward("language-gate", **given)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(EsrlError, match="language-gate.*pip install py3langid"):
        build_reward("language-gate", language="en")


@pytest.mark.parametrize("to", ["source", "reference"])
@pytest.mark.parametrize("unit", ["characters", "words"])
def test_length(to, unit):
    refused = [name for name, ok in zip(OUTPUTS, passes("length-gate", to=to, unit=unit)) if not ok]
    assert refused == ["empty", "signs", "far too long", "far too short"]
    reward = build_reward("length-gate", to=to)
    assert (reward.needs_references, reward.needs_sources) == (to == "reference", to == "source")


def test_lengths_at_the_bounds_and_several_references():
    reward = build_reward("length-gate", to="reference", low=0.5, high=2, unit="words")
    texts = ["a", "a b", "a b c d e f g h", "a b c d e f g h i"]
    found = score_rows(reward, ["x"], texts, [["1 2 3 4"]], [0] * 4, ["x"])
    assert found.tolist() == [0, 1, 1, 0]
    found = score_rows(reward, ["x"], texts, [["1 2 3 4", "1 2 3 4 5"]], [0] * 4, ["x"])
    assert found.tolist() == [0, 1, 1, 1]
    assert passes("length-gate", [""], source="") == [0]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"to": "target"}, "to must be one of source, reference, not 'target'"),
        ({"unit": "tokens"}, "unit must be one of characters, words"),
        ({"low": 2, "high": 1}, "low not above high"),
        ({"low": 0}, "above 0"),
        ({"high": "long"}, "must be numbers"),
    ],
)
def test_lengths_that_make_no_sense(given, message):
    with pytest.raises(EsrlError, match=message):
        build_reward("length-gate", **given)


# --- products and what is only logged -------------------------------------------------------------


class Fixed(Reward):
    """Says what it was made with, and counts how often it is asked."""

    def __init__(self, name, values, bounds=(-math.inf, math.inf), references=False):
        self.name, self.values, self.range = name, values, bounds
        self.needs_references, self.calls = references, 0

    def score(self, sources, references, hypotheses, row_input):
        self.calls += 1
        return self.values[: len(hypotheses)]


def test_products(language):
    """A gated reward is that of what passes, and 0 of all else; no reward is asked twice."""
    options = {"language-gate": {"language": "en"}}
    name = "chrf*language-gate*length-gate:0.5+repetition*language-gate:2+bleu:0"
    reward = build_reward(name, options)
    texts = list(OUTPUTS.values())
    given = ([SOURCE], texts, [[REFERENCE]], [0] * len(texts), ["x"])
    answer = ask_rows(reward, *given)
    alone = {
        leaf: score_rows(build_reward(leaf, options), *given)
        for leaf in ("chrf", "language-gate", "length-gate", "repetition", "bleu")
    }
    gate = alone["language-gate"]
    expected = 0.5 * alone["chrf"] * gate * alone["length-gate"] + 2 * alone["repetition"] * gate
    np.testing.assert_allclose(answer.rewards, expected, rtol=1e-6)
    assert answer.rewards[list(OUTPUTS).index("copied")] == 0 < answer.rewards[0]
    assert list(answer.parts) == ["chrf", "language-gate", "length-gate", "repetition", "bleu"]
    for leaf, values in alone.items():
        np.testing.assert_array_equal(answer.parts[leaf], values)
    assert reward.range == (0, 2.5)
    assert "0.5 * chrf|" in reward.signature() and " * language-gate|en|" in reward.signature()
    rows = reward.score([SOURCE], [[REFERENCE]], texts, [0] * len(texts))
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_each_reward_is_asked_once():
    a, b = Fixed("a", [1.0, 2.0, 3.0]), Fixed("b", [0.0, 1.0, 0.5], (0, 1))
    reward = WeightedSum("s", [(Product("a*b", [a, b]), 1.0), (b, -1.0), (a, 0.0)])
    answer = ask_rows(reward, ["x"], ["1", "2", "3"], None, [0, 0, 0], ["x"])
    assert answer.rewards.tolist() == [0, 1, 1] and (a.calls, b.calls) == (1, 1)
    assert answer[[2, 0]].parts["a"].tolist() == [3, 1]
    assert reward.range == (-math.inf, math.inf)
    assert Product("p", [Fixed("c", [], (-1, 2)), Fixed("d", [], (-3, 1))]).range == (-6, 3)
    assert Product("p", [Fixed("c", [], (0, math.inf)), b]).range == (0, math.inf)


def test_what_is_only_logged_needs_nothing():
    """Without references it is left out, and nothing else changes."""
    reward = build_reward("repetition+bleu:0")
    assert not reward.needs_references and reward.range == (0, 1)
    for references, known in (([["a b"]], True), ([[]], False), (None, False), ([[" "]], False)):
        answer = ask_rows(reward, ["x"], ["a b", "a c"], references, [0, 0], ["x"])
        assert answer.rewards.tolist() == [1, 1]
        assert np.isnan(answer.parts["bleu"]).all() != known
    assert build_reward("repetition+corpus-bleu:0").needs_references  # its counts go on


@pytest.mark.parametrize(
    "name, message",
    [
        ("bleu:0", "'bleu:0': a part of weight 0 is logged and no more"),
        ("bleu*", "a name is missing"),
        ("*bleu", "a name is missing"),
        ("bleu:0.5*length-gate", "the weight of a product stands behind its last factor"),
        ("bleu*bleu", "'bleu' comes twice; leave out one"),
        ("bleu*length-gate+bleu*length-gate", "comes twice; add its weights"),
        ("corpus-bleu*length-gate", "'corpus-bleu' is the score of a whole corpus.*take bleu"),
        ("bleu*gate", "unknown reward 'gate'"),
    ],
)
def test_products_that_cannot_be(name, message):
    with pytest.raises(EsrlError, match=message):
        build_reward(name)


def test_a_function_as_a_factor(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gated_by_me.py").write_text(
        "def half(s, h, r):\n    return [0.5] * len(h)\n"
        "def errors(s, h, r):\n    return [1] * len(h)\nerrors.higher_is_better = False\n"
    )
    for name in (
        "python:gated_by_me.half*length-gate:2",
        "length-gate * python:gated_by_me.half:2",
    ):
        answer = ask_rows(build_reward(name), ["a b"], ["a c", ""], None, [0, 0], ["x"])
        assert answer.rewards.tolist() == [1, 0]
        assert answer.parts["gated_by_me.half"].tolist() == [0.5, 0.5]
    with pytest.raises(EsrlError, match="lower is better for .*cannot be a factor"):
        build_reward("python:gated_by_me.errors*length-gate")
    build_reward("length-gate+python:gated_by_me.errors:0")  # logged, not raised
