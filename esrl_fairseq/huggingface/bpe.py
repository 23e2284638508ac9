"""fairseq's ``--bpe hf_tokenizer``: the text of a model's words, and its words of a text."""

import dataclasses
import os
from typing import Any, Optional

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.pairs import PairWords
from esrl_fairseq.huggingface.words import Words


@dataclasses.dataclass
class HfTokenizerConfig(FairseqDataclass):
    """Options of ``--bpe hf_tokenizer``."""

    hf_tokenizer: Optional[str] = dataclasses.field(
        default=None,
        metadata={"help": "tokenizer of Hugging Face: a folder, a GGUF file or a hub name"},
    )
    hf_source_lang: Optional[str] = dataclasses.field(
        default=None,
        metadata={
            "help": "language that a multilingual model of --arch hf_seq2seq reads, by its own "
            "code (eng_Latn, en_XX), for fairseq-interactive"
        },
    )


@register_bpe("hf_tokenizer", dataclass=HfTokenizerConfig)
class HfTokenizer:
    """``encode`` and ``decode`` of :class:`Words`, for a sequence-to-sequence model those of
    :class:`PairWords`: sources are encoded, and outputs decoded."""

    def __init__(self, cfg: Any):
        where = cfg.hf_tokenizer
        if not where:
            raise EsrlError("--bpe hf_tokenizer needs --hf-tokenizer: the folder of a tokenizer")
        language = getattr(cfg, "hf_source_lang", None)  # not in older checkpoints' options
        pairs = is_seq2seq(where)
        if language and not pairs:
            raise EsrlError(f"the model of {where} reads no sources: leave out --hf-source-lang")
        words = PairWords(where, language) if pairs else Words(where)
        self.encode, self.decode = words.encode, words.decode


def is_seq2seq(where: str) -> bool:
    """Whether the model beside a tokenizer, if there is one, is one of ``--arch hf_seq2seq``."""
    name, file = library.locate(where)
    alone = os.path.isdir(name) and not os.path.exists(os.path.join(name, "config.json"))
    if file or alone:
        return False
    return library.load_config(where).model_type in library.SEQ2SEQ.types
