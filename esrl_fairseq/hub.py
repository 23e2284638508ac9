"""Models of the Hugging Face hub: those of its cache alone where the hub cannot be reached.

Its library tries six times for each file and prints two lines each time: about a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""How long the hub is waited for."""
PARTS = ("constants", "utils", "errors")
"""Modules of huggingface_hub that are used here."""


@contextlib.contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Around code that loads the model ``name``, a folder or a hub name.

    Raises:
        ConnectionError: the hub cannot be reached, and its cache has not all that is needed.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
        for part in PARTS:  # version 2 has none of them as an attribute before
            importlib.import_module(f"huggingface_hub.{part}")
    except ImportError:  # whoever loads the model says so
        yield
        return
    if os.path.exists(name) or _reachable(hub):
        yield
        return
    with _offline(hub):
        try:
            yield
            logger.info("%s cannot be reached: %s is its cache's", hub.constants.ENDPOINT, name)
        except Exception as error:
            if not _for_want_of(hub, error):
                raise
            raise ConnectionError(
                f"{hub.constants.ENDPOINT} cannot be reached, and its cache on this machine does "
                "not have it"
            ) from error


def _reachable(hub: Any) -> bool:
    """Whether the hub answers within :data:`SECONDS`, whatever it answers."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever the network leads to
            hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=SECONDS)
            answered.set()

    # In a thread, because looking up a host's address knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answered.is_set()


@contextlib.contextmanager
def _offline(hub: Any) -> Iterator[None]:
    """What ``HF_HUB_OFFLINE=1`` does, which the libraries read when they are imported."""
    switches = [(hub.constants, "HF_HUB_OFFLINE")]
    older = sys.modules.get("transformers.utils.hub")  # transformers 4 keeps a copy
    if hasattr(older, "_is_offline_mode"):
        switches.append((older, "_is_offline_mode"))
    # Sessions of huggingface_hub 0 learn it when they are made.
    forget_sessions = getattr(hub.utils, "reset_sessions", lambda: None)
    before = [(module, switch, getattr(module, switch)) for module, switch in switches]
    for module, switch in switches:
        setattr(module, switch, True)
    forget_sessions()
    try:
        yield
    finally:
        for module, switch, value in before:
            setattr(module, switch, value)
        forget_sessions()


def _for_want_of(hub: Any, error: BaseException | None) -> bool:
    """Whether the hub's cache lacked something, which libraries say in their own words."""
    lacking = (hub.errors.LocalEntryNotFoundError, hub.errors.OfflineModeIsEnabled)
    while error is not None:
        if isinstance(error, lacking):
            return True
        error = error.__cause__ or error.__context__
    return False
