"""The fairseq model ``hf_seq2seq``: a sequence-to-sequence model of transformers.

fairseq's vocabulary lies around the model's own, as in :mod:`esrl_fairseq.huggingface.model`. What
``generate`` puts before a text (the start token, the language to write) is read where fairseq's
decoders read EOS, and has no place in rows or data; what it forbids has no probability.
"""

import functools
import logging
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
)
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from esrl_fairseq.core.sequences import moved
from esrl_fairseq.core.token_scores import FORBIDDEN
from esrl_fairseq.data.text import Decode
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.families import family_of, source_words, target_words
from esrl_fairseq.huggingface.generation import Policy, not_followed, policy_of
from esrl_fairseq.huggingface.languages import MULTILINGUAL, Start, chosen, start_of
from esrl_fairseq.huggingface.model import CACHE, LEAST, UNKNOWN
from esrl_fairseq.huggingface.pairs import PairWords
from esrl_fairseq.huggingface.seq2seq_steps import HfSeq2SeqSteps
from esrl_fairseq.huggingface.words import check_dictionary

logger = logging.getLogger(__name__)

ANY_LENGTH = 1_000_000
"""Most positions of models that count them relatively; fairseq's own default."""


@dataclass
class HfSeq2SeqConfig(FairseqDataclass):
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


def _max_positions(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or ANY_LENGTH)


class HfEncoder(FairseqEncoder):
    """The encoder; its weights belong to :class:`HfSeq2SeqDecoder`, which has the whole model.

    The last token of a line is fairseq's EOS, the model's end token. A line that begins with
    fairseq's start symbol holds all of its tokens itself: neither of the two is one then.
    """

    def __init__(self, family: Any, dictionary: Dictionary):
        super().__init__(dictionary)
        self.family = family
        special = torch.empty(dictionary.nspecial, dtype=torch.long)
        padding = family.config.pad_token_id
        special[dictionary.pad()] = special[dictionary.bos()] = 0 if padding is None else padding
        special[dictionary.eos()] = source_end(family.model)
        special[dictionary.unk()] = -1
        ids = torch.cat([special, torch.arange(len(dictionary) - dictionary.nspecial)])
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, src_tokens: Tensor, src_lengths: Any = None, **_: Any) -> dict[str, Any]:
        """What fairseq's Transformer encoder gives, of a batch padded on either side."""
        tokens = self.aligned(src_tokens)
        ids = known(self.ids[tokens])
        padding = tokens == self.dictionary.pad()
        mask = ~padding if padding.any() else None
        states = self.family.encode(ids, mask)
        return {
            "encoder_out": [states.transpose(0, 1)],
            "encoder_padding_mask": [] if mask is None else [padding],
        }

    def aligned(self, tokens: Tensor) -> Tensor:
        """The tokens of each line, padded on the right."""
        pad, width = self.dictionary.pad(), tokens.size(1)
        before = (tokens == pad).cumprod(1).sum(1)
        first = tokens.gather(1, before.clamp(max=width - 1).unsqueeze(1))
        whole = first.squeeze(1) == self.dictionary.bos()
        tokens = moved(tokens, -before - whole.long(), width, pad)
        end = (tokens != pad).sum(1, keepdim=True) - 1
        last = torch.arange(width, device=tokens.device) == end
        return tokens.masked_fill(last & whole.unsqueeze(1), pad)

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        return {
            "encoder_out": [x.index_select(1, new_order) for x in encoder_out["encoder_out"]],
            "encoder_padding_mask": [
                x.index_select(0, new_order) for x in encoder_out["encoder_padding_mask"]
            ],
        }

    def max_positions(self) -> int:
        return _max_positions(self.family.model)


def source_end(model: Any) -> int:
    """Token that fairseq's EOS is in sources."""
    return library.end_tokens(model)[0]


def known(ids: Tensor) -> Tensor:
    """The argument.

    Raises:
        EsrlError: some are unknown words.
    """
    if (ids < 0).any():
        raise EsrlError(UNKNOWN)
    return ids


class HfSeq2SeqDecoder(FairseqIncrementalDecoder):
    """The decoder and the head, and the whole model's weights.

    The probability of each token that ends a text belongs to fairseq's EOS, that of the token
    itself is 0, as are those of fairseq's other special symbols and of forbidden tokens; all
    others have the model's, of what is not forbidden.

    Args:
        family: parts of the model.
        policy: what ``generate`` adds to it.
        dictionary: of its outputs, see :mod:`esrl_fairseq.huggingface.words`.
    """

    steps = HfSeq2SeqSteps

    def __init__(self, family: Any, policy: Policy, dictionary: Dictionary):
        super().__init__(dictionary)
        self.model, self.family, self.policy = family.model, family, policy
        self.first = dictionary.nspecial
        self.forced = len(policy.start) - 1
        self.never = [self.first + token for token in (*policy.ends, *policy.forbidden)]
        special = torch.empty(self.first, dtype=torch.long)
        padding = family.config.pad_token_id
        special[dictionary.bos()] = special[dictionary.eos()] = policy.ends[0]
        special[dictionary.pad()] = 0 if padding is None else padding  # nothing reads it
        special[dictionary.unk()] = -1
        ids = torch.cat([special, torch.arange(len(dictionary) - self.first)])
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("start", torch.tensor(policy.start), persistent=False)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[dict[str, Any]] = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Scores ``[rows, length, words]``, or features ``[rows, length, width]``.

        With ``incremental_state``, of those positions that its cache does not hold yet.
        """
        found = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (found if features_only else self.output_layer(found)), None

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[dict[str, Any]] = None,
        **_: Any,
    ) -> Tensor:
        cache, seen = None, 0
        if incremental_state is not None:
            cache = self.get_incremental_state(incremental_state, CACHE)
            if cache is None:
                cache = library.encoder_decoder_cache(self.model.config)
                self.set_incremental_state(incremental_state, CACHE, cache)
            seen = cache.get_seq_length()
        ids = known(self.read(prev_output_tokens))[:, seen:]
        states = encoder_out["encoder_out"][0].transpose(0, 1)
        padding = encoder_out["encoder_padding_mask"]
        found = self.family.decode(ids, states, ~padding[0] if padding else None, cache)
        # What predicts forced tokens is left out.
        return found if seen else found[:, self.forced :]

    def read(self, tokens: Tensor) -> Tensor:
        """The model's ids of rows that begin with EOS, int64 ``[rows, forced + length]``."""
        start = self.start.expand(len(tokens), -1)
        return torch.cat([start, self.ids[tokens[:, 1:]]], dim=1)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Scores ``[…, words]`` of features ``[…, width]``."""
        logits = self.family.logits(features)
        forbidden = max(FORBIDDEN, torch.finfo(logits.dtype).min)
        special = logits.new_full((*logits.shape[:-1], self.first), forbidden)
        special[..., self.dictionary.eos()] = logits[..., self.policy.ends].logsumexp(-1)
        scores = torch.cat([special, logits], dim=-1)
        scores[..., self.never] = forbidden
        return scores

    def get_normalized_probs(
        self,
        net_output: tuple[Tensor, Any],
        log_probs: bool,
        sample: Optional[dict[str, Tensor]] = None,
    ) -> Tensor:
        """Label smoothing adds up log-probabilities of all words: none is infinite."""
        found = super().get_normalized_probs(net_output, log_probs, sample)
        return found.clamp(min=LEAST) if log_probs else found

    def reorder_incremental_state(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        cache = self.get_incremental_state(incremental_state, CACHE)
        if cache is not None:
            cache.batch_select_indices(new_order)

    def max_positions(self) -> int:
        return _max_positions(self.model) - self.forced


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
        family = family_of(model)
        check_dictionary(source, source_words(model.config), where)
        check_dictionary(target, target_words(model.config), where)
        if cfg.checkpoint_activations:
            library.checkpoint_layers(model)
        start = Start() if language is None else start_of(where, family.config.model_type, language)
        policy = policy_of(model, where, start)
        super().__init__(HfEncoder(family, source), HfSeq2SeqDecoder(family, policy, target))
        self.cfg, self.language = cfg, language

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
        if task.cfg.left_pad_target:
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
