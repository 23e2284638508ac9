"""What a reward is, and the registry of rewards.

A batch has *inputs* (a source with its references) and *rows* (hypotheses); ``row_input[r]`` is the
input of row r. Rewards see both, so that what depends on the input alone is prepared once.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.answers import Scores
from esrl_fairseq.rewards.asking import score_rows
from esrl_fairseq.rewards.given import as_tuple

if TYPE_CHECKING:
    from esrl_fairseq.rewards.counted import CountedReward


_REWARDS: dict[str, type[Reward]] = {}


class Reward(abc.ABC):
    """A function from (source, hypothesis, references) to one number.

    A subclass implements `score`, overrides what differs in the attributes below and registers
    itself with `register_reward`. Callers use `score_rows` (a batch of inputs with several
    hypotheses each) or call the reward itself (plain rows); both check and deduplicate.
    """

    name: str = ""
    """Set by `register_reward`."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """The smallest and the largest value; anything outside stops the run."""
    higher_is_better: bool = True
    """False: training refuses it, but for a negative weight in a weighted sum."""
    needs_references: bool = True
    """If True, an input without a non-empty reference is an error; if False, `score` may get
    empty lists of references."""
    references_optional: bool = False
    """True of what does not tell whether it needs references: it gets those that there are, and
    messages of its failures say where there are none."""
    needs_sources: bool = False
    """If True, values without the source say nothing; training always has it."""
    in_workers: bool = True
    """Whether ``--reward-workers`` may make it in other processes; not of models, which have a
    device of their own."""
    parts: Sequence[tuple[Reward, float]] = ()
    """Of a weighted sum: its rewards and their weights. Each is asked and checked on its own."""
    factors: Sequence[Reward] = ()
    """Of a product: its rewards, likewise."""

    @property
    def leaves(self) -> list[Reward]:
        """The rewards that it is made of, each once; it alone, if it is not made of others."""
        inner = [part for part, _ in self.parts] or self.factors
        found = {id(leaf): leaf for reward in inner for leaf in reward.leaves}
        return list(found.values()) or [self]

    @property
    def label(self) -> str:
        """Its name in logs, as ``reward_LABEL``: without what says that it is a function."""
        return self.name.rpartition(":")[2]

    @property
    def in_unit_interval(self) -> bool:
        """Whether its values lie in [0, 1], so that their mean can be a capability."""
        low, high = self.range
        return 0 <= low <= high <= 1

    @property
    def validation_range(self) -> tuple[float, float]:
        """Smallest and largest value of what validation logs."""
        return self.range

    @property
    def counted(self) -> Sequence[tuple[CountedReward, float]]:
        """It, or its parts, with their weights, that follow the counts of a whole corpus."""
        return ()

    def signature(self) -> str:
        """Name, options and versions: all that is needed to reproduce the values."""
        return self.name

    @abc.abstractmethod
    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Any:
        """Score a batch; every reward implements it.

        Args:
            sources: [inputs] source texts.
            references: [inputs] lists of reference texts.
            hypotheses: [rows] texts, possibly empty; no (input, text) pair comes twice.
            row_input: [rows] indices into `sources` and `references`, in any order.

        Returns:
            [rows] numbers within `range`, as anything that ``numpy.asarray`` takes.
        """

    def answer(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> tuple[Any, NDArray[np.float64] | None]:
        """What `score` says, and the counts [rows, counts] that it is a function of, or None."""
        return self.score(sources, references, hypotheses, row_input), None

    def __call__(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
    ) -> Scores:
        """Score rows that each bring their own source and references.

        Args:
            sources: [rows] source texts.
            hypotheses: [rows] hypothesis texts.
            references: [rows] lists of reference texts, or None.

        Returns:
            float32 [rows] within `range`.

        Raises:
            EsrlError: as `score_rows`; the "sample" it names is the index of a row.
        """
        row_references = [[]] * len(sources) if references is None else references
        if not len(sources) == len(hypotheses) == len(row_references):
            raise ValueError(
                f"{len(sources)} sources, {len(hypotheses)} hypotheses and "
                f"{len(row_references)} lists of references: the numbers must be equal"
            )
        index: dict[tuple[str, tuple[str, ...]], int] = {}
        row_input: list[int] = []
        first_row: list[int] = []
        for row, (source, refs) in enumerate(zip(sources, row_references)):
            key = (source, as_tuple(refs))
            if key not in index:
                index[key] = len(index)
                first_row.append(row)
            row_input.append(index[key])
        return score_rows(
            self,
            [source for source, _ in index],
            hypotheses,
            [refs for _, refs in index],
            row_input,
            first_row,
        )


_RewardClass = TypeVar("_RewardClass", bound=type[Reward])


def register_reward(name: str) -> Callable[[_RewardClass], _RewardClass]:
    """Class decorator: make a `Reward` known to `build_reward` under `name`, and set its name."""

    def register(cls: _RewardClass) -> _RewardClass:
        if set(name) & set("+:*"):
            raise EsrlError(
                f"a reward cannot be named {name!r}: '+', '*' and ':' make sums and products"
            )
        known = _REWARDS.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise EsrlError(
                f"reward {name!r} is already registered by {known.__qualname__}: "
                f"register {cls.__qualname__} under another name"
            )
        cls.name = name
        _REWARDS[name] = cls
        return cls

    return register


def reward_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REWARDS)


def reward_class(name: str) -> type[Reward] | None:
    """The class registered as `name`, or None."""
    return _REWARDS.get(name)
