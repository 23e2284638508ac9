"""The tokenizer of exported fairseq models. ``export`` copies this file beside the model, where
``AutoTokenizer.from_pretrained(folder, trust_remote_code=True)`` finds it: it needs transformers
alone, and for SentencePiece that library.

No tokenizer of transformers gives fairseq's ids for subword-nmt's codes: the fast ones have no
sub-word that is unknown, as some are that codes make on the way to longer ones.
"""

import importlib
import json
import os
import shutil
import tempfile
from typing import Any

from transformers import PreTrainedTokenizer

FILES = {
    "vocab_file": "vocab.json",
    "target_vocab_file": "target_vocab.json",
    "subwords_file": "subwords.model",
    "target_subwords_file": "target_subwords.model",
}
END = "</w>"


class Codes:
    """subword-nmt's codes, of its versions 0.1 and 0.2, or fastBPE's."""

    def __init__(self, path: str):
        with open(path, encoding="utf-8") as file:
            lines = [line.strip("\r\n ").split(" ") for line in file if line.strip("\r\n ")]
        merges = [line for line in lines if not line[0].startswith("#version:")]
        if not merges or not all(len(x) == 2 or x[2:3] == x[2:] and x[2].isdigit() for x in merges):
            raise ValueError("its lines are not two symbols each, and perhaps a number")
        self.end_apart = len(lines[0]) == 2  # version 0.1: the end of a word is a symbol
        if lines[0][0].startswith("#version:"):
            self.end_apart = lines[0][1] == "0.1"
        self.ranks: dict[tuple[str, str], int] = {}
        for first, second, *_ in merges:
            self.ranks.setdefault((first, second), len(self.ranks))
        self.known: dict[str, list[str]] = {}

    def pieces(self, text: str) -> list[str]:
        found = " ".join(
            "@@ ".join(self.split(word)) for word in text.strip("\r\n ").split(" ") if word
        )
        return found.split()

    def split(self, word: str) -> list[str]:
        if word not in self.known:
            parts = [*word, END] if self.end_apart else [*word[:-1], word[-1] + END]
            parts = self.merged(parts) if len(word) > 1 else parts
            if parts[-1] == END:
                parts.pop()
            elif parts[-1].endswith(END):
                parts[-1] = parts[-1][: -len(END)]
            self.known[word] = parts
        return self.known[word]

    def merged(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            pairs = [pair for pair in zip(parts, parts[1:]) if pair in self.ranks]
            if not pairs:
                break
            best, place, after = min(pairs, key=self.ranks.__getitem__), 0, []
            while place < len(parts):
                merge = tuple(parts[place : place + 2]) == best
                after.append("".join(best) if merge else parts[place])
                place += 2 if merge else 1
            parts = after
        return parts

    @staticmethod
    def join(pieces: list[str]) -> str:
        return (" ".join(pieces) + " ").replace("@@ ", "").rstrip()


class Pieces:
    """A SentencePiece model."""

    def __init__(self, path: str):
        processor = importlib.import_module("sentencepiece").SentencePieceProcessor
        self.model = processor(model_file=path)

    def pieces(self, text: str) -> list[str]:
        return " ".join(self.model.encode(text, out_type=str)).split()

    @staticmethod
    def join(pieces: list[str]) -> str:
        return "".join(pieces).replace("\u2581", " ").strip()


KINDS: dict[str, Any] = {"subword_nmt": Codes, "sentencepiece": Pieces}


class SubwordTokenizer(PreTrainedTokenizer):
    """Text, tokenized as the training data were before sub-words, to fairseq's ids and back.

    Args:
        vocab_file: words of the source and their ids.
        subwords_file: codes or model of the source's sub-words.
        target_vocab_file, target_subwords_file: the target's, where they are others.
        subwords: ``subword_nmt`` or ``sentencepiece``.
    """

    vocab_files_names = FILES
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file,
        subwords_file,
        target_vocab_file=None,
        target_subwords_file=None,
        subwords="subword_nmt",
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        **kwargs,
    ):
        paths = (vocab_file, target_vocab_file, subwords_file, target_subwords_file)
        self.files = dict(zip(FILES, paths))
        self.sides: list[Any] = []
        for vocab, model in (
            (vocab_file, subwords_file),
            (target_vocab_file or vocab_file, target_subwords_file or subwords_file),
        ):
            with open(vocab, encoding="utf-8") as file:
                self.sides.append((json.load(file), KINDS[subwords](model)))
        self.words = {index: word for word, index in self.sides[1][0].items()}
        self.ids, self.model = self.sides[0]
        kwargs["split_special_tokens"] = True  # in a text, "</s>" is four signs
        super().__init__(
            bos_token=bos_token,
            pad_token=pad_token,
            eos_token=eos_token,
            unk_token=unk_token,
            subwords=subwords,
            **kwargs,
        )

    @classmethod
    def of(cls, vocabularies, models, subwords, **kwargs):
        """The tokenizer of one or two vocabularies, ``{word: id}``, and one or two files."""
        with tempfile.TemporaryDirectory() as folder:
            given: dict[str, Any] = dict.fromkeys(FILES)
            for name, words in zip(("vocab_file", "target_vocab_file"), vocabularies):
                given[name] = os.path.join(folder, FILES[name])
                with open(given[name], "w", encoding="utf-8") as file:
                    json.dump(words, file, ensure_ascii=False)
            if vocabularies[0] == vocabularies[-1]:
                given["target_vocab_file"] = None
            given["subwords_file"] = models[0]
            given["target_subwords_file"] = models[1] if len(models) > 1 else None
            return cls(**given, subwords=subwords, **kwargs)

    @property
    def vocab_size(self):
        return len(self.ids)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text, **kwargs):
        return self.model.pieces(text)

    def _convert_token_to_id(self, token):
        return self.ids.get(token, self.ids[str(self.unk_token)])

    def _convert_id_to_token(self, index):
        return self.words.get(index, str(self.unk_token))

    def convert_tokens_to_string(self, tokens):
        return self.model.join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*token_ids_0, *(token_ids_1 or []), self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0, token_ids_1=None, already_has_special_tokens=False
    ):
        ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        ids = token_ids_0 if already_has_special_tokens else ids
        return [int(index in self.left_out) for index in ids]

    @property
    def left_out(self):
        """Ids that are no text; fairseq prints <unk>."""
        return {self.bos_token_id, self.pad_token_id, self.eos_token_id}

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: Any = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        left_out = self.left_out if skip_special_tokens else set()
        text: str = self.model.join(
            [self._convert_id_to_token(int(index)) for index in ids if int(index) not in left_out]
        )
        return text

    def _switch_to_input_mode(self):
        self.ids, self.model = self.sides[0]

    def _switch_to_target_mode(self):
        self.ids, self.model = self.sides[1]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        written = []
        for (name, path), (words, _) in zip(self.files.items(), self.sides * 2):
            if path:
                copy = os.path.join(save_directory, prefix + FILES[name])
                if name.endswith("vocab_file"):
                    with open(copy, "w", encoding="utf-8") as file:
                        json.dump(words, file, ensure_ascii=False)
                elif os.path.abspath(path) != os.path.abspath(copy):
                    shutil.copyfile(path, copy)
                written.append(copy)
        return tuple(written)
