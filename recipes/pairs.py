"""Filter pairs of sentences, however many there are: IN… → OUT (before .SOURCE and .TARGET).

The files of several IN follow each other. Without options only pairs with an empty side are
dropped, and every run of blanks becomes one. Limits count words, or tokens where text is tokenised:
they are those of Moses' clean-corpus-n.perl.
"""

import argparse
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import TextIO


def read_pairs(prefixes: list[str], langs: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Raises SystemExit where the sides of a file differ in their number of lines."""
    for prefix in prefixes:
        with ExitStack() as files:
            # newline="\n": a line ends there alone, as for wc and paste.
            sides = [
                files.enter_context(open(f"{prefix}.{lang}", encoding="utf-8", newline="\n"))
                for lang in langs
            ]
            for number, pair in enumerate(zip_longest(*sides), 1):
                if None in pair:
                    raise SystemExit(
                        f"error: {prefix}.{langs[0]} and .{langs[1]} are no pairs: one of them "
                        f"ends before line {number}"
                    )
                yield pair


class Filter:
    """Says why a pair is dropped."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.seen: set[int] = set()

    def tidy(self, line: str) -> str:
        line = " ".join(unicodedata.normalize("NFC", line).split())
        return line.lower() if self.args.lower else line

    def reason(self, pair: tuple[str, str]) -> str | None:
        """None if it is kept."""
        args = self.args
        short, long = sorted(len(side.split()) for side in pair)
        if not short:
            return "empty"
        if args.max_words and long > args.max_words:
            return "too long"
        if args.max_ratio and long > args.max_ratio * short:
            return "of too different lengths"
        if args.letters and any(share_of_letters(side) < args.letters for side in pair):
            return "not text"
        if args.translated and pair[0] == pair[1]:
            return "not translated"
        if args.distinct:
            key = hash(pair)
            if key in self.seen:
                return "repeated"
            self.seen.add(key)
        return None


def share_of_letters(text: str) -> float:
    """Of all that is no blank."""
    letters = [character.isalpha() for character in text if not character.isspace()]
    return sum(letters) / max(len(letters), 1)


def write_pair(files: tuple[TextIO, TextIO], pair: tuple[str, str]) -> None:
    for file, side in zip(files, pair):
        file.write(side + "\n")


def run(args: argparse.Namespace) -> tuple[Counter, int]:
    """How many pairs were dropped for which reason, kept (None) or held out ("held out")."""
    langs = (args.source, args.target)
    kept, held = args.out, args.held
    found: Counter = Counter()
    with ExitStack() as stack:

        def opened(prefix: str) -> tuple[TextIO, TextIO]:
            one, other = (
                stack.enter_context(open(f"{prefix}.{lang}", "w", encoding="utf-8"))
                for lang in langs
            )
            return one, other

        out, held_out = opened(kept), opened(held) if args.every else None
        rules = Filter(args)
        for pair in read_pairs(args.prefixes, langs):
            tidied = (rules.tidy(pair[0]), rules.tidy(pair[1]))
            reason = rules.reason(tidied)
            if reason is None:
                found["good"] += 1
                if held_out and found["good"] % args.every == 0:
                    reason = "held out"
                    write_pair(held_out, tidied)
                else:
                    write_pair(out, tidied)
            found[reason or "kept"] += 1
    good = found.pop("good", 0)
    return found, good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prefixes", nargs="+", metavar="IN")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--lower", action="store_true")
    parser.add_argument("--max-words", type=int, default=0)
    parser.add_argument("--max-ratio", type=float, default=0.0)
    parser.add_argument("--letters", type=float, default=0.0, help="least share of letters")
    parser.add_argument("--translated", action="store_true", help="drop pairs of equal sides")
    parser.add_argument("--distinct", action="store_true", help="each pair once")
    parser.add_argument(
        "--every", type=int, default=0, help="of the pairs that are kept each N-th one …"
    )
    parser.add_argument("--held", default="", help="… goes here, as the validation set")
    args = parser.parse_args()
    if bool(args.every) != bool(args.held):
        parser.error("--every and --held belong together")
    found, _ = run(args)
    kept, total = found.pop("kept", 0), sum(found.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(found.items()))
    print(f"> {Path(args.out).name}: {kept} of {kept + total} pairs ({reasons or 'none dropped'})")


if __name__ == "__main__":
    main()
