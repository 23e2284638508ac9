"""From the name of a reward, as ``--reward`` takes it, to the reward."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, reward_class, reward_names
from esrl_fairseq.rewards.function import PREFIX, FunctionReward
from esrl_fairseq.rewards.guard import Guard
from esrl_fairseq.rewards.weighted_sum import Product, WeightedSum

PartOptions = Mapping[str, Mapping[str, Any]]


def build_reward(name: str, part_options: PartOptions | None = None, **options: Any) -> Reward:
    """Make a reward from its name.

    Args:
        name: a registered name, ``python:module.function``, or a weighted sum of such names or
            their products: ``bleu:0.5+chrf*language-gate:0.5``. A weight that is left out is 1.
        part_options: options of registered rewards by their names, for those that occur in `name`.
        options: of the reward `name` itself, which is then no weighted sum.

    Raises:
        EsrlError: the name cannot be read or is unknown, a reward does not take its options, or
            what it needs is not installed.
    """
    parts, given = parse_name(name), part_options or {}
    if len(parts) == 1 and parts[0][1] is None and TIMES not in parts[0][0]:
        return _build(parts[0][0], {**given.get(parts[0][0], {}), **options})
    if options:
        raise EsrlError(
            f"reward {name!r} is a weighted sum and takes no options itself, but was given "
            f"{', '.join(options)}: give them by part_options, under the name of a part"
        )
    # A reward that occurs in several products is one, and asked once.
    made = {leaf: _build(leaf, given.get(leaf, {})) for leaf in leaf_names(name)}

    def part(term: str) -> Reward:
        factors = [made[factor] for factor in term.split(TIMES)]
        return factors[0] if len(factors) == 1 else Product(term, factors)

    return WeightedSum(
        name, [(part(term), 1.0 if weight is None else weight) for term, weight in parts]
    )


def _build(name: str, options: Mapping[str, Any]) -> Reward:
    if name.startswith(PREFIX):
        if options:
            raise EsrlError(f"reward {name!r} takes no options, but was given {', '.join(options)}")
        return _made(name, FunctionReward, {"name": name})
    cls = registered(name)
    signature = inspect.signature(cls)
    for option, value in options.items():
        if option not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise EsrlError(
                f"reward {name!r} has no option {option!r}"
                f"{did_you_mean(option, signature.parameters)}; its options are: {known}"
            )
        if is_switch(cls, option) and value not in (None, False, True):
            raise EsrlError(f"reward {name!r}: {option} must be true or false, not {value!r}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise EsrlError(f"reward {name!r}: {error}") from None
    return _made(name, cls, options)


def _made(name: str, cls: type[Reward], options: Mapping[str, Any]) -> Reward:
    """A reward, whatever its module and its libraries do when they are loaded."""
    guard = Guard(name)
    try:
        with guard:
            return cls(**options)
    except Exception:
        raise
    except BaseException as error:  # sys.exit() in a script that is no module, say
        if guard.came_from_outside(error):
            raise
        raise EsrlError(
            f"reward {name!r}: loading it raised {type(error).__name__}: {error}"
        ) from error


def is_switch(cls: type[Reward], option: str) -> bool:
    """Whether a reward's constructor declares the option as a bool, or as a bool or None."""
    parameter = inspect.signature(cls).parameters.get(option)
    declared = inspect.Parameter.empty if parameter is None else parameter.annotation
    text = declared.__name__ if isinstance(declared, type) else str(declared)
    return set(re.findall(r"\w+", text)) - {"None", "Optional", "typing"} == {"bool"}


def registered(name: str) -> type[Reward]:
    """The class registered as `name`.

    Raises:
        EsrlError: there is none.
    """
    cls = reward_class(name)
    if cls is None:
        known = reward_names()
        raise EsrlError(
            f"unknown reward {name!r}{did_you_mean(name, known)}: choose one of "
            f"{', '.join(known)}, python:module.function for your own, or a weighted sum such as "
            "bleu:0.5+chrf:0.5"
        )
    return cls


TIMES = "*"
"""Between the factors of a product."""


def leaf_names(text: str) -> list[str]:
    """The names of rewards in a weighted sum of products, each once; raises as `parse_name`."""
    return list(dict.fromkeys(name for part, _ in parse_name(text) for name in part.split(TIMES)))


def parse_name(text: str) -> list[tuple[str, float | None]]:
    """[parts] names and weights; a weight that is not given is None. The name of a product has
    those of its factors, with `TIMES` between them.

    Raises:
        EsrlError: it is no weighted sum, or a name comes twice.
    """
    parts = []
    for part in text.split("+"):
        *others, last = part.split(TIMES)
        name, weight = _last_factor(last)
        factors = [*map(str.strip, others), name]
        if "" in factors:
            raise EsrlError(
                f"reward {text!r}: a name is missing; weighted sums are written bleu:0.5+chrf:0.5"
            )
        for factor in factors[:-1]:
            if ":" in factor.removeprefix(PREFIX):
                raise EsrlError(
                    f"reward {text!r}: the weight of a product stands behind its last factor, as "
                    "in chrf*language-gate:0.5"
                )
        _refuse_twice(text, factors, "leave out one")
        name = TIMES.join(factors)
        parts.append((name, None if weight is None else _weight(text, name, weight)))
    _refuse_twice(text, [name for name, _ in parts], "add its weights")
    return parts


def _last_factor(text: str) -> tuple[str, str | None]:
    """Name and weight, if there is one."""
    text = text.strip()
    prefix = PREFIX if text.startswith(PREFIX) else ""
    name, colon, weight = text[len(prefix) :].partition(":")
    return prefix + name.strip(), weight if colon else None


def _refuse_twice(text: str, names: list[str], mend: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise EsrlError(f"reward {text!r}: {name!r} comes twice; {mend}")


def _weight(text: str, name: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise EsrlError(
            f"reward {text!r}: the weight of {name!r} is {weight.strip()!r}"
            f"{did_you_mean(f'{name}:', [PREFIX])}, but must be a number, such as 0.5, or 0 to log "
            "it alone"
        )
    return value
