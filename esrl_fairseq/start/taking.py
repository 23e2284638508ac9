"""The architecture of a run without ``--arch``: that of the model that it starts from."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

from esrl_fairseq.checkpoints.writing import check_saving
from esrl_fairseq.checks.models import check_choices
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.architecture import (
    as_dictionary,
    name_of,
    options_of,
    resolve,
    same,
)
from esrl_fairseq.start.reading import read_start
from esrl_fairseq.start.source import NONE, find_start

logger = logging.getLogger(__name__)

OF_LEARNED_POSITIONS = ("tokens_per_sample", "max_target_positions")
"""Options of language modeling that learned positions depend on."""


def architecture_of_start(given: Namespace) -> dict[str, Any]:
    """What the command line leaves out of the architecture, from the checkpoint that it names.

    Args:
        given: what fairseq's parser found at first sight, before it knows the architecture.

    Returns:
        Values of options, ``arch`` among them; none where ``--arch`` is given or not needed.

    Raises:
        EsrlError: there is neither ``--arch`` nor a checkpoint, or it cannot be read; or criterion
            esrl cannot train what is chosen.
    """
    check_saving(given)
    check_choices(given)
    if getattr(given, "arch", "") is not None:
        return {}
    start = find_start(given, given.checkpoint_suffix or "")
    if start.kind == NONE:
        raise EsrlError(
            "no --arch is given, and no model that has one: give --finetune-from-model CHECKPOINT, "
            "whose architecture is taken, or --arch with its options"
        )
    options = read_start(start).cfg.model
    arch = name_of(options)
    found = options_of(options)
    if not found:
        raise EsrlError(
            f"the model in {start.path} is of --arch {arch}, which is not known here: give the "
            "--user-dir that brings it, or another --arch"
        )
    taken = needed(arch, found)
    known = as_dictionary(options)
    if known.get("decoder_learned_pos"):
        for name in OF_LEARNED_POSITIONS:
            if name not in found and known.get(name) is not None:
                taken[name] = known[name]
    logger.info("architecture of %s: %s", start.path, in_words({"arch": arch, **taken}))
    return {"arch": arch, **taken}


def needed(arch: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of all options of ``arch`` that a user has to give so that the others follow.

    What follows from others is left out, so that it follows a user's own values, too: ``--dropout``
    of an LSTM is that of its parts.
    """
    options = {name: x for name, x in options.items() if not name.endswith("embed_path")}
    found = {}
    for name, value in options.items():
        others = {other: x for other, x in options.items() if other != name}
        if not same(resolve(arch, others).get(name), value):
            found[name] = value
    complete = resolve(arch, found)
    return found if all(same(complete.get(n), x) for n, x in options.items()) else options


def in_words(options: dict[str, Any]) -> str:
    """Options as on the command line."""
    words = []
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(words)
