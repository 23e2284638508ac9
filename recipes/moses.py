"""Tokenise standard input as Moses' tokenizer.perl does, in several processes, line by line.

sacremoses' own command holds all lines in memory, and the sets of WMT have tens of millions.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from multiprocessing import Pool
from threading import Semaphore

from sacremoses import MosesPunctNormalizer, MosesTokenizer

LINES = 2000  # a task


def tools(language: str, normalize: bool) -> tuple[MosesTokenizer, MosesPunctNormalizer | None]:
    normalizer = MosesPunctNormalizer(language, post_remove_control_chars=True)
    return MosesTokenizer(lang=language), normalizer if normalize else None


def tokenise(lines: list[str], language: str, normalize: bool, dashes: bool) -> str:
    tokenizer, normalizer = tools(language, normalize)
    found = []
    for line in lines:
        line = normalizer.normalize(line) if normalizer else line
        found.append(tokenizer.tokenize(line, return_str=True, aggressive_dash_splits=dashes))
    return "".join(f"{line}\n" for line in found)


def parts(lines: Iterator[str]) -> Iterator[list[str]]:
    while part := [line.removesuffix("\n") for line in islice(lines, LINES)]:
        yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", required=True)
    parser.add_argument(
        "--normalize", action="store_true", help="punctuation, no control characters"
    )
    parser.add_argument("--dashes", action="store_true", help="split at hyphens (-a of Moses)")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    work = partial(tokenise, language=args.language, normalize=args.normalize, dashes=args.dashes)
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    if args.jobs == 1:
        for part in parts(sys.stdin):
            sys.stdout.write(work(part))
        return
    ahead = Semaphore(4 * args.jobs)  # imap alone would read all lines at once

    def given() -> Iterator[list[str]]:
        for part in parts(sys.stdin):
            ahead.acquire()
            yield part

    with Pool(args.jobs) as pool:
        for text in pool.imap(work, given()):
            ahead.release()
            sys.stdout.write(text)


if __name__ == "__main__":
    main()
