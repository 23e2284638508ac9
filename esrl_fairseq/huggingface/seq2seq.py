"""The fairseq model ``hf_seq2seq``: a sequence-to-sequence model of transformers.

fairseq's vocabulary lies around the model's own, as in :mod:`esrl_fairseq.huggingface.model`. What
``generate`` puts before a text (the start token, the language to write) is read where fairseq's
decoders read EOS, and has no place in rows or data; what it forbids has no probability.
"""

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.tasks.translation import TranslationTask

from esrl_fairseq.data.text import Decode
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import adapters, library
from esrl_fairseq.huggingface.families import family_of, source_words, target_words
from esrl_fairseq.huggingface.generation import not_followed, policy_of
from esrl_fairseq.huggingface.languages import MULTILINGUAL, Start, chosen, start_of
from esrl_fairseq.huggingface.pairs import PairWords
from esrl_fairseq.huggingface.seq2seq_parts import HfEncoder, HfSeq2SeqDecoder
from esrl_fairseq.huggingface.words import check_dictionary

logger = logging.getLogger(__name__)


@dataclass
class HfSeq2SeqConfig(adapters.LoraConfig):
    """Options of ``--arch hf_seq2seq``."""

    hf_model: Optional[str] = field(
        default=None,
        metadata={"help": "sequence-to-sequence model of Hugging Face: a folder or a hub name"},
    )
    hf_target_lang: Optional[str] = field(
        default=None,
        metadata={
            "help": "language that a multilingual model writes, by its own code (fra_Latn, fr_XX); "
            "default: --target-lang, if that is one"
        },
    )
    hf_attention: Optional[str] = field(
        default=None, metadata={"help": "transformers' attn_implementation: eager or sdpa"}
    )
    checkpoint_activations: bool = field(
        default=False,
        metadata={
            "help": "in training mode, keep only the input of each layer; criterion esrl scores in "
            "eval mode (except with --rescoring-dropout), where --max-sampled-tokens bounds memory"
        },
    )


@register_model("hf_seq2seq", dataclass=HfSeq2SeqConfig)
class HfSeq2Seq(FairseqEncoderDecoderModel):
    """A sequence-to-sequence model of transformers as a fairseq model.

    Args:
        cfg: where it is, and what it writes.
        source, target: dictionaries of the data.
        language: code of the language that it writes; None if the model has no languages.
    """

    needs_own_task = True
    """Whether criterion esrl needs one of our tasks for it."""

    def __init__(
        self,
        cfg: HfSeq2SeqConfig,
        source: Dictionary,
        target: Dictionary,
        language: Optional[str] = None,
    ):
        where = cfg.hf_model or ""
        model = library.load_model(where, cfg.hf_attention, library.SEQ2SEQ)
        base = adapters.attach(model, cfg, where)
        family = family_of(model)
        check_dictionary(source, source_words(model.config), where)
        check_dictionary(target, target_words(model.config), where)
        if cfg.checkpoint_activations:
            library.checkpoint_layers(model)
        start = Start() if language is None else start_of(where, family.config.model_type, language)
        policy = policy_of(model, where, start)
        super().__init__(HfEncoder(family, source), HfSeq2SeqDecoder(family, policy, target))
        self.cfg, self.language = cfg, language
        if base is not None:
            adapters.keep_alone(self, base, where)

    @classmethod
    def build_model(cls, cfg: HfSeq2SeqConfig, task: Any) -> "HfSeq2Seq":
        """Build the model for a translation task.

        Raises:
            EsrlError: there is no such model, or it does not fit data or task.
        """
        where = cfg.hf_model
        if not where:
            raise EsrlError(
                "--arch hf_seq2seq needs --hf-model: the folder or hub name of a "
                "sequence-to-sequence model"
            )
        if not isinstance(task, TranslationTask):
            raise EsrlError(
                "--arch hf_seq2seq makes texts from texts: choose --task esrl_translation"
            )
        if getattr(task.cfg, "left_pad_target", False) is True:
            raise EsrlError("--arch hf_seq2seq reads targets from the left: no --left-pad-target")
        kind = library.load_config(where, "model").model_type
        library.refuse_other_kinds(kind, where, library.SEQ2SEQ)
        language = None
        if cfg.hf_target_lang or kind in MULTILINGUAL:
            language = chosen(where, cfg.hf_target_lang, "target", task.cfg.target_lang)
        model = cls(cfg, task.source_dictionary, task.target_dictionary, language)
        logger.info("%s writes %s", where, language or "what it was trained to write")
        if found := not_followed(model.decoder.model):
            logger.warning(
                "generation settings of %s are not followed (%s): samples come from the model's "
                "own distribution, and fairseq's search has options of its own, such as --min-len "
                "and --no-repeat-ngram-size",
                where,
                ", ".join(found),
            )
        return model

    @property
    def never(self) -> list[int]:
        """Words of the target dictionary without probability."""
        return self.decoder.never

    @property
    def pretrained(self) -> str:
        """What the model was before any training here, in words."""
        return str(self.cfg.hf_model)

    def as_pretrained(self) -> "HfSeq2Seq":
        """That model; draws no random numbers."""
        return HfSeq2Seq(self.cfg, self.encoder.dictionary, self.decoder.dictionary, self.language)

    def without_adapters(self) -> AbstractContextManager[None]:
        """While it lasts, the model is what it was before training."""
        return adapters.off(self)

    @property
    def word_decoder(self) -> Callable[[], Decode]:
        """Loads what turns the words of outputs into text."""
        return functools.partial(_target_decoder, self.pretrained)

    @property
    def source_word_decoder(self) -> Callable[[], Decode]:
        """The same of sources."""
        return functools.partial(_source_decoder, self.pretrained)


def _target_decoder(where: str) -> Decode:
    return PairWords(where).decode


def _source_decoder(where: str) -> Decode:
    return PairWords(where).decode_source
