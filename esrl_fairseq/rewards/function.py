"""The user's own function as a reward: ``python:module.function``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.given import has_text

logger = logging.getLogger(__name__)

PREFIX = "python:"


class FunctionReward(Reward):
    """``function(sources, hypotheses, references)`` of a module, one number per hypothesis.

    All three are lists of the same length, the third one of lists of texts; equal hypotheses of an
    input come once. The function may have the attributes `range`, `higher_is_better`,
    `needs_references` and `needs_sources`, which mean what they mean in `Reward` and have the same
    defaults, but for `needs_references`: without it, the function gets the references that there
    are. Lists hold the references that have text, so they are empty where an input has none.

    Args:
        name: ``python:module.function``. The module is searched where Python searches, and then in
            the current directory.

    Raises:
        EsrlError: there is no such module or function, importing it fails, or an attribute is
            wrong.
    """

    def __init__(self, name: str) -> None:
        module_name, _, function_name = name[len(PREFIX) :].rpartition(".")
        if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
            raise EsrlError(f"reward {name!r}: write python:module.function")
        self.name = name
        self._module = _import(name, module_name)
        self._function = _function(name, self._module, function_name)
        self.range = _range(name, getattr(self._function, "range", self.range))
        self.higher_is_better = bool(getattr(self._function, "higher_is_better", True))
        needs_references = getattr(self._function, "needs_references", None)
        self.references_optional = needs_references is None
        self.needs_references = bool(needs_references)
        self.needs_sources = bool(getattr(self._function, "needs_sources", False))

    def signature(self) -> str:
        """The name, and a hash of the module's text, because a name alone can mean anything."""
        try:
            text = inspect.getsource(self._module)
        except (OSError, TypeError):  # compiled, or typed into an interpreter
            return f"{self.name}|source:unknown"
        return f"{self.name}|source:{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Any:
        """Whatever the function returns; see `Reward.score`."""
        return self._function(
            [sources[i] for i in row_input],
            list(hypotheses),
            [[text for text in references[i] if has_text(text)] for i in row_input],
        )


def _import(name: str, module: str) -> ModuleType:
    folder = os.getcwd()
    # Last, so that a file here hides no installed module. It stays, because a function may import
    # its neighbours as late as in its first call.
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()  # the file may be younger than what Python knows of the folder
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise EsrlError(
                f"reward {name!r}: there is no module {missing!r}"
                f"{did_you_mean(missing, [path.stem for path in Path(folder).glob('*.py')])}, "
                f"neither in {folder} nor where Python searches (PYTHONPATH)"
            ) from None
        logger.error("importing %r raised:", module, exc_info=error)
        raise EsrlError(
            f"reward {name!r}: importing {module!r} raised {type(error).__name__}: {error}"
        ) from error


def _function(name: str, module: ModuleType, function: str) -> Callable[..., Any]:
    where = f"module {module.__name__!r} ({getattr(module, '__file__', None) or 'built in'})"
    if not hasattr(module, function):
        functions = [key for key, value in vars(module).items() if inspect.isroutine(value)]
        raise EsrlError(
            f"reward {name!r}: {where} has no function {function!r}"
            f"{did_you_mean(function, functions)}"
        )
    found = getattr(module, function)
    if not callable(found) or inspect.isclass(found):
        raise EsrlError(
            f"reward {name!r}: {function!r} of {where} is of type {type(found).__name__}, "
            "but must be a function"
        )
    result: Callable[..., Any] = found
    return result


def _range(name: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise EsrlError(
            f"reward {name!r}: the function's attribute range must be two numbers, the smaller "
            f"one first, not {value!r}"
        )
    return low, high
