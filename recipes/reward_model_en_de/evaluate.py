"""How often a reward model prefers what people prefer, on data that it has not seen.

mlqe: of the test set's post-edits and machine translations; and the correlation with the ratings.
mqm:  of two different translations of a segment (some are a person's), the one with the better
      expert MQM score. Intervals are percentiles of a bootstrap over segments, whose pairs depend
      on each other.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sacremoses import MosesTokenizer

from esrl_fairseq.rewards import build_reward
from recipes.intervals import interval

Row = dict[str, Any]
Scorer = Callable[[list[str], list[str]], np.ndarray]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokenised(texts: list[str], language: str) -> list[str]:
    """As the training data: what `sacremoses tokenize` makes of the texts."""
    tokenizer = MosesTokenizer(language)
    known = {text: tokenizer.tokenize(text, return_str=True) for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def near_length(sources: list[str], outputs: list[str]) -> np.ndarray:
    """Baseline: higher for a number of words nearer to the source's."""
    ratios = [len(o.split()) / len(s.split()) for s, o in zip(sources, outputs)]
    return -np.abs(np.log(ratios))


def shorter(sources: list[str], outputs: list[str]) -> np.ndarray:
    """Baseline: higher for fewer words."""
    return -np.array([len(output.split()) for output in outputs], dtype=float)


def wins(scores: np.ndarray, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """1 for each pair whose better output scores higher, 1/2 for equal scores; [pairs]."""
    difference = scores[better] - scores[worse]
    return np.where(difference == 0, 0.5, difference > 0)


def mqm_pairs(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair of different texts and scores: rows of the better and worse one, and segment.

    Equal texts were rated differently 2,731 times: no scorer can tell these apart.
    """
    by_segment: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_segment.setdefault(row["seg"], []).append(number)
    pairs = [
        ((one, other) if rows[one]["mqm"] > rows[other]["mqm"] else (other, one), segment)
        for segment, numbers in by_segment.items()
        for one, other in itertools.combinations(numbers, 2)
        if rows[one]["mqm"] != rows[other]["mqm"] and rows[one]["mt"] != rows[other]["mt"]
    ]
    chosen = np.array([pair for pair, _ in pairs])
    return chosen[:, 0], chosen[:, 1], np.array([segment for _, segment in pairs])


def mlqe_pairs(rows: list[Row]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All outputs (machine translations, then post-edits), and the numbers of each pair."""
    outputs = [row["mt"] for row in rows] + [row["pe"] for row in rows]
    edited = np.array([i for i, row in enumerate(rows) if row["pe"] != row["mt"]])
    return outputs, edited + len(rows), edited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("checkpoint")
    args = parser.parse_args()
    reward = build_reward("model", model=args.checkpoint)
    scorers: dict[str, Scorer] = {
        "reward model": lambda sources, outputs: np.asarray(reward(sources, outputs)),
        "length nearer to the source's": near_length,
        "shorter": shorter,
    }

    mqm = read(args.raw / "mqm.jsonl")
    sources = tokenised([row["src"] for row in mqm], "en")
    outputs = tokenised([row["mt"] for row in mqm], "de")
    better, worse, segments = mqm_pairs(mqm)
    print(f"> MQM: {len(better)} pairs of {len(set(segments))} segments")
    found = {}
    for name, scorer in scorers.items():
        found[name] = wins(scorer(sources, outputs), better, worse)
        low, high = interval(found[name], segments)
        print(f">   {name}: accuracy {found[name].mean():.4f} [{low:.4f}, {high:.4f}]")
    for name in list(found)[1:]:
        gain = found["reward model"] - found[name]
        low, high = interval(gain, segments)
        print(f">   reward model - {name}: {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]")

    mlqe = read(args.raw / "mlqe-test.jsonl")
    texts, better, worse = mlqe_pairs(mlqe)
    sources = tokenised([row["src"] for row in mlqe] * 2, "en")
    outputs = tokenised(texts, "de")
    print(f"> MLQE-PE test: {len(better)} pairs of post-edit and translation, {len(mlqe)} ratings")
    for name, scorer in scorers.items():
        scores = scorer(sources, outputs)
        found[name] = wins(scores, better, worse)
        low, high = interval(found[name], worse)
        ratings = [row["da_z"] for row in mlqe]
        correlation = np.corrcoef(scores[: len(mlqe)], ratings)[0, 1]
        print(
            f">   {name}: accuracy {found[name].mean():.4f} [{low:.4f}, {high:.4f}], "
            f"correlation with the ratings {correlation:+.4f}"
        )


if __name__ == "__main__":
    main()
