"""What the stages know of sampled rows (docs/method.md 2 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esrl_fairseq.core.sequences import Rows, distinct_rows


@dataclass
class Scores:
    """What a stage knows of each row; stage two's log-probabilities have a gradient.

    Attributes:
        log_probs: float32 ``[rows]``, Σ_t log p(y_t | y_<t, x) of the chosen tokens.
        entropy: float32 ``[rows]`` without gradient, Σ_t H(p(· | y_<t, x)) in nats.
        lengths: int64 ``[rows]``, tokens that the sums run over.
        tempered: like ``log_probs``, of the distribution that the rows were drawn from; None where
            that was not asked for.
        token_log_probs: float32 ``[rows, length]``, what ``log_probs`` is the sum of, 0 for other
            tokens; None where that was not asked for.
    """

    log_probs: Tensor
    entropy: Tensor
    lengths: Tensor
    tempered: Tensor | None = None
    token_log_probs: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Scores:
        """The scores of some rows."""
        return Scores(**{name: x[rows] for name, x in vars(self).items() if x is not None})

    def detach(self) -> Scores:
        """The same without gradient."""
        known = {name: x.detach() for name, x in vars(self).items() if x is not None}
        return Scores(**known)

    def on_host(self) -> Scores:
        """The same without gradient and in the host's memory: one copy, for which it waits once."""
        if self.log_probs.device.type == "cpu":
            return self.detach()
        known = {name: x.detach() for name, x in vars(self).items() if x is not None}
        columns = {name: x.reshape(len(x), -1).float() for name, x in known.items()}
        packed = torch.cat(list(columns.values()), dim=1).cpu()
        parts = packed.split([x.size(1) for x in columns.values()], dim=1)
        return Scores(
            **{
                name: part.view(x.shape).to(x.dtype)
                for (name, x), part in zip(known.items(), parts)
            }
        )


Term = Callable[[Tensor, Scores], Tensor]
"""A scalar of some rows: of their places, int64 ``[some]``, and scores."""


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all rows of all parts, which know the same of their rows."""
    known = [name for name, x in vars(parts[0]).items() if x is not None]
    return Scores(**{name: torch.cat([getattr(x, name) for x in parts]) for name in known})


def without_duplicates(rows: Rows, scores: Scores) -> tuple[Rows, Scores]:
    """Each distinct sequence of an input once, with its multiplicity."""
    keep, multiplicity = distinct_rows(rows)
    scores = scores[keep.to(scores.log_probs.device)]
    return replace(rows[keep], multiplicity=multiplicity), scores
