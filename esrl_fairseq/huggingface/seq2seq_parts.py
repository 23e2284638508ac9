"""Encoder and decoder of ``hf_seq2seq`` (see :mod:`esrl_fairseq.huggingface.seq2seq`)."""

from typing import Any, Optional

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor

from esrl_fairseq.core.sequences import moved
from esrl_fairseq.core.token_scores import FORBIDDEN
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.generation import Policy
from esrl_fairseq.huggingface.model import CACHE, CachedDecoder, known
from esrl_fairseq.huggingface.seq2seq_steps import HfSeq2SeqSteps

ANY_LENGTH = 1_000_000
"""Most positions of models that count them relatively; fairseq's own default."""


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


class HfSeq2SeqDecoder(CachedDecoder):
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
        self.ends = [self.first + token for token in policy.ends]
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
        scores = self.family.logits(features, self.first)
        forbidden = max(FORBIDDEN, torch.finfo(scores.dtype).min)
        end = scores[..., self.ends].logsumexp(-1)
        scores[..., : self.first] = forbidden
        scores[..., self.never] = forbidden
        scores[..., self.dictionary.eos()] = end
        return scores

    def max_positions(self) -> int:
        return _max_positions(self.model) - self.forced

    def cache_bytes(self, length: int) -> int:
        """Of one row of ``length`` tokens in :class:`HfSeq2SeqSteps`, twice while a cache grows."""
        keys = [self.family.key_weights(module) for module in self.family.cross_attention]
        numbers = sum(2 * weight.size(0) for weight in keys)  # self-attention's are as wide
        return 2 * numbers * (length + self.forced) * keys[0].element_size()
