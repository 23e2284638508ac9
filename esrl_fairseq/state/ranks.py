"""The processes of a run that trains on several; one of its own otherwise."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def own_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def number_of_ranks() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_all_ranks(own: Any) -> list[Any]:
    """What every rank gives, rank by rank; every rank must call it."""
    if number_of_ranks() == 1:
        return [own]
    gathered: list[Any] = [None] * number_of_ranks()
    dist.all_gather_object(gathered, own)
    return gathered


def from_first_rank(own: Any) -> Any:
    """What the first rank gives; every rank must call it."""
    given = [own]
    if number_of_ranks() > 1:
        dist.broadcast_object_list(given, src=0)
    return given[0]
