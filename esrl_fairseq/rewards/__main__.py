"""``esrl-rewards``, ``python -m esrl_fairseq.rewards``: what a reward says of files of texts."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from fairseq.data import data_utils

import esrl_fairseq  # noqa: F401 (fairseq then loads reward models)
from esrl_fairseq.checks.options import check_post_process
from esrl_fairseq.data.subwords import OPTION, check_joining, markings
from esrl_fairseq.data.text import PRINTED_UNK, UNK_IN_HYPOTHESIS, UNK_IN_REFERENCE
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import Reward, build_reward, command_line_options
from esrl_fairseq.rewards.answers import Answer, Scores
from esrl_fairseq.rewards.asking import ask_rows

QUANTILE = 1.96  # of the normal distribution, for 95% intervals


class Parser(argparse.ArgumentParser):
    """argparse's, with a hint where an option has taken the files of hypotheses."""

    def error(self, message: str) -> NoReturn:
        if "HYPOTHESES" in message and any(word.startswith("--ref") for word in sys.argv):
            message += (
                "; --references takes all files that follow it: put -- before the hypotheses, as "
                "in --references REF REF2 -- HYP, or put these before --references"
            )
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "esrl-rewards",
        description="The mean reward (of corpus-bleu: BLEU) of each file of hypotheses, a text a "
        "line, and how far it is from the first file's (95% interval, from the lines' "
        "differences). Texts are taken as they are: tokenised as in training. Only unknown words, "
        "<unk>, match no other.",
        usage="%(prog)s [-h] --reward REWARD [options] HYPOTHESES [HYPOTHESES ...]\n"
        "       %(prog)s --reward REWARD [options] --references FILE [FILE ...] -- HYPOTHESES ...",
    )
    add = parser.add_argument
    add(
        "--reward", required=True, help="as for fairseq-train, also python:module.function or a sum"
    )
    add("--reward-options", help="as for fairseq-train")
    add("--reward-model", help="as for fairseq-train")
    add("--reward-device", help="as for fairseq-train")
    add(
        OPTION,
        help="how to join sub-words, as for fairseq-train; none scores them as they are (default: "
        "texts that have any are refused)",
    )
    add("--sources", type=Path, metavar="FILE", help="for rewards that look at the source")
    add(
        "--references",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="for rewards that need them; further files have further references, or empty lines. "
        "All files up to the next option are references: put -- before the hypotheses, or put "
        "these before --references",
    )
    add(
        "--by-line",
        action="store_true",
        help="then also the number of each line and its reward in each file, separated by tabs",
    )
    add("hypotheses", type=Path, nargs="+", metavar="HYPOTHESES", help="files, a text a line")
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


def joined(file: Path, texts: list[str], post_process: str | None) -> list[str]:
    """The texts, their sub-words joined.

    Raises:
        EsrlError: they have sub-words that are not joined so, or about which nothing is said.
    """
    words = Counter(word for text in texts for word in text.split())
    found, where = markings(words), str(file)
    if found:
        marking, _ = found[0]
        line, word = next(
            (number, word)
            for number, text in enumerate(texts, 1)
            for word in text.split()
            if marking.marks(word)
        )
        where = f"{file}, line {line}"
        if post_process is None:
            right = marking.post_process
            join = f"{OPTION} {right} to join them, or " if right else ""
            raise EsrlError(
                f"{where} has sub-words, made by {marking.maker} ({word!r} is one): give {join}"
                f"{OPTION} none to score them as they are"
            )
    if post_process is None:
        return texts
    check_joining(post_process, words, where)
    return [data_utils.post_process(text, post_process) for text in texts]


def with_stand_ins(texts: list[str], stand_in: str) -> list[str]:
    """Texts whose unknown words are what training would show the reward."""
    return [PRINTED_UNK.sub(stand_in, text) for text in texts]


def check_references(
    columns: Sequence[Sequence[str]], files: Sequence[Path], reward: Reward
) -> None:
    """Refuse a line for which no file has a reference.

    Raises:
        EsrlError: naming the first such line.
    """
    empty = [n for n, texts in enumerate(zip(*columns), 1) if not any(map(str.strip, texts))]
    if empty:
        others = ", as it is in the other files of references" if len(files) > 1 else ""
        number = f" (the first of {len(empty)} such lines)" if len(empty) > 1 else ""
        raise EsrlError(
            f"{files[0]}, line {empty[0]} is empty{others}{number}, but the reward {reward.name!r} "
            "needs references: fill such lines, or leave them out of all files"
        )


def half_interval(scores: Scores, first: Scores) -> float:
    """Half of the 95% interval of the mean of [lines] scores − first (needs two lines).

    Also of the difference between scores of corpora, whose lines have their derivatives.
    """
    values = np.asarray(scores, np.float64) - first
    return QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values))


def whole(reward: Reward, answer: Answer) -> float:
    """What the reward says of a file: a mean of its lines, or its own score if it has one."""
    if not reward.counted:
        return float(np.mean(answer.rewards, dtype=np.float64))
    scores = (
        weight * part.corpus_score(answer.counts[part.name].sum(axis=0))
        for part, weight in reward.counted
    )
    return float(np.mean(answer.rest, dtype=np.float64)) + sum(scores)


def write_table(files: Sequence[Path], reward: Reward, found: Sequence[Answer]) -> None:
    width = max(len(str(file)) for file in files)
    values = [whole(reward, answer) for answer in found]
    for file, value, answer in zip(files, values, found):
        line = f"{file!s:{width}}  {value:.4f}"
        if answer is not found[0] and len(answer.rewards) > 1:
            half = half_interval(answer.rewards, found[0].rewards)
            line += f"  {value - values[0]:+.4f} ± {half:.4f}"
        print(line)


def main() -> None:
    given = make_parser().parse_args()
    if given.reward_post_process is not None:
        check_post_process(given.reward_post_process)
    files: list[Path] = given.hypotheses
    lines = len(read(files[0]))
    if not lines:
        raise EsrlError(f"{files[0]} has no lines")

    def load(file: Path, unknown: str = "<unk>") -> list[str]:
        texts = joined(file, read(file, lines), given.reward_post_process)
        return [PRINTED_UNK.sub(unknown, text) for text in texts]

    texts = [load(file, UNK_IN_HYPOTHESIS) for file in files]
    sources = load(given.sources) if given.sources else [""] * lines
    columns = [load(file, UNK_IN_REFERENCE) for file in given.references]
    references = [[text for text in row if text.strip()] for row in zip(*columns)] or [[]] * lines
    reward = build_reward(
        given.reward,
        command_line_options(
            given.reward, given.reward_options, given.reward_model, given.reward_device
        ),
    )
    if reward.needs_references:
        if not columns:
            raise EsrlError(f"the reward {given.reward!r} needs references: give --references FILE")
        check_references(columns, given.references, reward)
    if reward.needs_sources and not given.sources:
        raise EsrlError(f"the reward {given.reward!r} needs the sources: give --sources FILE")
    found = [
        ask_rows(
            reward,
            sources,
            hypotheses,
            references,
            range(lines),
            [f"{file}, line {number}" for number in range(1, lines + 1)],
        )
        for file, hypotheses in zip(files, texts)
    ]
    print(f"{reward.signature()}, {lines} lines")
    write_table(files, reward, found)
    if given.by_line:
        for number, values in enumerate(zip(*(answer.rewards for answer in found)), 1):
            print(number, *(f"{value:.4f}" for value in values), sep="\t")


if __name__ == "__main__":
    main()
