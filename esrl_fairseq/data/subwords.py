"""How the sub-words of data are marked, and which ``--post-process`` of fairseq's joins them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq.data import data_utils

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

OPTION = "--reward-post-process"
VALUES = ("subword_nmt", "sentencepiece", "wordpiece", "letter", "_EOW")
"""Those of fairseq's ``--post-process`` that join sub-words, a name for each way."""
NUMBERS = 1000
"""So many words that nearly all are numbers are ids of sub-words, rather than words."""


@dataclass(frozen=True)
class Marking:
    """A way to mark sub-words.

    Attributes:
        maker: who marks them so.
        example: the words "ab" and "cdef", marked; the second one is split.
        begin: what marked words begin with,
        end: or end with.
        least: share of marked words that tells. Data of other kinds have some by chance.
    """

    maker: str
    example: str
    begin: str = ""
    end: str = ""
    least: float = 0.05

    def marks(self, word: str) -> bool:
        """Whether a word has the mark."""
        mark = self.begin or self.end
        if word == mark:  # as a word of its own, it separates words that are split into characters
            return mark in "▁|"
        return word.startswith(mark) if self.begin else word.endswith(mark)

    @property
    def post_process(self) -> str | None:
        """The value that joins them; None: fairseq has none."""
        return next((value for value in VALUES if self.joined_by(value)), None)

    def joined_by(self, value: str) -> bool:
        """Whether a value of ``--post-process`` joins them, and nothing else."""
        return data_utils.post_process(self.example, value).split() == ["ab", "cdef"]


MARKINGS = (
    Marking("subword-nmt", "ab cd@@ ef", end="@@", least=0.01),
    Marking("SentencePiece", "▁ab ▁cd ef", begin="▁", least=0.01),
    Marking("WordPiece", "ab cd ##ef", begin="##"),
    Marking("a byte-level BPE such as GPT-2's", "Ġab Ġcd ef", begin="Ġ", least=0.2),
    Marking("BPE that marks the ends of words", "ab</w> cd ef</w>", end="</w>"),
    Marking("BPE that marks the ends of words", "ab_EOW cd ef_EOW", end="_EOW"),
    Marking("tensor2tensor", "ab_ cd ef_", end="_", least=0.3),
    Marking("WordPiece with underscores", "_ab _cd ef", begin="_", least=0.3),
    Marking("OpenNMT's tokenizer", "ab cd ￭ef", begin="￭"),
    Marking("OpenNMT's tokenizer", "ab cd￭ ef", end="￭"),
)
LETTERS = Marking("splitting into letters", "a b | c d e f", begin="|")
"""Only where words are letters: elsewhere a bar is a bar."""


def dictionary_words(dictionary: Any) -> dict[str, int]:
    """Words of a fairseq dictionary, without special symbols, and how often its data have them."""
    first = dictionary.nspecial
    return dict(zip(dictionary.symbols[first:], dictionary.count[first:]))


def markings(words: Mapping[str, int]) -> list[tuple[Marking, str]]:
    """How words are marked, the most frequent way first, each with a marked word.

    Args:
        words: how often each one occurs. A way counts by its share of all words or of the distinct
            ones, whatever is larger: many dictionaries have no true counts.
    """
    letters = sum(len(word) == 1 for word in words) >= 0.8 * len(words)
    total = sum(words.values())
    found = []
    for marking in (*MARKINGS, LETTERS) if letters else MARKINGS:
        marked = [word for word in words if marking.marks(word)]
        if marked:
            count = sum(words[word] for word in marked)
            share = max(len(marked) / len(words), count / max(total, 1))
            if share >= marking.least:
                found.append((share, marking, max(marked, key=words.__getitem__)))
    return [(marking, word) for _, marking, word in sorted(found, key=lambda one: -one[0])]


def check_joining(
    value: str,
    words: Mapping[str, int],
    whose: str,
    mend: str = "",
    tell: Callable[[str], None] | None = None,
) -> None:
    """Refuse a ``--reward-post-process`` that does not join the sub-words as they were split.

    Args:
        value: of the option.
        words: see :func:`markings`.
        whose: what has these words, for messages.
        mend: what to do about it, if not to give the value that fits.
        tell: gets the message instead of an error's raising.

    Raises:
        EsrlError: naming the value that does.
    """
    tell = tell or _refuse
    found = markings(words)
    if not found:
        _check_blanks(value, words, whose, mend, tell)
        return
    if any(marking.joined_by(value) for marking, _ in found):
        return
    marking, word = found[0]
    right = marking.post_process
    subwords = f"the sub-words of {whose}, made by {marking.maker} ({word!r} is one)"
    if value == "none":
        joins = f"; {OPTION} {right} joins them" if right else ""
        logger.warning("%s none leaves %s, in the reward's texts%s", OPTION, subwords, joins)
        return
    if right:
        mend = mend or f"give {OPTION} {right}"
    else:
        mend = mend or (
            "no value of fairseq's does; split the data with subword-nmt or SentencePiece, or give "
            f"{OPTION} none to score sub-words"
        )
    tell(f"{OPTION} {value!r} does not join {subwords}: {mend}")


def _check_blanks(
    value: str, words: Mapping[str, int], whose: str, mend: str, tell: Callable[[str], None]
) -> None:
    """Where no word has a mark, blanks are what separates words, but for some languages."""
    numbers = sum(word.isdecimal() for word in words)
    if numbers >= max(NUMBERS, 0.9 * len(words)):
        logger.warning(
            "the words of %s are numbers: if they are ids of sub-words, as fairseq's GPT-2 BPE "
            "writes them for BART and RoBERTa, the reward compares ids, not text",
            whose,
        )
    if data_utils.post_process("ab cd ef", value).split() == ["ab", "cd", "ef"]:
        return
    long = [word for word in words if len(word) > 1]
    if len(long) < len(words) / 2:
        return  # characters, which one may want to join
    cased = sum(word.lower() != word.upper() for word in long)  # scripts that all need blanks
    tell = tell if cased > len(long) / 2 else logger.warning
    tell(
        f"{OPTION} {value!r} removes all blanks and so makes each text one word, as no word of "
        f"{whose} is marked as a sub-word: {mend or f'give {OPTION} none'}"
    )


def _refuse(message: str) -> None:
    raise EsrlError(message)
