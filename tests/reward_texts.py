"""Texts to compare rewards with their libraries on: generated ones, and real ones if at hand."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ESRL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Folder of data sets; tests on real texts are skipped where it is missing."""

# Words on which tokenizers and n-gram counting can go wrong.
WORDS = (
    "a A the The dog dogs , . .. ., 3.5 3, ,3 1-2 3- don't &quot;x&quot; &amp;lt; <unk> <<unk>> "
    "(b) é Straße ΣΑΣ 中文 中文. ，。 ¿qué? 50% $5 a/b <skipped> x<skipped>. - -- … 5. .5 a. .a "
    "running Runner relational happily dying skies"
).split()
BLANKS = [" "] * 12 + ["  ", "\t", "\u00a0", "\x1c", "\n", "-\n"]


def random_text(rng, most=14, least=0):
    words = [
        rng.choice(WORDS[: rng.choice([6, len(WORDS)])]) for _ in range(rng.randint(least, most))
    ]
    text = "".join(word + rng.choice(BLANKS) for word in words)
    return rng.choice(["", "", " "]) + (text if rng.random() < 0.2 else text.rstrip())


def variant(rng, text):
    """Something that shares n-grams with `text`; sometimes empty, equal or with repeated words."""
    words = text.split()
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(["", text, " ", random_text(rng)])
    if kind == 1:
        return " ".join(words[:1] * rng.randint(1, 9))
    words = [w if rng.random() < 0.8 else rng.choice(WORDS) for w in words]
    cut = rng.randint(0, len(words))
    return " ".join(words[cut:] + words[:cut] if kind == 2 else words[: max(cut, 1)] * (kind - 2))


def random_batch(rng, inputs, rows_per_input):
    """References (1 to 3 an input), hypotheses and row_input, in shuffled order."""
    references = []
    for _ in range(inputs):
        first = random_text(rng, least=1) or "a"
        others = [variant(rng, first).strip() or "b" for _ in range(rng.choice([0, 0, 1, 2]))]
        references.append([first if first.strip() else "a", *others])
    row_input = [i for i in range(inputs) for _ in range(rows_per_input)]
    rng.shuffle(row_input)
    return references, [variant(rng, rng.choice(references[i])) for i in row_input], row_input


def real_batch(pairs):
    """`pairs` machine translations with their post-edits: references, hypotheses, row_input."""
    rows = _translations(pairs)
    return [[row["pe"]] for row in rows], [row["mt"] for row in rows], list(range(pairs))


def real_sources(pairs):
    """What was translated in `real_batch`."""
    return [row["src"] for row in _translations(pairs)]


def real_summaries(pairs):
    """Sentences of abstracts against the abstracts' summaries, mostly several an abstract."""
    references, hypotheses, row_input = [], [], []
    for row in _rows("scitldr", "test"):
        if len(hypotheses) < pairs:
            sentences = row["source"][: pairs - len(hypotheses)]
            row_input += [len(references)] * len(sentences)
            hypotheses += sentences
            references.append(row["target"])
    assert len(hypotheses) == pairs
    return references, hypotheses, row_input


def _translations(number):
    rows = [row for name in ("train", "dev", "test") for row in _rows("mlqe_pe_ende", name)]
    return random.Random(8).sample(rows, number)


def _rows(folder, name):
    files = sorted((DATA / folder).glob(f"{name}.jsonl.gz"))
    if not files:
        pytest.skip(f"{DATA / folder} is not here (see ESRL_TEST_DATA in CONTRIBUTING.md)")
    with gzip.open(files[0], "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
