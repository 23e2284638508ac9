"""What goes from stage to stage of an update, and into checkpoints for later ones."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from fairseq import utils
from numpy.typing import NDArray
from torch import Tensor

from esrl_fairseq.core.schedules import Plan
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.rewards.scorer import Scored


@dataclass
class LinearLoss:
    """The loss at the policy that drew the rows, and how it falls with their log-probabilities.

    Attributes:
        losses: float32 ``[inputs]``, its value.
        coefficients: float32 ``[rows]``, minus its slope on each row.
        chosen: int64 ``[chosen]``, places of the rows that its gradient is made of.
        weights: float32 ``[chosen]``, what their coefficients are multiplied by.
    """

    losses: Tensor
    coefficients: Tensor
    chosen: Tensor
    weights: Tensor

    @property
    def of_chosen(self) -> Tensor:
        """Coefficients of the chosen rows, float32 ``[chosen]``."""
        return self.coefficients[self.chosen] * self.weights


@dataclass
class Samples:
    """A batch of inputs with what was drawn for them and what that is worth.

    It goes from stage to stage of an update, and each writes what it found. All but the batch is on
    the host: little numbers, for which a GPU would be asked a thousand times.

    Attributes:
        batch: fairseq's batch of the inputs.
        plan: how they were sampled.
        rows: what was drawn.
        drawn: what drawing them told of the rows, without gradient.
        scored: the rows' true rewards.
        rewards: float32 ``[rows]``, those that the loss gets.
        dummy: whether fairseq made the batch up for a rank that has none left.
        baseline: b, what the loss subtracts from the rewards.
        kl: sum of the draws' log-ratios to the frozen model, 0 without one.
        old_log_probs: float32 ``[rows, actions]`` under the policy that drew them, without
            gradient; None in the update that draws them, whose own they are.
        loss: linearised; None before it is.
        scores: what stage two knows of the chosen rows; None before it.
        references: the same of the references; None where the loss does not need them.
    """

    batch: dict[str, Any]
    plan: Plan
    rows: Rows
    drawn: Scores
    scored: Scored
    rewards: NDArray[np.float32]
    dummy: bool
    baseline: float = 0.0
    kl: float = 0.0
    old_log_probs: Tensor | None = None
    loss: LinearLoss | None = None
    scores: Scores | None = None
    references: Scores | None = None

    @property
    def inputs(self) -> int:
        """How many inputs the batch has."""
        return len(self.batch["id"])

    @property
    def chosen(self) -> Rows:
        """The rows that the gradient is made of."""
        assert self.loss is not None
        return self.rows[self.loss.chosen]


def pack(value: Any) -> Any:
    """Samples as dictionaries of numbers and tensors, which are copies on the CPU.

    What stage two found is this update's own: give them without ``scores`` and ``references``.
    """
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: pack(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value


def unpack(packed: dict[str, Any], device: torch.device) -> Samples:
    """The samples that :func:`pack` got, their batch on ``device``."""

    def arrays(values: dict[str, Any]) -> dict[str, Any]:
        nested = {k: arrays(v) if isinstance(v, dict) else v for k, v in values.items()}
        return {k: v.numpy() if torch.is_tensor(v) else v for k, v in nested.items()}

    return Samples(
        batch=utils.apply_to_sample(lambda tensor: tensor.to(device), packed["batch"]),
        plan=Plan(**arrays(packed["plan"])),
        rows=Rows(**packed["rows"]),
        drawn=Scores(**packed["drawn"]),
        scored=Scored(**arrays(packed["scored"])),
        rewards=packed["rewards"].numpy(),
        dummy=packed["dummy"],
        baseline=packed["baseline"],
        kl=packed["kl"],
        old_log_probs=packed["old_log_probs"],
        loss=LinearLoss(**packed["loss"]),
    )
