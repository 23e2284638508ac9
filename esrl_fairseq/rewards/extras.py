"""Libraries that only some rewards need."""

from __future__ import annotations

import importlib
from typing import Any

from esrl_fairseq.errors import EsrlError


def require(reward: str, module: str, install: str) -> Any:
    """Import an optional library's module.

    Args:
        reward: who needs it, for the message.
        module: what to import.
        install: what to give to ``pip install``.

    Raises:
        EsrlError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EsrlError(
            f"reward {reward!r} needs a library that cannot be imported ({error}): "
            f"pip install {install}"
        ) from None
