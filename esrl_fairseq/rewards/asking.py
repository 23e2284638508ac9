"""Asking a reward: each text once, and the checks around every call.

For inputs and rows see :mod:`esrl_fairseq.rewards.base`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError

if TYPE_CHECKING:
    from esrl_fairseq.rewards.base import Reward

logger = logging.getLogger(__name__)

Scores = NDArray[np.float32]
Counts = NDArray[np.float64]

_ROUNDING = 1e-6  # how far outside its range rounding may carry a reward (relative, at least this)
_SHOWN_CHARACTERS = 200  # of each text in an error message


@dataclass
class Answer:
    """What a reward says of rows.

    Attributes:
        rewards: float32 ``[rows]``.
        rest: float32 ``[rows]``, the rewards without those that follow the counts of a corpus.
        counts: ``[rows, counts]`` of each that does, by its name.
    """

    rewards: Scores
    rest: Scores
    counts: Mapping[str, Counts] = field(default_factory=dict)

    def __getitem__(self, rows: Any) -> Answer:
        counts = {name: values[rows] for name, values in self.counts.items()}
        return Answer(self.rewards[rows], self.rest[rows], counts)


def score_rows(
    reward: Reward,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    row_input: Sequence[int],
    sample_ids: Sequence[Any],
) -> Scores:
    """Score the hypotheses of a batch, each (input, text) pair once, and check the result.

    Args:
        reward: what to score with.
        sources: [inputs] source texts.
        hypotheses: [rows] hypothesis texts.
        references: [inputs] lists of reference texts, or None if the data have none.
        row_input: [rows] index of the input of each row, in any order; an input may have no row.
        sample_ids: [inputs] for messages: ids in the data set, or texts that name the inputs.

    Returns:
        float32 [rows], finite and within ``reward.range`` (rounding errors are clipped).

    Raises:
        EsrlError: references are missing, or the reward raised, or it returned something other
            than one finite number within its range per row. The message names the reward, the
            input and, where one row is to blame, its texts.
        ValueError: the lengths of the arguments do not fit together.
    """
    return ask_rows(reward, sources, hypotheses, references, row_input, sample_ids).rewards


def ask_rows(
    reward: Reward,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    row_input: Sequence[int],
    sample_ids: Sequence[Any],
) -> Answer:
    """As `score_rows`, with what the rewards of a whole corpus count."""
    rows = [int(i) for i in row_input]
    _check_lengths(sources, hypotheses, references, rows, sample_ids)
    batch_references = _checked_references(reward, references, sample_ids)
    if not rows:
        nothing = np.zeros(0, dtype=np.float32)
        return Answer(nothing, nothing)
    index: dict[tuple[int, str], int] = {}
    inverse = [index.setdefault(pair, len(index)) for pair in zip(rows, hypotheses)]
    batch = _Batch(reward, sources, batch_references, list(index), sample_ids)
    return batch.answer()[inverse]


class _Batch:
    """The distinct (input, hypothesis) pairs of a batch on their way through a reward."""

    def __init__(
        self,
        reward: Reward,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        pairs: Sequence[tuple[int, str]],
        sample_ids: Sequence[Any],
    ) -> None:
        self.reward = reward
        self.sources = sources
        self.references = references
        self.pairs = pairs
        self.sample_ids = sample_ids

    def answer(self) -> Answer:
        """[pairs]: scored, checked, clipped to the range."""
        answer = self._sum() if self.reward.parts else self._asked()
        low, high = self.reward.range
        self._check(answer.rewards, low, high)
        rewards = np.clip(answer.rewards, np.float32(low), np.float32(high))
        return Answer(rewards, answer.rest if answer.counts else rewards, answer.counts)

    def _sum(self) -> Answer:
        """The weighted sum of the parts, each checked under its own name."""
        total, rest = np.zeros((2, len(self.pairs)))
        counts: dict[str, Counts] = {}
        for part, weight in self.reward.parts:
            batch = _Batch(part, self.sources, self.references, self.pairs, self.sample_ids)
            answer = batch.answer()
            total += weight * answer.rewards.astype(np.float64)
            rest += weight * answer.rest.astype(np.float64)
            counts.update(answer.counts)
        return Answer(_as_scores(total), _as_scores(rest), counts)

    def _asked(self) -> Answer:
        """What the reward itself answers, or an error that names the sample that it fails on."""
        try:
            return self._score(self.pairs)
        except Exception as error:
            raise self._raised(error) from error

    def _score(self, pairs: Sequence[tuple[int, str]]) -> Answer:
        """[whatever the reward returned], unchecked."""
        inputs, hypotheses = [i for i, _ in pairs], [text for _, text in pairs]
        given, counts = self.reward.answer(self.sources, self.references, hypotheses, inputs)
        scores = _as_scores(given)
        if counts is None:
            return Answer(scores, scores)
        return Answer(scores, np.zeros_like(scores), {self.reward.name: counts})

    def _check(self, scores: Scores, low: float, high: float) -> None:
        expected = (len(self.pairs),)
        if scores.shape != expected:
            raise EsrlError(
                f"reward {self.reward.name!r} returned shape {scores.shape} instead of {expected}, "
                f"one number per distinct hypothesis, for {self._batch()}: mend its score()"
                f"{self._missing_references(range(len(self.pairs)))}"
            )
        below = low - _ROUNDING * max(1.0, abs(low))
        above = high + _ROUNDING * max(1.0, abs(high))
        bad = ~(np.isfinite(scores) & (scores >= below) & (scores <= above))
        if bad.any():
            row = int(bad.argmax())
            raise EsrlError(
                f"reward {self.reward.name!r} returned {scores[row]} for {self._pair(row)}: "
                f"it must be a finite number in [{low}, {high}], its documented range"
                f"{'' if np.isfinite(scores[row]) else self._missing_references([row])}"
            )

    def _raised(self, error: Exception) -> EsrlError:
        """The message for an exception: look for a row that raises it on its own."""
        if not isinstance(error, EsrlError):
            logger.error("reward %r raised:", self.reward.name, exc_info=error)
        first, last = 0, len(self.pairs)  # a call costs time: halve what is left
        while last - first > 1:
            middle = (first + last) // 2
            if self._error(first, middle):
                last = middle
            else:
                first = middle
        alone = self._error(first, last)
        culprit = self._pair(first) if alone else self._batch()
        missing = self._missing_references([first] if alone else range(len(self.pairs)))
        cause = alone or error
        return EsrlError(
            f"reward {self.reward.name!r} raised {type(cause).__name__}: {cause} for {culprit}"
            f"{missing}"
        )

    def _error(self, first: int, last: int) -> Exception | None:
        """What the reward raises for these rows."""
        try:
            self._score(self.pairs[first:last])
        except Exception as error:
            return error
        return None

    def _pair(self, row: int) -> str:
        i, hypothesis = self.pairs[row]
        return (
            f"{named(self.sample_ids[i])} (input: {_shown(self.sources[i])}, "
            f"hypothesis: {_shown(hypothesis)})"
        )

    def _missing_references(self, rows: Iterable[int]) -> str:
        """A hint where a reward that did not ask for references fails without them."""
        if not self.reward.references_optional:
            return ""
        for i in (self.pairs[row][0] for row in rows):
            if not any(map(has_text, self.references[i])):
                return (
                    f"; the data have no references for {named(self.sample_ids[i])}: if the reward "
                    "needs them, give the data some"
                )
        return ""

    def _batch(self) -> str:
        first = self._pair(0)
        return f"a batch of {len(self.pairs)} hypotheses, the first of {first}"


def _as_scores(result: Any) -> Scores:
    with np.errstate(over="ignore"):  # to inf, which is then refused
        return np.asarray(result, dtype=np.float32)


def _check_lengths(
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


def _checked_references(
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


def _shown(text: str) -> str:
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    return repr(text)
