"""A trained reward model as a reward: how well people would like a text, without references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from esrl_fairseq.core.fingerprint import fingerprint
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.reward_models.data import collate_rows
from esrl_fairseq.reward_models.task import load_reward_model
from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.neural import NeuralReward
from esrl_fairseq.rewards.ngrams import Floats


@register_reward("model")
class ModelReward(NeuralReward):
    """sigmoid((s - m)/d) of the model's score s; m and d: its scores' mean and deviation during
    training. In [0, 1], 1/2 for what was average in the training data; 0 for an empty hypothesis,
    which the model never saw.

    Args:
        model: checkpoint of the task ``esrl_reward_model``.
        batch_size, device: see `NeuralReward`.

    Raises:
        EsrlError: no file is given, or it is none; see `NeuralReward`.
    """

    needs_references = False
    needs_sources = True

    def __init__(
        self, model: str | None = None, batch_size: int = 128, device: str | None = None
    ) -> None:
        super().__init__(device, batch_size)
        if not model:
            raise EsrlError(
                f"the reward {self.name!r} needs a reward model: give its checkpoint with "
                "--reward-model FILE"
            )
        self._model, self._text = load_reward_model(model)
        self._longest = self._model.max_positions()
        self._fingerprint = fingerprint(self._model.state_dict())
        self._model.to(self.device)

    def signature(self) -> str:
        """A hash of the model's parameters."""
        return f"{self.name}|sigmoid|sha256:{self._fingerprint[:12]}"

    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """float64 [triples]; see `NeuralReward.judge`."""
        source_ids = {text: self._text.ids(text) for text in set(sources)}
        rows = [torch.cat([source_ids[s], self._text.ids(h)]) for s, h in zip(sources, hypotheses)]
        longest = max(map(len, rows))
        if longest > self._longest:
            raise EsrlError(
                f"the reward model reads at most {self._longest} tokens, but source and hypothesis "
                f"have {longest}: train it with a larger --max-source-positions (--max-positions "
                "for --arch roberta), leave out so long sources, or bound hypotheses by a smaller "
                "--sample-max-len-b"
            )
        values = np.zeros(len(rows))
        for batch in self.batches(sources, hypotheses):
            tokens = collate_rows([rows[i] for i in batch], self._model.pad)
            tokens = {name: value.to(self.device) for name, value in tokens.items()}
            values[batch] = self._model.reward(**tokens).double().cpu().numpy()
        return values
