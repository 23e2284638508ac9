"""Clean parallel text: RAW/{train,valid,test}.{source,target} → CLEAN/, line by line.

Further references of a split, RAW/SPLIT.{target}1, …2 and so on, keep the lines of its pairs.

All text is put into Unicode's composed form with single blanks, and in lower case where asked.
Training pairs are dropped if a side is empty, if they are too long or of too different lengths, or
if the source or target of a valid or test pair is theirs. Valid and test pairs are never dropped.
"""

import argparse
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

Pairs = list[tuple[str, str]]
Kept = Sequence[int]


def normalize(line: str, lower: bool) -> str:
    line = " ".join(unicodedata.normalize("NFC", line).split())
    return line.lower() if lower else line


def read(path: Path, lower: bool) -> list[str]:
    # Not splitlines(): it also splits at characters that may stand inside a line.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [normalize(line, lower) for line in lines]


def read_pairs(prefix: Path, langs: tuple[str, str], lower: bool) -> Pairs:
    sides = [read(Path(f"{prefix}.{lang}"), lower) for lang in langs]
    if len(sides[0]) != len(sides[1]):
        raise SystemExit(f"error: {prefix}: {len(sides[0])} and {len(sides[1])} lines")
    return list(zip(*sides))


def read_further(prefix: Path, target: str, lower: bool, pairs: int) -> dict[str, list[str]]:
    """{ending: lines} of further references."""
    found = {}
    for path in sorted(prefix.parent.glob(f"{prefix.name}.{target}[1-9]")):
        found[path.suffix[1:]] = lines = read(path, lower)
        if len(lines) != pairs:
            raise SystemExit(f"error: {path}: {len(lines)} lines for {pairs} pairs")
    return found


def write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_split(
    prefix: Path, langs: tuple[str, str], pairs: Pairs, further: dict[str, list[str]], kept: Kept
) -> None:
    """Write the pairs and further references with the numbers in ``kept``."""
    for side, lang in enumerate(langs):
        write(Path(f"{prefix}.{lang}"), (pairs[i][side] for i in kept))
    for ending, lines in further.items():
        write(Path(f"{prefix}.{ending}"), (lines[i] for i in kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--lower", action="store_true")
    parser.add_argument("--max-words", type=int, default=100)
    parser.add_argument("--max-ratio", type=float, default=4.0)
    args = parser.parse_args()

    langs = (args.source, args.target)
    args.clean.mkdir(parents=True, exist_ok=True)
    held_out: set[str] = set()
    for split in ("valid", "test"):
        pairs = read_pairs(args.raw / split, langs, args.lower)
        further = read_further(args.raw / split, args.target, args.lower, len(pairs))
        held_out.update(side for pair in pairs for side in pair)
        held_out.update(line for lines in further.values() for line in lines)
        write_split(args.clean / split, langs, pairs, further, range(len(pairs)))
        several = f", up to {1 + len(further)} references" if further else ""
        print(f"> {split}: {len(pairs)} pairs{several}")

    pairs = read_pairs(args.raw / "train", langs, args.lower)
    further = read_further(args.raw / "train", args.target, args.lower, len(pairs))
    kept = []
    dropped = {"empty": 0, "too long": 0, "of too different lengths": 0, "held out": 0}
    for i, pair in enumerate(pairs):
        short, long = sorted(len(side.split()) for side in pair)
        if short == 0:
            dropped["empty"] += 1
        elif long > args.max_words:
            dropped["too long"] += 1
        elif long > args.max_ratio * short:
            dropped["of too different lengths"] += 1
        elif held_out.intersection(pair):
            dropped["held out"] += 1
        else:
            kept.append(i)
    write_split(args.clean / "train", langs, pairs, further, kept)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    print(f"> train: {len(kept)} of {len(pairs)} pairs kept (dropped: {reasons})")


if __name__ == "__main__":
    main()
