"""Sequence-level rewards: text in, one float32 per hypothesis out.

``build_reward("bleu", tokenize="13a")`` makes one; ``@register_reward("name")`` on a subclass of
`Reward` adds one, in this package or in any module that is imported before training starts.
"""

from esrl_fairseq.rewards.base import (
    Reward,
    build_reward,
    register_reward,
    reward_names,
    score_rows,
)
from esrl_fairseq.rewards.bleu import BleuReward

__all__ = [
    "BleuReward",
    "Reward",
    "build_reward",
    "register_reward",
    "reward_names",
    "score_rows",
]
