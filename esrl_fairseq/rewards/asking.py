"""Asking a reward: each text once, and the checks around every call.

For inputs and rows see :mod:`esrl_fairseq.rewards.base`.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.answers import Scores, as_scores
from esrl_fairseq.rewards.guard import Guard
from esrl_fairseq.rewards.watch import Watch

if TYPE_CHECKING:
    from esrl_fairseq.rewards.base import Reward

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6  # how far outside its range rounding may carry a reward (relative, at least this)
_SHOWN_CHARACTERS = 200  # of each text in an error message
_SHOWN_INPUTS = 10  # of a batch, likewise
_NO_WATCH = Watch(0)


def score_rows(
    reward: Reward,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    row_input: Sequence[int],
    sample_ids: Sequence[Any],
    seed: int | None = None,
    watch: Watch = _NO_WATCH,
) -> Scores:
    """Score the hypotheses of a batch, each (input, text) pair once, and check the result.

    Args:
        reward: what to score with.
        sources: [inputs] source texts.
        hypotheses: [rows] hypothesis texts.
        references: [inputs] lists of reference texts, or None if the data have none.
        row_input: [rows] index of the input of each row, in any order; an input may have no row.
        sample_ids: [inputs] for messages: ids in the data set, or texts that name the inputs.
        seed: of the update; what the reward draws is then a function of it and of `sample_ids`,
            and no other draws change. Without one it draws from the program's generators.
        watch: ends calls that take too long.

    Returns:
        float32 [rows], finite and within ``reward.range`` (rounding errors are clipped).

    Raises:
        EsrlError: references are missing, or the reward raised (whatever it was, but what a
            signal's handler raises passes), or it took too long, or it returned something other
            than one finite number within its range per row. The message names the reward, the
            input and, where one row is to blame, its texts.
        ValueError: the lengths of the arguments do not fit together.
    """
    rows = [int(i) for i in row_input]
    _check_lengths(sources, hypotheses, references, rows, sample_ids)
    batch_references = _checked_references(reward, references, sample_ids)
    if not rows:
        return np.zeros(0, dtype=np.float32)
    index: dict[tuple[int, str], int] = {}
    inverse = [index.setdefault(pair, len(index)) for pair in zip(rows, hypotheses)]
    batch = _Batch(reward, sources, batch_references, list(index), sample_ids, seed, watch)
    return batch.scores()[inverse]


class _Batch:
    """The distinct (input, hypothesis) pairs of a batch on their way through a reward."""

    def __init__(
        self,
        reward: Reward,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        pairs: Sequence[tuple[int, str]],
        sample_ids: Sequence[Any],
        seed: int | None,
        watch: Watch,
    ) -> None:
        self.reward = reward
        self.sources = sources
        self.references = references
        self.pairs = pairs
        self.sample_ids = sample_ids
        self.seed = seed
        self.watch = watch

    def scores(self) -> Scores:
        """float32 [pairs]: scored, checked, clipped to the range."""
        scores = self._sum() if self.reward.parts else self._asked()
        low, high = self.reward.range
        self._check(scores, low, high)
        return np.clip(scores, np.float32(low), np.float32(high))

    def _sum(self) -> Scores:
        """The weighted sum of the parts, each checked under its own name."""
        total = np.zeros(len(self.pairs))
        for part, weight in self.reward.parts:
            batch = copy.copy(self)
            batch.reward = part
            total += weight * batch.scores().astype(np.float64)
        return as_scores(total, len(total))

    def _asked(self) -> Scores:
        """What the reward itself answers, or an error that names the sample that it fails on."""
        guard = self._guard()
        try:
            return self._score(self.pairs, guard)
        except BaseException as error:
            if guard.came_from_outside(error):
                raise
            if self.watch.expired:  # whatever it has made of that
                raise EsrlError(self._too_long()) from None
            raise self._raised(error) from error

    def _guard(self) -> Guard:
        """Each call's own, with one seed for all calls of this batch."""
        if self.seed is None:
            return Guard(self.reward.name)
        return Guard(self.reward.name, f"{self.reward.name} {self.seed} {list(self.sample_ids)}")

    def _score(self, pairs: Sequence[tuple[int, str]], guard: Guard) -> Scores:
        """float32 [whatever the reward returned], unchecked.

        The reward gets lists of its own, which it may change.
        """
        inputs, hypotheses = [i for i, _ in pairs], [text for _, text in pairs]
        with guard:
            self.watch.begin(self._too_long)
            try:
                result = self.reward.score(
                    list(self.sources), list(self.references), hypotheses, inputs
                )
                return as_scores(result, len(pairs))
            finally:
                self.watch.end()

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

    def _raised(self, error: BaseException) -> EsrlError:
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
        why = f": {cause}" if str(cause) else ""
        return EsrlError(
            f"reward {self.reward.name!r} raised {type(cause).__name__}{why} for {culprit}{missing}"
        )

    def _error(self, first: int, last: int) -> BaseException | None:
        """What the reward raises for these rows."""
        guard = self._guard()
        try:
            self._score(self.pairs[first:last], guard)
        except BaseException as error:
            if guard.came_from_outside(error):
                raise
            return None if self.watch.expired else error
        return None

    def _too_long(self) -> str:
        """The message where it does not answer."""
        inputs = dict.fromkeys(i for i, _ in self.pairs)
        names = [named(self.sample_ids[i]) for i in itertools.islice(inputs, _SHOWN_INPUTS)]
        more = f" and {len(inputs) - len(names)} more" if len(inputs) > len(names) else ""
        return (
            f"reward {self.reward.name!r} did not answer within {self.watch.seconds:g} seconds for "
            f"{len(self.pairs)} hypotheses of {'; '.join(names)}{more}: mend it, or give it longer "
            "with --reward-timeout"
        )

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
