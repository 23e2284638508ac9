"""The reward model: a fairseq encoder that reads source and output, and one number on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, FairseqEncoderDecoderModel
from fairseq.models.roberta import RobertaModel
from torch import Tensor, nn

from esrl_fairseq.errors import EsrlError

ROBERTA_ENCODER = "encoder.sentence_encoder."
"""Where RoBERTa's checkpoints have what is an encoder in others."""
SPREAD_MOMENTUM = 0.02
"""Weight of an update in the running mean and variance of scores: they reach back 50 updates."""


class Float32BatchNorm(nn.BatchNorm1d):
    """Keeps its statistics in float32 in a model of half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, changed in list(self.named_buffers()):
            self._buffers[name] = exact[name].to(changed.device)
        return self


class RewardModel(BaseFairseqModel):
    """score = w · (mean of the encoder's states over a row's tokens) + b.

    It reads ``source </s> output </s>``. A checkpoint of a model that has such an encoder
    (``--finetune-from-model``) gives the encoder its parameters.

    Args:
        encoder: see :func:`encoder_of`.
        pad, eos: ids of the dictionary.
    """

    def __init__(self, encoder: Any, pad: int, eos: int):
        super().__init__()
        self.encoder = encoder
        self.pad = pad
        self.head = nn.Linear(state_size(encoder, eos), 1)
        # Only keeps mean and variance of the scores seen in training; changes none.
        self.spread = Float32BatchNorm(1, affine=False, momentum=SPREAD_MOMENTUM)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor) -> Tensor:
        """Scores of rows, float32 ``[rows]``.

        Args:
            src_tokens: int64 ``[rows, length]``, padded on the right.
            src_lengths: int64 ``[rows]``.
        """
        order = src_lengths.argsort(descending=True, stable=True)  # recurrent encoders ask for it
        tokens = src_tokens[order]
        states = encoder_states(self.encoder(tokens, src_lengths=src_lengths[order]))
        real = tokens.ne(self.pad).t().unsqueeze(2)
        mean = states.masked_fill(~real, 0).sum(0) / real.sum(0)
        scores = self.head(mean).float()[order.argsort()]
        if self.training and len(scores) > 1:
            self.spread(scores.detach())
        return scores.squeeze(1)

    def reward(self, src_tokens: Tensor, src_lengths: Tensor) -> Tensor:
        """sigmoid((score - m)/s), [rows]; m, s: mean and deviation of scores during training."""
        scores = self(src_tokens, src_lengths).unsqueeze(1)
        mean, variance = self.spread.running_mean, self.spread.running_var
        standardised = nn.functional.batch_norm(scores, mean, variance, eps=self.spread.eps)
        return torch.sigmoid(standardised.squeeze(1))

    def max_positions(self) -> Any:
        """Longest row."""
        return self.encoder.max_positions()

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Of another model's parameters take the encoder's; the head stays as it is."""
        if not any(key.startswith(("head.", "spread.")) for key in state_dict):
            roberta = any(key.startswith(ROBERTA_ENCODER) for key in state_dict)
            prefix = ROBERTA_ENCODER if roberta else "encoder."
            found = {key: state_dict.pop(key) for key in list(state_dict)}
            for key, value in found.items():
                if key.startswith(prefix):
                    state_dict["encoder." + key.removeprefix(prefix)] = value
            own = self.state_dict()
            state_dict.update({k: v for k, v in own.items() if not k.startswith("encoder.")})
        super().upgrade_state_dict_named(state_dict, name)


def encoder_of(model: Any) -> Any:
    """The ``FairseqEncoder`` of an encoder-decoder model, or of RoBERTa and its relatives.

    Raises:
        EsrlError: the model is of neither kind.
    """
    if isinstance(model, RobertaModel):
        return model.encoder.sentence_encoder  # the rest predicts masked words
    if isinstance(model, FairseqEncoderDecoderModel):
        return model.encoder
    raise EsrlError(
        f"a reward model is made of the encoder of an encoder-decoder model or of RoBERTa, but "
        f"{type(model).__name__} is neither: choose an --arch such as transformer or roberta"
    )


def encoder_states(encoder_out: Any) -> Tensor:
    """[length, rows, size] of any fairseq encoder's output."""
    states: Tensor = (
        encoder_out["encoder_out"][0] if isinstance(encoder_out, dict) else encoder_out[0]
    )
    return states


@torch.no_grad()
def state_size(encoder: Any, eos: int) -> int:
    """Size of the encoder's states; encoders name it differently, so one is computed."""
    training = encoder.training
    encoder.eval()
    states = encoder_states(encoder(torch.tensor([[eos]]), src_lengths=torch.tensor([1])))
    encoder.train(training)
    return states.size(2)
