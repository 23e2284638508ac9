"""Two systems' outputs compared: lengths, words by frequency, n-grams, single sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest

RESAMPLES = 1000
LONGEST = 4
"""Words of the longest n-gram."""
RAREST = 3
"""An n-gram that comes less often in outputs and references together says nothing."""
FREQUENCIES = ((0, 0), (1, 1), (2, 4), (5, 9), (10, 99), (100, 999), (1000, None))
"""Classes of words by how often they come in the training data."""
Texts = Sequence[str]
References = Sequence[Sequence[str]]


@dataclass
class Score:
    """A metric of both systems, and whether they differ by more than chance.

    Attributes:
        start_range, best_range: half of the 95 % range of resampled sets.
        p: of a difference as large by chance; paired bootstrap.
        signature: of sacreBLEU.
    """

    name: str
    start: float
    best: float
    start_range: float
    best_range: float
    p: float
    signature: str


def streams(references: References) -> list[list[str | None]]:
    """References as sacreBLEU wants them: [references][lines], None where a line has fewer."""
    most = max(map(len, references))
    return [[own[i] if i < len(own) else None for own in references] for i in range(most)]


def scores(start: Texts, best: Texts, references: References, tokenize: str) -> list[Score]:
    """BLEU and chrF with sacreBLEU's paired bootstrap."""
    # Forced: its warning of tokenised text is the page's.
    metrics: dict[str, Metric] = {"BLEU": BLEU(tokenize=tokenize, force=True), "chrF": CHRF()}
    given = streams(references)
    test = PairedTest(
        [("start", start), ("best", best)], metrics, given, test_type="bs", n_samples=RESAMPLES
    )
    signatures, found = test()
    return [
        Score(
            name,
            one.score,
            other.score,
            one.ci,
            other.ci,
            # sacreBLEU's test calls equal systems the least probable ones.
            1.0 if one.score == other.score else other.p_value,
            f"{name}|{signatures[name].format()}",
        )
        for name, (one, other) in found.items()
        if name != "System"
    ]


def sentence_scores(outputs: Texts, references: References) -> list[float]:
    """chrF of each line, 0 to 100."""
    chrf = CHRF()
    return [
        float(chrf.sentence_score(text, list(own)).score) for text, own in zip(outputs, references)
    ]


def length_buckets(references: References, most: int = 6) -> list[tuple[str, list[int]]]:
    """Lines by the words of their first reference, in buckets of about the same size.

    Returns:
        The buckets' names, such as "6–9", and their lines.
    """
    lengths = np.array([len(own[0].split()) for own in references])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, most + 1)).round().astype(int))
    if len(edges) == 1:
        return [(str(edges[0]), list(range(len(lengths))))]
    buckets = []
    for low, high in zip(edges, edges[1:]):
        high = high if high == edges[-1] else high - 1
        lines = np.flatnonzero((lengths >= low) & (lengths <= high)).tolist()
        if lines:
            buckets.append((f"{low}–{high}" if high > low else str(low), lines))
    return buckets


def corpus_bleu(outputs: Texts, references: References, lines: Sequence[int], tok: str) -> float:
    """BLEU of some lines."""
    own = [references[i] for i in lines]
    bleu = BLEU(tokenize=tok, force=True)
    return float(bleu.corpus_score([outputs[i] for i in lines], streams(own)).score)


@dataclass
class WordClass:
    """Words of a class of frequency: how many the references have, and F1 of both systems."""

    name: str
    words: int
    start: float
    best: float


def word_classes(
    start: Texts, best: Texts, references: References, frequency: Counter[str]
) -> list[WordClass]:
    """F1 of words by how often they come in training; a word counts as right as often as the
    line's first reference has it."""
    firsts = [own[0] for own in references]
    found = []
    for low, high in FREQUENCIES:

        def within(word: str, low: int = low, high: int | None = high) -> bool:
            count = frequency[word]
            return count >= low and (high is None or count <= high)

        wanted = [Counter(filter(within, text.split())) for text in firsts]
        words = sum(map(total, wanted))
        name = f"{low:,}+" if high is None else f"{low}–{high}" if high > low else str(low)
        if words:
            f1 = [
                f1_of([Counter(filter(within, text.split())) for text in outputs], wanted)
                for outputs in (start, best)
            ]
            found.append(WordClass(name, words, *f1))
    return found


def f1_of(given: Sequence[Counter[str]], wanted: Sequence[Counter[str]]) -> float:
    """Harmonic mean of precision and recall, of counts line by line."""
    right = sum(total(one & other) for one, other in zip(given, wanted))
    both = sum(map(total, given)) + sum(map(total, wanted))
    return 2 * right / both if both else 0.0


def total(counted: Counter[str]) -> int:
    """All counts together."""
    return sum(counted.values())


@dataclass
class Ngram:
    """How often an n-gram comes in outputs and first references; ``excess`` in standard errors."""

    text: str
    start: int
    best: int
    reference: int
    excess: float


def ngrams_of(texts: Texts) -> Counter[str]:
    """All n-grams up to :data:`LONGEST` words."""
    found: Counter[str] = Counter()
    for text in texts:
        words = text.split()
        for n in range(1, LONGEST + 1):
            found.update(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return found


def odd_ngrams(
    start: Texts, best: Texts, references: References, most: int = 15
) -> tuple[list[Ngram], list[Ngram]]:
    """N-grams that the best model has too often, and too seldom, against the references.

    The standard error is that of a difference of two counts by chance; what is within one is not
    told of. An n-gram within a longer
    one that comes as often in all three is left out.
    """
    before, after = ngrams_of(start), ngrams_of(best)
    wanted = ngrams_of([own[0] for own in references])
    found = [
        Ngram(text, before[text], after[text], wanted[text], (after[text] - wanted[text]) / both)
        for text in after.keys() | wanted.keys()
        if after[text] + wanted[text] >= RAREST
        and (both := float(np.sqrt(after[text] + wanted[text])))
    ]
    often = sorted((n for n in found if n.excess >= 1), key=lambda n: (-n.excess, n.text))
    seldom = sorted((n for n in found if n.excess <= -1), key=lambda n: (n.excess, n.text))
    return longest(often, most), longest(seldom, most)


def longest(ngrams: Sequence[Ngram], most: int) -> list[Ngram]:
    """The first ones, without those that are a part of another with the same counts."""
    chosen: list[Ngram] = []
    counts = [(n.start, n.best, n.reference) for n in ngrams]
    by_counts: dict[tuple[int, int, int], list[str]] = {}
    for count, ngram in zip(counts, ngrams):
        by_counts.setdefault(count, []).append(f" {ngram.text} ")
    for count, ngram in zip(counts, ngrams):
        own = f" {ngram.text} "
        if not any(own in other and own != other for other in by_counts[count]):
            chosen.append(ngram)
        if len(chosen) == most:
            break
    return chosen
