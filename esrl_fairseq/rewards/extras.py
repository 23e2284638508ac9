"""Libraries that only some rewards need."""

from __future__ import annotations

import importlib
from typing import Any

from esrl_fairseq import compat
from esrl_fairseq.errors import EsrlError


def require(reward: str, module: str, install: str, extra: str) -> Any:
    """Import an optional library's module.

    Args:
        reward: who needs it, for the message.
        module: what to import.
        install: what to give to ``pip install``.
        extra: this package's extra that has the same.

    Raises:
        EsrlError: it cannot be imported, for whatever reason: libraries that do not fit together
            raise all kinds of errors.
    """
    compat.hide_torchaudio_that_does_not_load()
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise EsrlError(
            f"reward {reward!r} needs a library that cannot be imported ({error}): "
            f"pip install {install} (the extra {extra!r})"
        ) from error
