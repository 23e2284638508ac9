"""Sentences with their polarity as the recipe's text: RAW/sentence_polarity.zip → CLEAN.

    {train,valid,test}.text            sentences, for the language model
    {train,valid,test}.prompts         their first words (of some), for the policy
    {reward,judge}/{train,valid,test}.{prompt,continuation,ratings}
                                       for two reward models, which share no training sentence

The text is tokenised and lower-cased as it comes. Sentences are shuffled with a fixed seed.
"""

import argparse
import random
import zipfile
from pathlib import Path

PROMPT_WORDS = 4
LEAST_WORDS = 8  # of a sentence, so that something is left to be written
TRAINING_PROMPTS = 2048  # few enough that dynamic sampling visits them several times
SIZES = {"test": 1000, "valid": 500}
FILES = {"1": "sentence_polarity/rt-polarity.pos", "0": "sentence_polarity/rt-polarity.neg"}


def sentences(archive: Path) -> list[tuple[str, str]]:
    """(sentence, rating) in random order; each sentence once."""
    found = {}
    with zipfile.ZipFile(archive) as packed:
        for rating, name in FILES.items():
            for line in packed.read(name).decode("utf-8").split("\n"):
                words = line.split()
                if len(words) >= LEAST_WORDS:
                    found.setdefault(" ".join(words), rating)
    rows = sorted(found.items())
    random.Random(1).shuffle(rows)
    return rows


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("clean", type=Path)
    args = parser.parse_args()
    rest = sentences(args.raw / "sentence_polarity.zip")
    splits = {}
    for split, size in SIZES.items():
        splits[split], rest = rest[:size], rest[size:]
    splits["train"] = rest
    for split, rows in splits.items():
        texts = [text for text, _ in rows]
        write(args.clean / f"{split}.text", texts)
        prompts = [first_words(text)[0] for text in texts[:TRAINING_PROMPTS]]
        write(args.clean / f"{split}.prompts", prompts)
        for number, model in enumerate(("reward", "judge")):
            own = rows[number::2] if split == "train" else rows
            parts = [(*first_words(text), rating) for text, rating in own]
            for ending, lines in zip(("prompt", "continuation", "ratings"), zip(*parts)):
                write(args.clean / model / f"{split}.{ending}", list(lines))
        print(f"> {split}: {len(rows)} sentences")


def first_words(text: str) -> tuple[str, str]:
    """The prompt of a sentence, and the rest."""
    words = text.split()
    return " ".join(words[:PROMPT_WORDS]), " ".join(words[PROMPT_WORDS:])


if __name__ == "__main__":
    main()
