"""Sources to train on, and FLORES-200 as valid and test: RAW → CLEAN.

Of the distinct sentences of RAW/mono.SOURCE with a fitting number of words, and none of valid and
test, so many are drawn with a fixed seed.
"""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path


def read(path: Path) -> list[str]:
    """Lines with single blanks."""
    # Not splitlines(): it also splits at characters that may stand inside a line.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [" ".join(line.split()) for line in lines]


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def drawn(lines: Iterable[str], held: set[str], words: tuple[int, int], number: int) -> list[str]:
    """So many of the lines, in random order; all that fit, if these are fewer."""
    low, high = words
    fitting = sorted({line for line in lines if low <= len(line.split()) <= high} - held)
    return random.Random(1).sample(fitting, min(number, len(fitting)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--number", type=int, required=True, help="of training sentences")
    parser.add_argument("--words", type=int, nargs=2, required=True, help="fewest and most")
    parser.add_argument("raw", type=Path)
    parser.add_argument("clean", type=Path)
    given = parser.parse_args()
    held = set()
    for split in ("valid", "test"):
        sides = [read(given.raw / f"{split}.{lang}") for lang in (given.source, given.target)]
        if len(sides[0]) != len(sides[1]):
            raise SystemExit(f"error: {split} has {len(sides[0])} and {len(sides[1])} lines")
        for lang, lines in zip((given.source, given.target), sides):
            write(given.clean / f"{split}.{lang}", lines)
        held.update(sides[0])
    mono = read(given.raw / f"mono.{given.source}")
    train = drawn(mono, held, tuple(given.words), given.number)
    if not train:
        raise SystemExit(f"error: none of {len(mono)} sentences has {given.words} words")
    write(given.clean / f"train.{given.source}", train)
    print(f"> train: {len(train)} of {len(mono)} sentences")


if __name__ == "__main__":
    main()
