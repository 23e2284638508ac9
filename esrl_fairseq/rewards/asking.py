"""Asking a reward: each text once, and the checks around every call.

For inputs and rows see :mod:`esrl_fairseq.rewards.base`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.answers import Answer, Scores, as_scores
from esrl_fairseq.rewards.combining import Combination
from esrl_fairseq.rewards.given import check_lengths, checked_references, has_text, named
from esrl_fairseq.rewards.guard import Guard
from esrl_fairseq.rewards.watch import Watch
from esrl_fairseq.rewards.workers import Workers, WorkersFailed

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
    given = (reward, sources, hypotheses, references, row_input, sample_ids)
    return ask_rows(*given, seed, watch).rewards


def ask_rows(
    reward: Reward,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str] | None] | None,
    row_input: Sequence[int],
    sample_ids: Sequence[Any],
    seed: int | None = None,
    watch: Watch = _NO_WATCH,
    workers: Workers | None = None,
) -> Answer:
    """As `score_rows`, with what the rewards of a whole corpus count; `workers` are asked for those
    that can be in a process of their own."""
    rows = [int(i) for i in row_input]
    check_lengths(sources, hypotheses, references, rows, sample_ids)
    batch_references = checked_references(reward, references, sample_ids)
    if not rows:
        nothing = np.zeros(0, dtype=np.float32)
        return Answer(nothing, nothing)
    index: dict[tuple[int, str], int] = {}
    inverse = [index.setdefault(pair, len(index)) for pair in zip(rows, hypotheses)]
    given = (sources, batch_references, list(index), sample_ids)
    batch = _Batch(reward, *given, seed, watch, workers)
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
        seed: int | None,
        watch: Watch,
        workers: Workers | None,
    ) -> None:
        self.reward = reward
        self.sources = sources
        self.references = references
        self.pairs = pairs
        self.sample_ids = sample_ids
        self.seed = seed
        self.watch = watch
        self.workers = workers

    def answer(self) -> Answer:
        """[pairs]: scored, checked, clipped to the range."""
        combination = Combination(
            len(self.pairs),
            self.references,
            lambda leaf: self._of(leaf)._checked(self._of(leaf)._asked()),
            lambda reward, answer: self._of(reward)._checked(answer),
        )
        return combination.answer(self.reward)

    def _of(self, reward: Reward) -> _Batch:
        """The same for one of those that the reward is made of."""
        batch = copy.copy(self)
        batch.reward = reward
        return batch

    def _checked(self, answer: Answer) -> Answer:
        low, high = self.reward.range
        self._check(answer.rewards, low, high)
        rewards = np.clip(answer.rewards, np.float32(low), np.float32(high))
        return Answer(rewards, answer.rest if answer.counts else rewards, answer.counts)

    def _asked(self) -> Answer:
        """What the reward itself answers, or an error that names the sample that it fails on."""
        guard = self._guard()
        try:
            return self._score(self.pairs, guard)
        except WorkersFailed as error:
            raise EsrlError(f"reward {self.reward.name!r} {error}, for {self._batch()}") from error
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

    def _score(self, pairs: Sequence[tuple[int, str]], guard: Guard) -> Answer:
        """[whatever the reward returned], unchecked.

        The reward gets lists of its own, which it may change.
        """
        inputs, hypotheses = [i for i, _ in pairs], [text for _, text in pairs]
        answer = self.reward.answer
        if self.workers is not None and self.reward.in_workers:
            self.workers.wait()  # for imports, which have no limit
            answer = functools.partial(self.workers.answer, self.reward, seed=guard.seed)
        with guard:
            self.watch.begin(self._too_long)
            try:
                given, counts = answer(
                    list(self.sources), list(self.references), hypotheses, inputs
                )
                scores = as_scores(given, len(pairs))
            finally:
                self.watch.end()
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


def _shown(text: str) -> str:
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    return repr(text)
