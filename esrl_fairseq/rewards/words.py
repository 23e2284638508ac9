"""A cache that tokenizes each distinct word once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain


class WordCache(dict[str, tuple[str, ...]]):
    """Blank-separated word -> its tokens.

    For tokenizers that may be applied word by word. Their regular expressions and stemmers take
    most of a metric's time, and a text has few words that were never seen before.

    Args:
        tokenize: the tokens of one word.
    """

    LIMIT = 1 << 18

    def __init__(self, tokenize: Callable[[str], Iterable[str]]) -> None:
        super().__init__()
        self._tokenize = tokenize

    def __missing__(self, word: str) -> tuple[str, ...]:
        if len(self) >= self.LIMIT:
            self.clear()
        tokens = self[word] = tuple(self._tokenize(word))
        return tokens

    def tokens(self, text: str) -> list[str]:
        """The tokens of all words of a text."""
        return list(chain.from_iterable(map(self.__getitem__, text.split())))
