"""Which ways of training on several ranks this machine has."""

from __future__ import annotations

import importlib.util
from typing import Any

from esrl_fairseq.errors import EsrlError

INSTEAD = "leave it out, or give --ddp-backend legacy_ddp"


def check_backend(cfg: Any, gpus: int) -> None:
    """Refuse what would end in a traceback, before data and model are read.

    Args:
        cfg: fairseq's.
        gpus: that this process can train on; 0 on a CPU.

    Raises:
        EsrlError: fairscale or a GPU is missing.
    """
    ranks = cfg.distributed_training
    several = ranks.distributed_world_size > 1
    needed = ""
    if ranks.ddp_backend == "fully_sharded" or (ranks.ddp_backend == "slowmo" and several):
        needed = f"--ddp-backend {ranks.ddp_backend}"
        if not gpus:
            raise EsrlError(f"{needed} trains on GPUs alone (so does fairscale's): {INSTEAD}")
    elif ranks.zero_sharding == "os" and several:
        needed = "--zero-sharding os"
    if needed and importlib.util.find_spec("fairscale") is None:
        raise EsrlError(f"{needed} needs fairscale: pip install fairscale, or {INSTEAD}")


def refuse_shards(trainer: Any) -> None:
    """Stop a training that draws samples with a model of which each rank has a part.

    The ranks would have to draw in step, a layer at a time, but their samples differ in length.

    Raises:
        EsrlError: it is one.
    """
    if trainer.is_fsdp:
        raise EsrlError(
            "--ddp-backend fully_sharded leaves each rank a part of the weights, with which it can "
            f"draw no samples of its own: {INSTEAD}"
        )
