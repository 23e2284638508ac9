"""Which rank a process is: from the environment that its launcher made, and fairseq's options.

fairseq takes a launcher's word only where ``--distributed-world-size`` is more than 1, which it is
by default where there are several GPUs. Otherwise every process would train a copy of its own.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.processes.backends import check_backend

logger = logging.getLogger(__name__)

LAUNCHERS = (
    # Kind, number of processes, number of this one, its number on its machine.
    ("torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("srun", "", "", ""),  # see find_slurm; it sets those of the next, too
    ("mpirun", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)
START = (
    "start the ranks with torchrun --nproc-per-node {} $(which fairseq-train) …, which needs none "
    "of the options --distributed-…"
)


@dataclass
class Launch:
    """What a launcher says of this process.

    Attributes:
        kind: the launcher's name, for messages.
        size: processes of the run.
        rank: number of this one, from 0.
        local: its number on its machine; None if the launcher does not say.
        method: how they find each other, a URL; empty if the launcher does not say.
        machines: on which they run; 0 if the launcher does not say.
    """

    kind: str
    size: int
    rank: int
    local: int | None = None
    method: str = ""
    machines: int = 0


def find_launch(env: Mapping[str, str]) -> Launch | None:
    """What the environment says of this process; None if nothing started several.

    Raises:
        EsrlError: it contradicts itself.
    """
    method = "env://" if env.get("MASTER_ADDR") and env.get("MASTER_PORT") else ""
    slurm = find_slurm(env, method)
    for kind, size_name, rank_name, local_name in LAUNCHERS:
        if kind == "srun" and slurm is not None:
            return slurm
        size, rank, local = (number(env, name) for name in (size_name, rank_name, local_name))
        if size is None or (rank is None and (size == 1 or slurm is not None)):
            continue
        if rank is None or not 0 <= rank < size:
            raise EsrlError(
                f"the environment says {size_name}={size}, but {rank_name} is "
                f"{env.get(rank_name, 'not set')}: {START.format('N')}, or unset {size_name}"
            )
        if size > 1 or kind == "torchrun":
            return Launch(kind, size, rank, local, method)
    return None


def find_slurm(env: Mapping[str, str], method: str) -> Launch | None:
    """The task of an ``srun`` that this process is."""
    size = number(env, "SLURM_STEP_NUM_TASKS") or number(env, "SLURM_NTASKS")
    rank, local = number(env, "SLURM_PROCID"), number(env, "SLURM_LOCALID")
    machines = number(env, "SLURM_STEP_NUM_NODES") or number(env, "SLURM_NNODES")
    if machines and not size:
        size = machines * (number(env, "SLURM_NTASKS_PER_NODE") or 1)
    if rank is None or not size or size == 1:
        return None
    return Launch("srun", size, rank, local, method, machines or 1)


def number(env: Mapping[str, str], name: str) -> int | None:
    """A variable's number; None where it is not set. Slurm's ``4(x2)`` is 4."""
    value = env.get(name, "").partition("(")[0].strip()
    if not value:
        return None
    try:
        return int(value)
    except ValueError:
        raise EsrlError(f"the environment says {name}={env[name]}, which is no number") from None


def slurm_method(env: Mapping[str, str], port: int) -> str:
    """Where the tasks of a Slurm step find each other: its first host.

    Args:
        port: ``--distributed-port``; 0 or less takes one that follows from the job's number.
    """
    if port <= 0:
        seed = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
        port = random.Random(seed).randint(10000, 60000)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    mend = "set MASTER_ADDR and MASTER_PORT to a host of the job and a free port of it"
    if not nodes:
        raise EsrlError(f"Slurm's variables name no hosts (SLURM_JOB_NODELIST): {mend}")
    try:
        hosts = subprocess.check_output(["scontrol", "show", "hostnames", nodes], text=True).split()
    except (OSError, subprocess.CalledProcessError) as error:
        if "[" in nodes or "," in nodes:
            raise EsrlError(
                f"scontrol, which names the hosts of {nodes}, does not run ({error}): {mend}"
            ) from error
        hosts = [nodes]
    if not hosts:
        raise EsrlError(f"scontrol names no hosts of {nodes}: {mend}")
    return f"tcp://{hosts[0]}:{port}"


def prepare(cfg: Any) -> None:
    """Write into fairseq's configuration which rank this process is.

    Raises:
        EsrlError: the ranks would train copies of their own, or nothing.
    """
    gpus = 0 if cfg.common.cpu or not torch.cuda.is_available() else torch.cuda.device_count()
    if not (cfg.common.tpu or cfg.distributed_training.pipeline_model_parallel):
        choose(cfg.distributed_training, os.environ, gpus, max(1, torch.cuda.device_count()))
    check_backend(cfg, gpus)


def choose(cfg: Any, env: Mapping[str, str], gpus: int, default_size: int) -> None:
    """As :func:`prepare`, of a machine that can be made up.

    Args:
        cfg: fairseq's ``distributed_training``.
        gpus: that this process can train on; 0 on a CPU.
        default_size: ``--distributed-world-size`` where it is not given.
    """
    launch = find_launch(env)
    if launch is not None:
        follow(cfg, launch, env, gpus, default_size)
    elif not gpus and cfg.distributed_world_size == default_size > 1 and not asks_for_ranks(cfg):
        cfg.distributed_world_size = 1  # fairseq's default, of GPUs that --cpu does not use
    elif cfg.distributed_world_size > 1:
        start_alone(cfg, gpus)
    if cfg.distributed_world_size > 1 and not gpus and cfg.distributed_backend == "nccl":
        cfg.distributed_backend = "gloo"


def asks_for_ranks(cfg: Any) -> bool:
    """Whether an option says that there are several ranks, apart from their number."""
    return cfg.distributed_init_method is not None or cfg.distributed_rank > 0


def follow(cfg: Any, launch: Launch, env: Mapping[str, str], gpus: int, default_size: int) -> None:
    """Be the rank that the launcher says."""
    spawns = launch.machines == launch.size > 1 and gpus > 1
    size, rank = (launch.size * gpus, launch.rank * gpus) if spawns else (launch.size, launch.rank)
    for option, given, said, left_out in (
        ("--distributed-world-size", cfg.distributed_world_size, size, (1, default_size)),
        ("--distributed-rank", cfg.distributed_rank, rank, (0,)),
    ):
        if given not in (said, *left_out):
            raise EsrlError(
                f"{option} is {given}, but {launch.kind} started this process as number "
                f"{launch.rank} of {launch.size}: leave the options --distributed-… out"
            )
    cfg.distributed_world_size, cfg.distributed_rank = size, rank
    if size == 1:
        cfg.distributed_init_method = None
        return
    cfg.distributed_no_spawn = not spawns
    cfg.device_id = device_of(launch, cfg.distributed_backend, gpus) if gpus else 0
    if cfg.distributed_init_method is not None:
        return
    cfg.distributed_init_method = launch.method
    if launch.kind == "srun" and not launch.method:
        cfg.distributed_init_method = slurm_method(env, cfg.distributed_port)
    if not cfg.distributed_init_method:
        raise EsrlError(
            f"{launch.kind} started {launch.size} processes, but MASTER_ADDR and MASTER_PORT, "
            f"where they find each other, are not set: set them, or {START.format(launch.size)}"
        )


def device_of(launch: Launch, backend: str, gpus: int) -> int:
    """The number of the GPU that a rank trains on."""
    local = launch.rank if launch.local is None else launch.local
    # Where each process sees one GPU alone, its number is 0.
    if launch.kind != "srun" and launch.local is not None and local >= gpus and backend == "nccl":
        raise EsrlError(
            f"{launch.kind} started a process with LOCAL_RANK {local} on a machine with {gpus} "
            f"GPU(s), and two ranks cannot share one: {START.format(gpus)}"
        )
    return local % gpus


def start_alone(cfg: Any, gpus: int) -> None:
    """No launcher, but several ranks: fairseq starts them on this machine's GPUs, or others come.

    Raises:
        EsrlError: nobody would.
    """
    size, rank = cfg.distributed_world_size, cfg.distributed_rank
    if cfg.distributed_init_method is None and (cfg.distributed_no_spawn or size > gpus):
        raise EsrlError(
            f"--distributed-world-size is {size}, but this process has {gpus or 'no'} GPU(s) and "
            f"nothing says where the other ranks are: {START.format(size)}"
        )
    if not 0 <= rank < size:
        raise EsrlError(f"--distributed-rank is {rank}, but the ranks are 0 to {size - 1}")
    if not gpus:
        cfg.distributed_no_spawn = True  # fairseq would start one process a GPU: none


def refuse_copies() -> None:
    """After the start: stop if the launcher started ranks that do not know of each other.

    It happens where fairseq imports the user directory only after its decision
    (``fairseq-hydra-train``).

    Raises:
        EsrlError: each would train a copy.
    """
    launch = find_launch(os.environ)
    if launch is not None and launch.size > 1 and not dist.is_initialized():
        raise EsrlError(
            f"{launch.kind} started {launch.size} processes, but each would train a copy of its "
            "own: use fairseq-train, or give distributed_training.distributed_world_size="
            f"{launch.size}, .distributed_rank (this one's is {launch.rank}), "
            ".distributed_init_method=env://, .distributed_no_spawn=true and, on CPU, "
            ".distributed_backend=gloo"
        )
