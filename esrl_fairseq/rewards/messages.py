"""What the trainer and the processes of ``--reward-workers`` tell each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.rewards.answers import Scores

READY = "ready"
"""The first thing that a worker says."""


class Spec(NamedTuple):
    """A reward that a worker makes: its name and options, and the module that registers it."""

    name: str
    options: dict[str, Any]
    module: str


class Question(NamedTuple):
    """Rows for one reward; see :meth:`Reward.score`. What it draws is made of the seed."""

    name: str
    sources: list[str]
    references: list[tuple[str, ...]]
    hypotheses: list[str]
    row_input: list[int]
    seed: str | None


class Said(NamedTuple):
    """Scores, and the counts of a reward that follows those of a corpus."""

    scores: Scores
    counts: NDArray[np.float64] | None


class Raised(NamedTuple):
    """What a reward raised: kind, text and traceback; and whether it is a sentence of ours."""

    kind: str
    text: str
    trace: str
    ours: bool
