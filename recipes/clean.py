"""Clean parallel text: RAW/{train,valid,test}.{source,target} → CLEAN/, line by line.

All text is put into Unicode's composed form with single blanks, and in lower case where asked.
Training pairs are dropped if a side is empty, if they are too long or of too different lengths, or
if the source or target of a valid or test pair is theirs. Valid and test pairs are never dropped.
"""

import argparse
import unicodedata
from pathlib import Path

Pairs = list[tuple[str, str]]


def normalize(line: str, lower: bool) -> str:
    line = " ".join(unicodedata.normalize("NFC", line).split())
    return line.lower() if lower else line


def read(prefix: Path, langs: tuple[str, str], lower: bool) -> Pairs:
    sides = []
    for lang in langs:
        # Not splitlines(): it also splits at characters that may stand inside a line.
        lines = Path(f"{prefix}.{lang}").read_text(encoding="utf-8").rstrip("\n").split("\n")
        sides.append([normalize(line, lower) for line in lines])
    if len(sides[0]) != len(sides[1]):
        raise SystemExit(f"error: {prefix}: {len(sides[0])} and {len(sides[1])} lines")
    return list(zip(*sides))


def write(prefix: Path, langs: tuple[str, str], pairs: Pairs) -> None:
    for side, lang in enumerate(langs):
        text = "".join(pair[side] + "\n" for pair in pairs)
        Path(f"{prefix}.{lang}").write_text(text, encoding="utf-8")


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
        pairs = read(args.raw / split, langs, args.lower)
        held_out.update(side for pair in pairs for side in pair)
        write(args.clean / split, langs, pairs)
        print(f"> {split}: {len(pairs)} pairs")

    pairs = read(args.raw / "train", langs, args.lower)
    kept = []
    dropped = {"empty": 0, "too long": 0, "of too different lengths": 0, "held out": 0}
    for pair in pairs:
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
            kept.append(pair)
    write(args.clean / "train", langs, kept)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    print(f"> train: {len(kept)} of {len(pairs)} pairs kept (dropped: {reasons})")


if __name__ == "__main__":
    main()
