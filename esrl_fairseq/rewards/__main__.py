"""``python -m esrl_fairseq.rewards``: what a reward says of files of texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import esrl_fairseq  # noqa: F401 (fairseq then loads reward models)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, command_line_options
from esrl_fairseq.rewards.base import Scores

QUANTILE = 1.96  # of the normal distribution, for 95% intervals


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m esrl_fairseq.rewards",
        description="The mean reward of each file of hypotheses, a text a line, and how far it is "
        "from the first file's (95% interval, from the lines' differences). Texts are taken as "
        "they are: tokenised as in training, without sub-words.",
    )
    add = parser.add_argument
    add(
        "--reward", required=True, help="as for fairseq-train, also python:module.function or a sum"
    )
    add("--reward-options", help="as for fairseq-train")
    add("--reward-model", help="as for fairseq-train")
    add("--reward-device", help="as for fairseq-train")
    add("--sources", type=Path, help="for rewards that look at the source")
    add(
        "--references",
        type=Path,
        nargs="+",
        default=[],
        help="for rewards that need them; further files have further references, or empty lines",
    )
    add("hypotheses", type=Path, nargs="+")
    return parser


def read(file: Path, lines: int | None = None) -> list[str]:
    """The file's lines.

    Raises:
        EsrlError: it cannot be read, or does not have that many lines.
    """
    try:
        with open(file, encoding="utf-8", newline="\n") as opened:
            texts = [line.rstrip("\r\n") for line in opened]
    except (OSError, UnicodeDecodeError) as error:
        raise EsrlError(f"{file} cannot be read: {error}") from error
    if lines is not None and len(texts) != lines:
        raise EsrlError(
            f"{file} has {len(texts)} lines, but the first file of hypotheses has {lines}: line n "
            "of each file belongs to the same source"
        )
    return texts


def difference(scores: Scores, first: Scores) -> tuple[float, float]:
    """Mean of [lines] scores − first, and half of its 95% interval (needs two lines)."""
    values = np.asarray(scores, np.float64) - first
    return float(values.mean()), QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values))


def write_table(files: Sequence[Path], found: Sequence[Scores]) -> None:
    width = max(len(str(file)) for file in files)
    for file, scores in zip(files, found):
        line = f"{file!s:{width}}  {np.mean(scores, dtype=np.float64):.4f}"
        if scores is not found[0] and len(scores) > 1:
            line += "  {:+.4f} ± {:.4f}".format(*difference(scores, found[0]))
        print(line)


def main() -> None:
    given = make_parser().parse_args()
    files: list[Path] = given.hypotheses
    texts = [read(files[0])]
    lines = len(texts[0])
    if not lines:
        raise EsrlError(f"{files[0]} has no lines")
    texts += [read(file, lines) for file in files[1:]]
    sources = read(given.sources, lines) if given.sources else [""] * lines
    columns = [read(file, lines) for file in given.references]
    references = [[text for text in row if text] for row in zip(*columns)] or [[]] * lines
    reward = build_reward(
        given.reward,
        command_line_options(
            given.reward, given.reward_options, given.reward_model, given.reward_device
        ),
    )
    if reward.needs_references and not columns:
        raise EsrlError(f"the reward {given.reward!r} needs references: give --references FILE")
    if reward.needs_sources and not given.sources:
        raise EsrlError(f"the reward {given.reward!r} needs the sources: give --sources FILE")
    found = [reward(sources, hypotheses, references) for hypotheses in texts]
    print(f"{reward.signature()}, {lines} lines")
    write_table(files, found)


if __name__ == "__main__":
    main()
