"""Reading earlier state from a checkpoint: what does not fit is said in one sentence."""

from __future__ import annotations

import logging
from typing import Any

import torch

from esrl_fairseq.core.baselines import KINDS, Baseline
from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)


def restore_baseline(baseline: Baseline, saved: Any) -> None:
    """Continue ``baseline`` from a checkpoint; one of another kind begins anew, with a warning.

    Raises:
        EsrlError: ``saved`` is not what :meth:`RLState.state_dict` keeps of a baseline.
    """
    kind = saved.get("kind") if isinstance(saved, dict) else None
    if kind not in KINDS:
        raise unreadable("reward baseline", f"its kind {kind!r} is none of {', '.join(KINDS)}")
    if kind != baseline.kind:
        logger.warning(
            "the checkpoint was trained with --reward-baseline %s, this run has %s, which begins "
            "without the rewards seen so far",
            kind,
            baseline.kind,
        )
        return
    arrays = saved.get("state")
    if not isinstance(arrays, dict) or not all(map(torch.is_tensor, arrays.values())):
        raise unreadable("reward baseline", f"there are no tensors of kind {kind!r}")
    try:
        baseline.restore({name: tensor.numpy() for name, tensor in arrays.items()})
    except ValueError as error:
        raise unreadable("reward baseline", str(error)) from error


def unreadable(part: str, why: str) -> EsrlError:
    """What to say of a part of the state that cannot be read."""
    return EsrlError(
        f"the checkpoint's {part} cannot be read ({why}): choose another checkpoint, or start anew "
        "with --restore-file CHECKPOINT --reset-dataloader --reset-optimizer --reset-lr-scheduler "
        "--reset-meters"
    )
