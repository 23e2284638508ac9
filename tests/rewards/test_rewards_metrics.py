"""chrF, TER and ROUGE against sacrebleu and rouge-score, on generated and on real texts."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from reward_texts import random_batch, real_batch, real_summaries

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, score_rows

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def bleu(**options):
    metric = sacrebleu.BLEU(effective_order=True, **options)
    return lambda text, references: metric.sentence_score(text, references).score / 100


def chrf(**options):
    metric = sacrebleu.CHRF(**options)
    return lambda text, references: metric.sentence_score(text, references).score / 100


def ter(**options):
    metric = sacrebleu.TER(**options)
    return lambda text, references: max(0, 1 - metric.sentence_score(text, references).score / 100)


def rouge(*variants, use_stemmer=True):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    metric = scorer.RougeScorer(variants, use_stemmer=use_stemmer)

    def score(text, references):
        return np.mean([value.fmeasure for value in metric.score_multi(references, text).values()])

    return score


LIBRARIES = {
    "bleu": bleu,
    "chrf": chrf,
    "ter": ter,
    "rouge": lambda **options: rouge("rouge1", "rouge2", "rougeL", **options),
    **{name: lambda name=name, **options: rouge(name, **options) for name in ROUGE},
}


def compare(name, batch, **options):
    """Ours on the whole batch against the library's values one by one, which are returned."""
    references, hypotheses, row_input = batch
    library = LIBRARIES[name](**options)
    expected = [library(text, references[i]) for text, i in zip(hypotheses, row_input)]
    reward, inputs = build_reward(name, **options), len(references)
    values = score_rows(reward, [""] * inputs, hypotheses, references, row_input, range(inputs))
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6, err_msg=f"{name} {options}")
    return expected


CHRF_OPTIONS = [
    dict(zip(("char_order", "word_order", "beta", "lowercase", "whitespace", "eps_smoothing"), v))
    for v in itertools.product((6, 2), (0, 2), (2, 1), (False, True), (False, True), (False, True))
]
TER_OPTIONS = [
    dict(zip(("normalized", "no_punct", "asian_support", "case_sensitive"), values))
    for values in itertools.product((False, True), repeat=4)
]
STEMMER = [dict(use_stemmer=value) for value in (True, False)]
SETTINGS = {"chrf": CHRF_OPTIONS, "ter": TER_OPTIONS} | dict.fromkeys(("rouge", *ROUGE), STEMMER)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_library(name):
    """All options, 1 to 3 references, empty texts, odd words, line breaks."""
    rng, seen = random.Random(5), []
    pairs = 500 if name == "ter" else 2_000  # ours is the library itself there, and slow
    inputs = pairs // len(SETTINGS[name]) // 6 + 1
    for options in SETTINGS[name]:
        seen += compare(name, random_batch(rng, inputs, 6), **options)
    assert len(seen) >= pairs
    # The data must exercise zeros, perfect matches and everything between.
    assert all(share > 0.01 for share in np.histogram(seen, bins=5, range=(0, 1))[0] / len(seen))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_equals_the_library_on_real_translations(name):
    values = compare(name, real_batch(2_000))
    assert len(values) == 2_000 and 0.3 < np.mean(values) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "ter")) for name in LIBRARIES]
)
def test_equals_the_library_on_real_summaries(name):
    """Several references, long sentences, newlines at some ends."""
    assert len(compare(name, real_summaries(2_000))) == 2_000


@pytest.mark.parametrize("name", LIBRARIES)
def test_empty_hypotheses_and_perfect_ones(name):
    LIBRARIES[name]()  # skips where the library is missing
    reference = [["the small dog runs over the hill"]] * 4
    values = build_reward(name)([""] * 4, ["", " \n", "xyz " * 9, reference[0][0]], reference)
    if name == "chrf":  # some characters of "xyz" may be found
        values[2] = 0
    np.testing.assert_allclose(values, [0, 0, 0, 1], atol=1e-7)


@pytest.mark.parametrize("name", LIBRARIES)
def test_references_without_any_word_of_the_metric(name):
    """Nothing to divide by: what the library says then."""
    compare(name, ([["中。"], ["…", "."]], ["中。", "", "a b", "…", ""], [0, 0, 1, 1, 1]))


def test_many_different_words():
    """More than two bytes of a character hold; they include the surrogates' range."""
    words = [f"w{i}" for i in range(70_000)]
    rng = random.Random(3)
    hypothesis = sorted(rng.sample(range(70_000), 60_000))
    batch = [[" ".join(words)]], [" ".join(words[i] for i in hypothesis)], [0]
    pytest.importorskip("rouge_score")
    (value,) = score_rows(build_reward("rougeL"), [""], batch[1], batch[0], batch[2], [0])
    assert value == pytest.approx(120 / 130, abs=1e-6)


def test_ter_by_hand():
    reward = build_reward("ter")
    # one shift; one substitution of four; more edits than words in the reference
    values = reward([""] * 3, ["b a", "a b c x", "v w x y z"], [["a b"], ["a b c d"], ["a b"]])
    np.testing.assert_allclose(values, [0.5, 0.75, 0], atol=1e-7)


def test_chrf_by_hand():
    # unigrams: P = 2/3, R = 2/2; bigrams: P = 1/2, R = 1/1
    precision, recall = (2 / 3 + 1 / 2) / 2, 1
    expected = 5 * precision * recall / (4 * precision + recall)
    assert build_reward("chrf")([""], ["abx"], [["a b"]]) == pytest.approx([expected], abs=1e-6)


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    text, references = "the cats ran", [["the cat", "a dog ran off today"]]
    expected = {"rouge1": 4 / 5, "rouge2": 2 / 3, "rougeL": 4 / 5, "rougeLsum": 4 / 5}
    for name, value in expected.items():
        assert build_reward(name)([""], [text], references) == pytest.approx([value], abs=1e-6)
    mean = (4 / 5 + 2 / 3 + 4 / 5) / 3
    assert build_reward("rouge")([""], [text], references) == pytest.approx([mean], abs=1e-6)
    plain = build_reward("rouge1", use_stemmer=False)([""], [text], references)
    assert plain == pytest.approx([2 / 5], abs=1e-6)


def test_signatures_name_every_option():
    assert (
        build_reward("chrf", word_order=2, beta=3)
        .signature()
        .startswith("chrf|beta:3|nrefs:var|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")
    )
    assert (
        build_reward("ter", no_punct=True)
        .signature()
        .startswith(
            "ter|max(0,1-TER/100)|nrefs:var|case:lc|tok:tercom|norm:no|punct:no|asian:no|version:"
        )
    )
    pytest.importorskip("rouge_score")
    assert (
        build_reward("rouge", use_stemmer=False)
        .signature()
        .startswith("rouge|mean:rouge1+rouge2+rougeL|f1|nrefs:best|stem:no|rouge-score:")
    )
    assert build_reward("rougeL").signature().startswith("rougeL|mean:rougeL|f1|nrefs:best|stem:po")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("chrf", dict(char_order=0), "char_order must be a whole number >= 1, not 0"),
        ("chrf", dict(word_order=-1), "word_order must be a whole number >= 0"),
        ("chrf", dict(beta=0.5), "beta must be a whole number >= 1, not 0.5"),
        ("ter", dict(beta=2), "'ter'.*its options are: normalized"),
        ("rouge", dict(stem=True), "'rouge'.*its options are: use_stemmer"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(EsrlError, match=message):
        build_reward(name, **options)


@pytest.mark.parametrize("library", ["rouge_score", "rapidfuzz"])
@pytest.mark.parametrize("name", ["rouge", "bleu:0.5+rougeL:0.5"])
def test_missing_extra(monkeypatch, library, name):
    pytest.importorskip("rouge_score")
    for module in [
        library,
        *(module for module in sys.modules if module.startswith(f"{library}.")),
    ]:
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(EsrlError, match="pip install rouge-score rapidfuzz .the extra 'rouge'.$"):
        build_reward(name)
    assert build_reward("chrf").name == "chrf"


def test_rouge_needs_nothing_from_the_network():
    """nltk would look for data files and fetch them on demand; its stemmer needs none."""
    pytest.importorskip("rouge_score")
    code = (
        "import nltk, socket\n"
        "def refuse(*_, **__): raise AssertionError('not asked for')\n"
        "nltk.download = nltk.data.find = socket.socket.connect = refuse\n"
        "from esrl_fairseq.rewards import build_reward\n"
        "for name in ('rouge', 'rougeLsum'):\n"
        "    print(build_reward(name)([''], ['a b\\nc'], [['a b c']]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
