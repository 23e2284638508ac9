"""What a report shows of a run's outcome: the start model against the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from esrl_fairseq.report import comparing
from esrl_fairseq.report.differences import EMPTY, marked, pair
from esrl_fairseq.report.figures import Figure, Html, Section, bars, table
from esrl_fairseq.report.reading import Recorded
from esrl_fairseq.report.translating import Translations, translate

SHOWN = 10
"""Sentences with the largest gain, and with the largest loss."""


def sections(run: Recorded, given: Any) -> list[Section]:
    """Translate with both models, and compare."""
    found = translate(run, given)
    return compared(found, f"{given.subset}, {len(found.names):,} lines, beam {given.beam}")


def compared(found: Translations, what: str) -> list[Section]:
    """The sections about two models' outputs.

    Args:
        what: was translated, for the reader.
    """
    return [
        score_section(found, what),
        length_section(found),
        word_section(found),
        ngram_section(found),
        sentence_section(found),
    ]


def score_section(found: Translations, what: str) -> Section:
    """Scores, their difference, and whether it is more than chance."""
    scores = comparing.scores(found.start, found.best, found.references, found.tokenize)
    rows: list[Sequence[Any]] = [
        (
            score.name,
            f"{score.start:.2f} ± {score.start_range:.2f}",
            f"{score.best:.2f} ± {score.best_range:.2f}",
            f"{score.best - score.start:+.2f}",
            f"{score.p:.4f}",
        )
        for score in scores
    ]
    wanted = sum(len(own[0].split()) for own in found.references) or 1
    ratios = [sum(len(t.split()) for t in texts) / wanted for texts in (found.start, found.best)]
    rows.append(
        ("length ratio", *(f"{r:.3f}" for r in ratios), f"{ratios[1] - ratios[0]:+.3f}", "")
    )
    empty = [sum(not text.split() for text in texts) for texts in (found.start, found.best)]
    rows.append(("empty outputs", *empty, f"{empty[1] - empty[0]:+d}", ""))
    html = table(("", "start", "best", "difference", "p"), rows, (1, 2, 3, 4))
    signatures = "<br>".join(f"<code>{escape(score.signature)}</code>" for score in scores)
    files = (
        f"start: <code>{escape(found.start_file)}</code><br>best: <code>{escape(found.best_file)}"
    )
    if not found.detokenized:
        html += (
            "<p class=small>Texts are scored as they are in the data (no --reward-detokenizer): if "
            "these are tokenised, compare the scores with each other alone.</p>"
        )
    html += f"<p class=small>{signatures}</p><p class=small>{files}</code></p>"
    return Section(
        "Is the best checkpoint better than the start?",
        f"Of {what}. ± is half of the 95 % range of {comparing.RESAMPLES:,} resampled sets; p is "
        "the chance of such a difference between equal systems (paired bootstrap): above 0.05 "
        "it may well be chance. Look at the metric that was not the reward, too.",
        html=html,
    )


def length_section(found: Translations) -> Section:
    """BLEU by length of the reference."""
    buckets = comparing.length_buckets(found.references)
    names = [f"{name} ({len(lines):,})" for name, lines in buckets]
    traces = []
    for colour, (name, texts) in enumerate((("start", found.start), ("best", found.best))):
        values = [
            comparing.corpus_bleu(texts, found.references, lines, found.tokenize)
            for _, lines in buckets
        ]
        traces.append(bars(name, names, values, colour))
    layout = {"barmode": "group", "bargap": 0.4, "xaxis": {"type": "category"}}
    figure = Figure("BLEU by words of the reference", traces, "words (lines)", layout)
    return Section(
        "Is it better for all lengths?",
        "A gain that comes from short or long sentences alone is often one of length.",
        [figure],
    )


def word_section(found: Translations) -> Section:
    """F1 of words by their frequency in training."""
    if not found.frequency:
        return Section("Does it keep rare words?", "")
    args = found.start, found.best, found.references, found.frequency
    classes = comparing.word_classes(*args)
    names = [f"{c.name} ({c.words:,})" for c in classes]
    traces = [
        bars("start", names, [c.start for c in classes], 0),
        bars("best", names, [c.best for c in classes], 1),
    ]
    layout = {"barmode": "group", "bargap": 0.4, "xaxis": {"type": "category"}}
    title = "F1 of words by how often they come in training"
    return Section(
        "Does it keep rare words?",
        "Rewards by n-grams pay for frequent words. Where rare ones get worse, the gain is paid "
        "for: add references' likelihood (--mle-weight), or a KL penalty.",
        [Figure(title, traces, "times in training (words)", layout)],
    )


def ngram_section(found: Translations) -> Section:
    """N-grams that come too often and too seldom."""
    often, seldom = comparing.odd_ngrams(found.start, found.best, found.references)
    html = ""
    for name, ngrams in (("Too often", often), ("Too seldom", seldom)):
        rows = [(n.text, n.start, n.best, n.reference, f"{n.excess:+.1f}") for n in ngrams]
        head = ("n-gram", "start", "best", "reference", "s. e.")
        html += f"<div><h3>{name}</h3>{table(head, rows, (1, 2, 3, 4))}</div>"
    return Section(
        "Which words does it overuse?",
        "Counts in the outputs and in the references. Gaming shows here first: what the best model "
        "says far more often than the references, and than the start did, is what the reward pays "
        "for. The last column is how many standard errors it is off the references.",
        html=f"<div class=figures>{html}</div>",
    )


def sentence_section(found: Translations) -> Section:
    """Those with the largest gain and loss in chrF."""
    before = comparing.sentence_scores(found.start, found.references)
    after = comparing.sentence_scores(found.best, found.references)
    gains = [b - a for a, b in zip(before, after)]
    order = sorted(range(len(gains)), key=lambda i: -gains[i])
    better = sum(gain > 0 for gain in gains)
    worse = sum(gain < 0 for gain in gains)
    html = ""
    for title, lines in (
        ("Largest gains", [i for i in order[:SHOWN] if gains[i] > 0]),
        ("Largest losses", [i for i in order[::-1][:SHOWN] if gains[i] < 0]),
    ):
        html += f"<h3>{title}</h3>" + ("" if lines else "<p>None.</p>")
        for i in lines:
            old, new = marked(found.start[i], found.best[i])
            html += pair(
                f"{found.names[i]}: {gains[i]:+.1f}",
                [
                    ("source", Html(escape(found.sources[i]) or EMPTY)),
                    ("reference", Html(escape(found.references[i][0]))),
                    (f"start, chrF {before[i]:.1f}", old),
                    (f"best, chrF {after[i]:.1f}", new),
                ],
            )
    return Section(
        "Which sentences changed most?",
        f"By chrF of the sentence: {better:,} are better, {worse:,} worse, "
        f"{len(gains) - better - worse:,} equal. Words in which the two outputs differ are marked.",
        html=html,
    )
