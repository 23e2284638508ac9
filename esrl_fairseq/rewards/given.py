"""What rewards are given: checks of it, and its names in messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esrl_fairseq.errors import EsrlError

if TYPE_CHECKING:
    from esrl_fairseq.rewards.base import Reward


def check_lengths(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    rows: Sequence[int],
    sample_ids: Sequence[Any],
) -> None:
    inputs = len(sources)
    if len(sample_ids) != inputs or (references is not None and len(references) != inputs):
        raise ValueError("sources, references and sample_ids must have one entry per input")
    if len(hypotheses) != len(rows):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(rows)} entries of row_input")
    if rows and not 0 <= min(rows) <= max(rows) < inputs:
        raise ValueError(f"row_input must lie in 0..{inputs - 1}")


def checked_references(
    reward: Reward,
    references: Sequence[Sequence[str] | None] | None,
    sample_ids: Sequence[Any],
) -> list[tuple[str, ...]]:
    """[inputs] tuples of references; all inputs are checked, also those without a row."""
    if references is None:
        references = [None] * len(sample_ids)
    result = [as_tuple(refs) for refs in references]
    for sample_id, refs in zip(sample_ids, result):
        if reward.needs_references and not (refs and all(has_text(ref) for ref in refs)):
            raise EsrlError(
                f"reward {reward.name!r} needs references, but {named(sample_id)} has "
                f"{'an empty one' if refs else 'none'}: give the data set a target side without "
                "empty lines, or choose a reward that needs no references"
            )
    return result


def as_tuple(references: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(references, str):
        raise ValueError(f"references must be a list of texts per input, not {references!r}")
    return tuple(references or ())


def named(sample_id: Any) -> str:
    """What messages call an input."""
    return sample_id if isinstance(sample_id, str) else f"sample {sample_id}"


def has_text(reference: str | None) -> bool:
    return bool(reference and reference.strip())
