"""Words of sources and targets for sequence-to-sequence models, see :mod:`.words`.

A source's words are its tokens as the tokenizer gives them, the language's among them, but for the
end token: that is fairseq's EOS. Where the last token is another one, all tokens are words, and the
line begins with fairseq's start symbol, which says so. A target's words are its tokens without what
a policy does not choose: the start token, forced tokens, and what stands behind the text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fairseq.data import Dictionary

from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.generation import policy_of
from esrl_fairseq.huggingface.languages import (
    MULTILINGUAL,
    Start,
    chosen,
    codes_of,
    start_of,
)
from esrl_fairseq.huggingface.words import Words, ids_of

WHOLE = Dictionary().symbols[Dictionary().bos()]
"""The first word of sources that hold all of their tokens."""


class PairWords(Words):
    """Texts of both sides to words and back.

    Args:
        where: a folder or a hub name with a model's tokenizer and configuration.
        source, target: codes of the languages, for models that know some; only encoding needs
            them. See :func:`chosen`.
        endings: of the data's files.

    Raises:
        EsrlError: they cannot be loaded.
    """

    options: dict[str, Any] = {}

    def __init__(
        self,
        where: str,
        source: str | None = None,
        target: str | None = None,
        endings: tuple[str | None, str | None] = (None, None),
    ):
        super().__init__(where)
        self.where, self.settings = where, library.load_settings(where)
        self.given = {"source": source, "target": target}
        self.endings = dict(zip(self.given, endings))
        self.end = library.end_tokens(self.settings)[:1]
        self.codes: dict[str, str | None] = {}
        self.forced: list[int] = []
        # Not all tokenizers know them for special tokens.
        self.languages = set(codes_of(self.tokenizer).values())
        # Tokenizers in Python may have a vocabulary for each side; FSMT's forgets the target's.
        separate = hasattr(self.tokenizer, "tgt_vocab_file")
        self.marian = getattr(self.tokenizer, "separate_vocabs", False)
        self.swapped = {}
        if separate or self.marian:
            self.swapped["decoder"] = inverse(self.tokenizer.encoder)
        if separate:
            self.swapped["encoder"] = inverse(self.tokenizer.decoder)

    def code(self, side: str) -> str | None:
        """The language of a side; None for models without languages."""
        if side not in self.codes:
            found = None
            if self.given[side] or self.settings.config.model_type in MULTILINGUAL:
                found = chosen(self.where, self.given[side], side, self.endings[side])
            self.codes[side] = found
            if side == "target":
                kind = self.settings.config.model_type
                start = Start() if found is None else start_of(self.where, kind, found)
                self.forced = [*policy_of(self.settings, self.where, start).start[1:]]
        return self.codes[side]

    def encode(self, text: str) -> str:
        """The words of a source.

        Raises:
            EsrlError: no language is chosen, or one that the model does not know.
        """
        code = self.code("source")
        if not text.strip():
            return ""
        if code is not None and self.tokenizer.src_lang != code:
            self.tokenizer.src_lang = code
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if ids[-1:] == self.end:
            return " ".join(map(str, ids[:-1]))
        return " ".join([WHOLE, *map(str, ids)])

    def encode_target(self, text: str) -> str:
        """The words of a target; see :meth:`encode`."""
        code = self.code("target")
        if not text.strip():
            return ""
        if code is not None:
            self.tokenizer.tgt_lang = code
        own, whole = (self.target_ids(text, add) for add in (False, True))
        places = range(len(whole) - len(own) + 1)
        begin = next((i for i in places if whole[i : i + len(own)] == own), 0)
        before = whole[:begin]
        if before[: len(self.forced)] == self.forced:
            before = before[len(self.forced) :]
        return " ".join(map(str, [*before, *own]))

    def target_ids(self, text: str, special: bool) -> list[int]:
        """Tokens of a target, with special ones or without."""
        options = {"add_special_tokens": special, "verbose": False}
        if "encoder" not in self.swapped:
            found: list[int] = self.tokenizer(text_target=text, **options)["input_ids"]
            return found
        other = {"encoder": self.swapped["encoder"], "src_lang": self.tokenizer.tgt_lang}
        with changed(self.tokenizer, **other):
            return list(self.tokenizer(text, **options)["input_ids"])

    def text(self, ids: list[int], **more: Any) -> str:
        return super().text([token for token in ids if token not in self.languages], **more)

    def decode_source(self, words: str) -> str:
        """The text of a source's words, as :meth:`decode` for those of targets."""
        if "decoder" not in self.swapped:
            return self.decode(words)
        other = {"decoder": self.swapped["decoder"]}
        if "encoder" in self.swapped:
            other["tgt_lang"] = self.tokenizer.src_lang
        use = {"use_source_tokenizer": True} if self.marian else {}
        with changed(self.tokenizer, **other):
            return self.text(ids_of(words), **use)


def inverse(table: dict[Any, Any]) -> dict[Any, Any]:
    """Keys by values."""
    return {value: key for key, value in table.items()}


@contextlib.contextmanager
def changed(thing: Any, **values: Any) -> Iterator[None]:
    """Within, ``thing`` has other attributes."""
    before = {name: getattr(thing, name) for name in values}
    vars(thing).update(values)
    try:
        yield
    finally:
        vars(thing).update(before)
