"""The fairseq model ``hf_causal_lm``: a causal LM of transformers, with its KV cache."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel, register_model
from fairseq.tasks.language_modeling import LanguageModelingTask
from torch import Tensor

from esrl_fairseq.core.token_scores import FORBIDDEN
from esrl_fairseq.data.text import Decode
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import adapters, library
from esrl_fairseq.huggingface.caches import RowCache, position_bytes
from esrl_fairseq.huggingface.families import scores_behind
from esrl_fairseq.huggingface.words import Words, check_dictionary
from esrl_fairseq.sampling.steps import DecoderSteps

CACHE = "past_key_values"
UNKNOWN = (
    "the data have unknown words, which are no tokens of the model: make them with python -m "
    "esrl_fairseq.huggingface data"
)
"""What messages say of them."""


@dataclass
class HfCausalLMConfig(adapters.LoraConfig):
    """Options of ``--arch hf_causal_lm``."""

    hf_model: Optional[str] = field(
        default=None,
        metadata={"help": "causal LM of Hugging Face: a folder, a GGUF file or a hub name"},
    )
    hf_attention: Optional[str] = field(
        default=None,
        metadata={"help": "transformers' attn_implementation: eager, sdpa, flash_attention_2, …"},
    )
    checkpoint_activations: bool = field(
        default=False,
        metadata={
            "help": "in training mode, keep only the input of each layer; criterion esrl scores in "
            "eval mode (except with --rescoring-dropout), where --max-sampled-tokens bounds memory"
        },
    )


class HfSteps(DecoderSteps):
    """Steps of :class:`HfDecoder`: words are scored for the rows that draw.

    For the arguments see :class:`DecoderSteps`.
    """

    reads_ahead = True

    def __init__(
        self, model: Any, encoder_out: Any, input_index: Tensor, most_rows: int, room: int
    ):
        super().__init__(model, encoder_out, input_index, most_rows, room)
        self.cache = RowCache(model.decoder.model.config, most_rows, room)
        model.decoder.set_incremental_state(self.state, CACHE, self.cache.inner)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def __call__(self, previous: Tensor) -> Tensor:
        output = self.model.decoder(previous, incremental_state=self.state, features_only=True)
        return output[0][:, -1]

    def scores(self, output: Tensor) -> Tensor:
        return self.model.decoder.output_layer(output)

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows, self.device)


LEAST = -200.0
"""Least log-probability that fairseq's search sees: its exponential is 0 in float32."""


def known(ids: Tensor) -> Tensor:
    """The argument.

    Raises:
        EsrlError: some are unknown words.
    """
    if (ids < 0).any():
        raise EsrlError(UNKNOWN)
    return ids


class CachedDecoder(FairseqIncrementalDecoder):
    """What decoders share whose cache is one of transformers' own."""

    def get_normalized_probs(
        self,
        net_output: tuple[Tensor, Any],
        log_probs: bool,
        sample: Optional[dict[str, Tensor]] = None,
    ) -> Tensor:
        """None is infinite: label smoothing adds up those of all words, and fairseq's search those
        of a prompt's tokens, where an end token would swallow whatever follows."""
        found = super().get_normalized_probs(net_output, log_probs, sample)
        return found.clamp(min=LEAST) if log_probs else found

    def reorder_incremental_state(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        cache = self.get_incremental_state(incremental_state, CACHE)
        if cache is not None:
            cache.batch_select_indices(new_order)


class HfDecoder(CachedDecoder):
    """A causal LM with fairseq's vocabulary around its own.

    fairseq's start symbol and EOS are read as the model's. The probability of each token that ends
    a text belongs to fairseq's EOS, that of the token itself is 0, as is that of fairseq's other
    special symbols; of all other tokens it is the model's.

    Args:
        model: of transformers.
        dictionary: see :mod:`esrl_fairseq.huggingface.words`.
    """

    steps = HfSteps

    def __init__(self, model: Any, dictionary: Dictionary):
        super().__init__(dictionary)
        self.model, self.cache_name = model, library.cache_argument(model.base_model)
        self.first = dictionary.nspecial
        self.ends = library.end_tokens(model)
        self.never = [self.first + end for end in self.ends]
        special = torch.empty(self.first, dtype=torch.long)
        special[dictionary.bos()] = library.start_token(model)
        special[dictionary.eos()] = self.ends[0]
        special[dictionary.pad()] = 0  # padding is on the right, where nothing reads it
        special[dictionary.unk()] = -1
        ids = torch.cat([special, torch.arange(len(dictionary) - self.first)])
        self.register_buffer("ids", ids, persistent=False)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[dict[str, Any]] = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Scores ``[rows, length, words]``, or states ``[rows, length, width]``.

        With ``incremental_state``, of those positions that its cache does not hold yet.
        """
        states = self.extract_features(prev_output_tokens, incremental_state=incremental_state)
        return (states if features_only else self.output_layer(states)), None

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[dict[str, Any]] = None,
        **_: Any,
    ) -> Tensor:
        cache = None
        if incremental_state is not None:
            cache = self.get_incremental_state(incremental_state, CACHE)
            if cache is None:
                cache = library.transformers().DynamicCache(config=self.model.config)
                self.set_incremental_state(incremental_state, CACHE, cache)
            prev_output_tokens = prev_output_tokens[:, cache.get_seq_length() :]
        ids = known(self.ids[prev_output_tokens])
        given = {self.cache_name: cache, "use_cache": cache is not None}
        return self.model.base_model(input_ids=ids, **given).last_hidden_state

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Scores ``[…, words]`` of states ``[…, width]``."""
        scores = scores_behind(features, self.model.get_output_embeddings(), None, self.first)
        forbidden = max(FORBIDDEN, torch.finfo(scores.dtype).min)
        end = scores[..., self.never].logsumexp(-1)
        scores[..., : self.first] = forbidden
        scores[..., self.never] = forbidden
        scores[..., self.dictionary.eos()] = end
        return scores

    def max_positions(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def cache_bytes(self, length: int) -> int:
        """Of one row of ``length`` tokens in :class:`HfSteps`, twice while a cache grows."""
        return 2 * length * position_bytes(self.model)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """In half precision, too, rotary frequencies stay float32, as in transformers: rounded,
        they would move far positions."""
        exact = {
            id(module): dict(module._buffers)
            for module in self.model.modules()
            if any(x is not None and x.is_floating_point() for x in module._buffers.values())
        }
        super()._apply(fn, recurse)
        for module in self.model.modules():
            for name, buffer in exact.get(id(module), {}).items():
                module._buffers[name] = buffer.to(module._buffers[name].device)
        return self


@register_model("hf_causal_lm", dataclass=HfCausalLMConfig)
class HfCausalLM(FairseqLanguageModel):
    """A causal LM of transformers as a fairseq language model.

    Args:
        cfg: where it is.
        dictionary: of the data.
    """

    def __init__(self, cfg: HfCausalLMConfig, dictionary: Dictionary):
        model = library.load_model(cfg.hf_model or "", cfg.hf_attention)
        check_dictionary(dictionary, model.config.vocab_size, cfg.hf_model or "")
        if cfg.checkpoint_activations:
            library.checkpoint_layers(model)
        base = adapters.attach(model, cfg, cfg.hf_model or "")
        super().__init__(HfDecoder(model, dictionary))
        self.cfg = cfg
        if base is not None:
            adapters.keep_alone(self, base, self.pretrained)

    @classmethod
    def build_model(cls, cfg: HfCausalLMConfig, task: Any) -> "HfCausalLM":
        """Build the model for a language modeling task.

        Raises:
            EsrlError: there is no such model, or it does not fit data or task.
        """
        if not cfg.hf_model:
            raise EsrlError(
                "--arch hf_causal_lm needs --hf-model: the folder, GGUF file or hub name of a "
                "causal LM"
            )
        if not isinstance(task, LanguageModelingTask):
            raise EsrlError(
                "--arch hf_causal_lm is a language model: choose --task esrl_language_modeling"
            )
        model = cls(cfg, task.target_dictionary)
        inner = model.decoder.model
        if library.start_token(inner) not in library.end_tokens(inner):
            if not task.args.add_bos_token:
                raise EsrlError(
                    f"texts of {cfg.hf_model} begin with a start token of their own (id "
                    f"{library.start_token(inner)}): add --add-bos-token"
                )
        return model

    @property
    def never(self) -> list[int]:
        """Words of the dictionary without probability, since fairseq's EOS has theirs."""
        return self.decoder.never

    @property
    def pretrained(self) -> str:
        """What the model was before any training here, in words."""
        return str(self.cfg.hf_model)

    def as_pretrained(self) -> "HfCausalLM":
        """That model; draws no random numbers."""
        return HfCausalLM(self.cfg, self.decoder.dictionary)

    def without_adapters(self) -> AbstractContextManager[None]:
        """While it lasts, the model is what it was before training."""
        return adapters.off(self)

    @property
    def word_decoder(self) -> Callable[[], Decode]:
        """Loads what turns words into text."""
        return functools.partial(_word_decoder, self.pretrained)


def _word_decoder(where: str) -> Decode:
    return Words(where).decode
