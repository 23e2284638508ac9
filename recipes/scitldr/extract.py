"""SciTLDR's RAW/{train,dev,test}.jsonl → RAW/{train,valid,test}.{abstract,tldr,tldr1,…}.

Each line of a .jsonl file is a paper: "source" is the list of its abstract's sentences, "target"
that of its summaries (TLDRs), the authors' own first. Papers of valid and test have several; the
further ones go to tldr1, tldr2 and so on, with empty lines where a paper has fewer.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def one_line(texts: Iterable[str]) -> str:
    """Texts as one line; some of the data's sentences end in line breaks."""
    return " ".join(" ".join(texts).split())


def columns(papers: list[dict]) -> dict[str, list[str]]:
    """{ending of the file: its lines}."""
    targets = [[one_line([text]) for text in paper["target"]] for paper in papers]
    found = {"abstract": [one_line(paper["source"]) for paper in papers]}
    for number, lines in enumerate(zip_longest(*targets, fillvalue="")):
        found[f"tldr{number or ''}"] = list(lines)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    args = parser.parse_args()

    for theirs, ours in SPLITS.items():
        with (args.raw / f"{theirs}.jsonl").open(encoding="utf-8") as file:
            papers = [json.loads(line) for line in file]
        found = columns(papers)
        for ending, lines in found.items():
            text = "".join(f"{line}\n" for line in lines)
            (args.raw / f"{ours}.{ending}").write_text(text, encoding="utf-8")
        print(f"> {ours}: {len(papers)} papers, up to {len(found) - 1} summaries of each")


if __name__ == "__main__":
    main()
