"""CNN/DailyMail's RAW/*.parquet → RAW/{train,valid,test}.{article,highlights}, a document a line.

Articles are cut to their first words, where most of a news article's summary is. The sentences of a
summary, one a line in the data, are joined by the separator.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
DOCUMENTS = {"train": 287_113, "validation": 13_368, "test": 11_490}


def first_words(article: str, number: int) -> str:
    """The article's first words, separated by single blanks."""
    return " ".join(article.split()[:number])


def joined_sentences(highlights: str, separator: str) -> str:
    """The summary's sentences, one a line, as one line in which nothing else is a separator."""
    lines = highlights.replace(separator, " ").split("\n")
    sentences = [" ".join(line.split()) for line in lines]
    return f" {separator} ".join(sentence for sentence in sentences if sentence)


def read_documents(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Articles and highlights."""
    from pyarrow import parquet

    documents: list[tuple[str, str]] = []
    for path in paths:
        try:
            table = parquet.read_table(path, columns=["article", "highlights"]).to_pydict()
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own are such
            reason = str(error).split("\n")[0]
            print(f"error: {path} is no whole table of documents: {reason}", file=sys.stderr)
            sys.exit(3)
        documents += zip(table["article"], table["highlights"])
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--separator", required=True)
    parser.add_argument("--max-words", type=int, required=True, help="of an article")
    args = parser.parse_args()

    for theirs, ours in SPLITS.items():
        documents = read_documents(sorted(args.raw.glob(f"{theirs}-*.parquet")))
        if len(documents) != DOCUMENTS[theirs]:
            raise SystemExit(
                f"error: {args.raw}/{theirs}-*.parquet hold {len(documents)} documents instead of "
                f"{DOCUMENTS[theirs]}: they are not those of version 3.0.0, or a file is missing"
            )
        lines = {
            "article": [first_words(article, args.max_words) for article, _ in documents],
            "highlights": [joined_sentences(text, args.separator) for _, text in documents],
        }
        for ending, texts in lines.items():
            text = "".join(f"{line}\n" for line in texts)
            (args.raw / f"{ours}.{ending}").write_text(text, encoding="utf-8")
        print(f"> {ours}: {len(documents)} documents")


if __name__ == "__main__":
    main()
