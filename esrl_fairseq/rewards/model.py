"""A trained reward model as a reward: how well people would like a text, without references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.frozen import fingerprint
from esrl_fairseq.reward_data import collate_rows
from esrl_fairseq.reward_task import load_reward_model
from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.ngrams import Floats

POSITIONS_AT_ONCE = 8192
"""Positions of a batch, padding included; more is not faster on a CPU."""


@register_reward("model")
class ModelReward(Reward):
    """sigmoid((s - m)/d) of the model's score s; m and d: its scores' mean and deviation during
    training. In [0, 1], 1/2 for what was average in the training data; 0 for an empty hypothesis,
    which the model never saw.

    Args:
        file: checkpoint of the task ``esrl_reward_model``.

    Raises:
        EsrlError: no file is given, or it is none.
    """

    range = (0.0, 1.0)
    needs_references = False

    def __init__(self, file: str | None = None) -> None:
        if not file:
            raise EsrlError(
                f"the reward {self.name!r} needs a reward model: give its checkpoint with "
                "--reward-model FILE"
            )
        self.model, self.text = load_reward_model(file)
        self.longest = self.model.max_positions()
        self.fingerprint = fingerprint(self.model)
        self.device = torch.device("cpu")

    def signature(self) -> str:
        """A hash of the model's parameters."""
        return f"{self.name}|sigmoid|sha256:{self.fingerprint[:12]}"

    def to(self, device: torch.device) -> None:
        """Move the model."""
        if device != self.device:
            self.model.to(device)
            self.device = device

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows]; see `Reward.score`."""
        source_ids = {i: self.text.ids(sources[i]) for i in set(row_input)}
        rows = {
            row: torch.cat([source_ids[i], self.text.ids(text)])
            for row, (i, text) in enumerate(zip(row_input, hypotheses))
            if text.strip()
        }
        scores = torch.zeros(len(hypotheses), dtype=torch.float64)
        for batch in self._batches(rows):
            scores[batch] = self._rewards([rows[row] for row in batch])
        return scores.numpy()

    def _batches(self, rows: dict[int, Tensor]) -> Iterator[list[int]]:
        """Rows of similar length, at most POSITIONS_AT_ONCE together."""
        order = sorted(rows, key=lambda row: -len(rows[row]))
        if order and len(rows[order[0]]) > self.longest:
            raise EsrlError(
                f"the reward model reads at most {self.longest} tokens, but source and hypothesis "
                f"have {len(rows[order[0]])}: train it with a larger --max-source-positions, or "
                "leave out so long sources"
            )
        while order:
            size = max(POSITIONS_AT_ONCE // len(rows[order[0]]), 1)
            yield order[:size]
            order = order[size:]

    @torch.no_grad()
    def _rewards(self, rows: list[Tensor]) -> Any:
        batch = collate_rows(rows, self.model.pad)
        batch = {name: value.to(self.device) for name, value in batch.items()}
        return self.model.reward(**batch).double().cpu()
