"""Rewards: BLEU against sacrebleu, the registry, and what happens to broken rewards."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from reward_texts import random_batch, random_text

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import Reward, build_reward, register_reward, reward_names, score_rows
from esrl_fairseq.rewards import base as rewards_base
from esrl_fairseq.rewards.bleu import SMOOTH_METHODS, TOKENIZERS

BLEU_OPTIONS = [
    dict(smooth_method=smooth, smooth_value=value, tokenize=tokenize, lowercase=lowercase)
    for smooth, tokenize, lowercase in itertools.product(SMOOTH_METHODS, TOKENIZERS, (False, True))
    for value in ((None, 0.5) if smooth in ("floor", "add-k") else (None,))
]


def test_bleu_equals_sacrebleu():
    rng, pairs, seen = random.Random(5), 0, []
    for options in BLEU_OPTIONS:
        reward = build_reward("bleu", **options)
        metric = sacrebleu.BLEU(effective_order=True, **options)
        references, hypotheses, row_input = random_batch(rng, 25, 8)
        expected = [
            metric.sentence_score(text, references[i]).score / 100
            for text, i in zip(hypotheses, row_input)
        ]
        ids = list(range(25))
        result = score_rows(reward, [""] * 25, hypotheses, references, row_input, ids)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6, err_msg=str(options))
        pairs += len(expected)
        seen += expected
    assert pairs >= 10_000
    # The data must exercise zeros, perfect matches and everything between.
    assert all(share > 0.02 for share in np.histogram(seen, bins=5, range=(0, 1))[0] / pairs)


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_tokens_are_those_of_sacrebleu(tokenize, lowercase):
    rng = random.Random(6)
    reward = build_reward("bleu", tokenize=tokenize, lowercase=lowercase)
    metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase)
    characters = "aZ09.,-;<>&$ \t\n'\"é中。" + "٣½"
    texts = [random_text(rng) for _ in range(1000)]
    texts += ["".join(rng.choices(characters, k=rng.randint(0, 12))) for _ in range(4000)]
    for text in texts:
        assert reward.tokens(text) == metric._preprocess_segment(text).split(), repr(text)


def test_bleu_by_hand():
    reward = build_reward("bleu", tokenize="none")
    source, reference = ["s"] * 4, [["a b c d"]] * 4
    values = reward(source, ["a b c d", "a b", "", "x y"], reference)
    # two of four words: precisions 1 and 1, brevity penalty exp(1 - 4/2)
    np.testing.assert_allclose(values, [1, np.exp(-1), 0, 0], atol=1e-7)
    # clipping: "a" counts once of two; smoothed bigram precision 1/2 · 1/1
    value = reward(["s"], ["a a"], [["a b"]])
    np.testing.assert_allclose(value, [np.sqrt(0.5 * 0.5)], atol=1e-7)


def test_bleu_clips_to_the_largest_count_in_one_reference():
    reward = build_reward("bleu", tokenize="none", smooth_method="add-k")
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="add-k", effective_order=True)
    references = ["a a b", "a c a c", "c"]
    for text in ["a a a a", "c c c", "a b c", "c a c a b"]:
        expected = metric.sentence_score(text, references).score / 100
        assert reward([""], [text], [references]) == pytest.approx([expected], abs=1e-6)


def test_bleu_texts_longer_than_a_line():
    rng = random.Random(7)
    texts = [" ".join(rng.choices("abcdefgh", k=400)) for _ in range(6)]
    metric = sacrebleu.BLEU(effective_order=True)
    expected = [metric.sentence_score(text, texts[:1]).score / 100 for text in texts]
    np.testing.assert_allclose(build_reward("bleu")([""] * 6, texts, [texts[:1]] * 6), expected)


def test_bleu_word_cache_is_bounded(monkeypatch):
    reward = build_reward("bleu")
    monkeypatch.setattr(type(reward._words), "LIMIT", 3)
    for text in ["a b c d e, f.", "a, b. c"]:
        assert reward.tokens(text) == sacrebleu.BLEU().tokenizer(text).split()
    assert len(reward._words) <= 3


def test_bleu_signature_names_every_option():
    signature = build_reward("bleu", smooth_method="floor", lowercase=True).signature()
    assert signature.startswith(
        "bleu|nrefs:var|case:lc|eff:yes|tok:13a|smooth:floor[0.10]|version:"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(smooth_method="magic"), "smooth_method must be one of exp, floor, add-k, none"),
        (dict(tokenize="flores200"), "tokenize must be one of 13a"),
        (dict(smooth_value=-1), "smooth_value must be a number >= 0"),
        (dict(smooth_value="x"), "smooth_value must be a number >= 0"),
        (dict(tokenize="13A"), "not '13A' .did you mean '13a'"),
        (dict(tokenise="13a"), "'bleu' has no option 'tokenise' .did you mean 'tokenize'"),
        (dict(smoothing="exp"), "'bleu'.*smoothing.*its options are: smooth_method"),
    ],
)
def test_bleu_refuses_bad_options(options, message):
    with pytest.raises(EsrlError, match=message):
        build_reward("bleu", **options)


# --- registry ---------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(rewards_base, "_REWARDS", dict(rewards_base._REWARDS))


def test_unknown_reward_lists_the_known_ones():
    with pytest.raises(EsrlError, match="unknown reward 'blue'.*bleu"):
        build_reward("blue")


def test_names_are_registered_once(registry):
    @register_reward("mine")
    class Mine(Reward):
        def score(self, sources, references, hypotheses, row_input):
            return [0.0] * len(hypotheses)

    assert "mine" in reward_names() and build_reward("mine").signature() == "mine"
    with pytest.raises(EsrlError, match="'bleu' is already registered by BleuReward"):
        register_reward("bleu")(Mine)


# --- what stands around a reward --------------------------------------------------------------


class Fake(Reward):
    """Answers with `function(pairs)`; remembers what it was asked."""

    name = "fake"
    range = (0.0, 1.0)

    def __init__(self, function):
        self.function = function
        self.calls = []

    def score(self, sources, references, hypotheses, row_input):
        pairs = [(sources[i], text) for i, text in zip(row_input, hypotheses)]
        self.calls.append(pairs)
        return self.function(pairs)


def score(reward, hypotheses=("x", "y", "x", "x"), row_input=(0, 0, 1, 0), references="default"):
    if references == "default":
        references = [["r0"], ["r1"]]
    return score_rows(reward, ["s0", "s1"], list(hypotheses), references, row_input, [70, 71])


def test_equal_pairs_are_scored_once_and_spread_to_their_rows():
    reward = Fake(lambda pairs: [0.1, 0.2, 0.3])
    result = score(reward)
    assert reward.calls == [[("s0", "x"), ("s0", "y"), ("s1", "x")]]
    assert result.dtype == np.float32 and result.shape == (4,)
    np.testing.assert_allclose(result, [0.1, 0.2, 0.3, 0.1])


def test_plain_rows_share_equal_inputs():
    reward = Fake(lambda pairs: [0.1, 0.2, 0.3])
    result = reward(["s", "s", "s", "s"], ["x", "x", "y", "x"], [["r"], ["q"], ["r"], ["r"]])
    assert len(reward.calls[0]) == 3
    np.testing.assert_allclose(result, [0.1, 0.2, 0.3, 0.1])


def test_no_rows():
    reward = Fake(lambda pairs: [])
    assert score(reward, [], []).shape == (0,) and reward.calls == []
    assert build_reward("bleu")([], [], []).shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.001, 1e300])
def test_bad_values_name_reward_sample_and_texts(value):
    reward = Fake(lambda pairs: [value if pair == ("s1", "x") else 0.5 for pair in pairs])
    message = (
        r"reward 'fake' returned .* for sample 71 \(input: 's1', hypothesis: 'x'\).*\[0.0, 1.0"
    )
    with pytest.raises(EsrlError, match=message):
        score(reward)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_unbounded_rewards_must_be_finite_float32_too(value):
    reward = Fake(lambda pairs: [-9e30, value, 9e30])
    reward.range = Reward.range
    with pytest.raises(EsrlError, match="returned .*(nan|inf) for sample 70"):
        score(reward)
    reward.function = lambda pairs: [-9e30, 0.0, 9e30]
    np.testing.assert_allclose(score(reward), [-9e30, 0, 9e30, -9e30], rtol=1e-6)


def test_rounding_errors_are_clipped():
    result = score(Fake(lambda pairs: [1.0000001, -1e-9, 0.5]))
    np.testing.assert_array_equal(result, np.array([1, 0, 0.5, 1], dtype=np.float32))


@pytest.mark.parametrize("answer", [[0.5], [0.5] * 4, 0.5, [[0.5]] * 3])
def test_wrong_lengths(answer):
    with pytest.raises(EsrlError, match="reward 'fake' returned shape .*sample 70"):
        score(Fake(lambda pairs: answer))


def test_exceptions_name_the_row_that_raises():
    def function(pairs):
        if ("s1", "x") in pairs:
            raise KeyError("boom")
        return [0.5] * len(pairs)

    message = "reward 'fake' raised KeyError: 'boom' for sample 71 .*'s1', hypothesis: 'x'"
    with pytest.raises(EsrlError, match=message) as caught:
        score(Fake(function))
    assert isinstance(caught.value.__cause__, KeyError)


def test_few_calls_find_the_row_that_raises():
    """An expensive reward is not asked once a row."""
    calls = []

    def function(pairs):
        calls.append(len(pairs))
        if ("s", "h77") in pairs:
            raise KeyError("boom")
        return [0.5] * len(pairs)

    with pytest.raises(EsrlError, match="sample 5 .*hypothesis: 'h77'"):
        texts = [f"h{i}" for i in range(100)]
        score_rows(Fake(function), ["s"], texts, [["r"]], [0] * 100, [5])
    assert len(calls) < 10 and sum(calls) < 300


def test_exceptions_of_the_whole_batch_only():
    def function(pairs):
        if len(pairs) > 1:
            raise MemoryError("too much")
        return [0.5]

    with pytest.raises(EsrlError, match="MemoryError: too much for a batch of 3 .*sample 70"):
        score(Fake(function))


@pytest.mark.parametrize("answer", [None, ["a", "b", "c"], [[1], [1, 2], 3]])
def test_answers_that_are_no_numbers(answer):
    with pytest.raises(EsrlError, match="reward 'fake' "):
        score(Fake(lambda pairs: answer))


def test_long_texts_are_cut_in_messages():
    with pytest.raises(EsrlError) as caught:
        score(Fake(lambda pairs: [2.0] * 3), hypotheses=["x" * 9999, "y", "x", "z" * 9999])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("bad", [None, [["r0"], None], [["r0"], []], [["r0"], [""]],
                                 [["r0"], ["r", " \n"]]])  # fmt: skip
def test_missing_references(bad):
    with pytest.raises(EsrlError, match="'bleu' needs references, but sample 7[01] has"):
        score(build_reward("bleu"), references=bad)
    reward = Fake(lambda pairs: [0.5] * len(pairs))
    reward.needs_references = False
    np.testing.assert_array_equal(score(reward, references=bad), [0.5] * 4)


def test_arguments_that_do_not_fit():
    reward = build_reward("bleu")
    for arguments in (
        dict(hypotheses=["x"]),
        dict(row_input=[0, 0, 2, 0]),
        dict(row_input=[0, 0, -1, 0]),
        dict(references=[["r0"]]),
        dict(references=["r0", "r1"]),
    ):
        with pytest.raises(ValueError):
            score(reward, **arguments)
    with pytest.raises(ValueError):
        reward(["s"], ["x", "y"], [["r"]])


# --- the error --------------------------------------------------------------------------------


def test_error_is_a_value_error_in_a_program():
    with pytest.raises(ValueError, match="^what is wrong$"):
        raise EsrlError("what is wrong")


def test_error_at_the_command_line_prints_the_sentence_only():
    code = "from esrl_fairseq.errors import EsrlError; raise EsrlError('what is wrong')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.splitlines()[-1] == "what is wrong"
    assert "Traceback" not in done.stderr
