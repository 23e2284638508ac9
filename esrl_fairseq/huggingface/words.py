"""Words of fairseq's data for a Hugging Face vocabulary: a token's id as a decimal number.

The word of id i has the index i + 4 in the dictionary, behind fairseq's four special symbols.
"""

from typing import Any

from fairseq.data import Dictionary

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library


def make_dictionary(size: int) -> Dictionary:
    """The dictionary of a vocabulary of this size."""
    dictionary = Dictionary()
    for word in range(size):
        dictionary.add_symbol(str(word))
    return dictionary


def check_dictionary(dictionary: Dictionary, size: int, where: str) -> None:
    """Refuse a dictionary that is not :func:`make_dictionary`'s.

    Raises:
        EsrlError: naming both sizes.
    """
    if dictionary.symbols[dictionary.nspecial :] != [str(word) for word in range(size)]:
        raise EsrlError(
            f"the data's dictionary, of {len(dictionary) - dictionary.nspecial} words, is not that "
            f"of the model {where}, whose words are the numbers from 0 to {size - 1}: make the "
            "data with python -m esrl_fairseq.huggingface data"
        )


class Words:
    """Text to words and back.

    Args:
        where: a folder, a GGUF file or a hub name with a tokenizer.

    Raises:
        EsrlError: it cannot be loaded.
    """

    options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    """Of decoding."""

    def __init__(self, where: str):
        self.tokenizer = library.load_tokenizer(where)

    def encode(self, text: str) -> str:
        """The words of a text, without a start token at the beginning: fairseq adds its own."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        start = 1 if ids and ids[0] == self.tokenizer.bos_token_id else 0
        return " ".join(map(str, ids[start:]))

    def chat(self, text: str) -> str:
        """The words of a conversation that begins with this text, up to where its answer begins.

        Raises:
            EsrlError: the tokenizer has no template for conversations.
        """
        if not self.tokenizer.chat_template:
            raise EsrlError(
                "the tokenizer has no chat template: leave out --chat, or take an instruct model's"
            )
        message = [{"role": "user", "content": text}]
        return self.encode(
            self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        )

    def decode(self, words: str) -> str:
        """The text of words, without special tokens.

        Raises:
            EsrlError: a word is no number.
        """
        return self.text(ids_of(words))

    def text(self, ids: list[int], **more: Any) -> str:
        """That of tokens; ``more`` are the tokenizer's own options."""
        options = {**self.options, **more}
        found: str = self.tokenizer.decode(ids, skip_special_tokens=True, **options)
        return found


def ids_of(words: str) -> list[int]:
    """The tokens that words are.

    Raises:
        EsrlError: a word is no number.
    """
    try:
        return [int(word) for word in words.split()]
    except ValueError:
        raise EsrlError(
            f"{words!r} are not numbers of tokens: make the data with "
            "python -m esrl_fairseq.huggingface data"
        ) from None
