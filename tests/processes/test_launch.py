"""Which rank a process is, for launchers, machines and options that are made up."""

import os
import pickle
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from command_lines import USER_DIR
from fairseq.dataclass.configs import DistributedTrainingConfig
from torch.nn.parallel import DistributedDataParallel

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.processes import backends, launch, running
from esrl_fairseq.processes.launch import choose, prepare

MASTER = {"MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
TORCHRUN = {**MASTER, "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[3-4]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def chosen(env, gpus=0, **options):
    """What becomes of fairseq's options."""
    cfg = DistributedTrainingConfig(distributed_world_size=max(1, gpus), device_id=0)
    for name, value in options.items():
        setattr(cfg, name, value)
    choose(cfg, env, gpus, max(1, gpus))
    return cfg


def place(cfg):
    """Rank, size, how they meet, whether the process is the rank, GPU, backend."""
    return (
        *(cfg.distributed_rank, cfg.distributed_world_size, cfg.distributed_init_method),
        *(cfg.distributed_no_spawn, cfg.device_id, cfg.distributed_backend),
    )


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A ``scontrol`` that names the hosts of any list."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "gpu3\\ngpu4\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_torchrun_needs_no_options():
    assert place(chosen(TORCHRUN)) == (3, 4, "env://", True, 0, "gloo")
    assert place(chosen(TORCHRUN, gpus=2)) == (3, 4, "env://", True, 1, "nccl")
    # One GPU a machine: fairseq itself would train copies.
    two = {**TORCHRUN, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}
    assert place(chosen(two, gpus=1)) == (1, 2, "env://", True, 0, "nccl")
    # Options that say the same do no harm.
    same = {"distributed_world_size": 4, "distributed_rank": 3, "distributed_no_spawn": True}
    assert place(chosen(TORCHRUN, **same)) == (3, 4, "env://", True, 0, "gloo")
    own = {"distributed_init_method": "tcp://other:5", "distributed_backend": "mpi"}
    assert place(chosen(TORCHRUN, **own)) == (3, 4, "tcp://other:5", True, 0, "mpi")


def test_one_process_is_none_of_several():
    one = {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    assert place(chosen(one))[:3] == (0, 1, None)
    assert place(chosen(one, gpus=8))[:3] == (0, 1, None)
    assert place(chosen({}))[:3] == (0, 1, None)
    # A launcher's variables without a number of this process: a shell in a job's allocation.
    shell = {key: SLURM[key] for key in SLURM if key not in ("SLURM_PROCID", "SLURM_LOCALID")}
    assert place(chosen(shell))[:3] == (0, 1, None)
    assert chosen(shell, gpus=8).distributed_world_size == 8
    # --cpu where there are GPUs, whose number is the default.
    cfg = DistributedTrainingConfig(distributed_world_size=8, device_id=0)
    choose(cfg, {}, 0, 8)
    assert place(cfg)[:3] == (0, 1, None)


def test_mpirun():
    env = {**MASTER, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    assert place(chosen(env)) == (1, 2, "env://", True, 0, "gloo")
    with pytest.raises(EsrlError, match="MASTER_ADDR and MASTER_PORT, where they find each other"):
        chosen({key: env[key] for key in env if "MASTER" not in key})


def test_slurm(scontrol):
    """One rank a task; where each machine has one task and several GPUs, that starts its ranks."""
    rank, size, method, no_spawn, device, backend = place(chosen(SLURM))
    assert (rank, size, no_spawn, device, backend) == (3, 4, True, 0, "gloo")
    host, _, port = method.removeprefix("tcp://").partition(":")
    assert host == "gpu3" and 10000 <= int(port) <= 60000
    other_task = {**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert chosen(other_task).distributed_init_method == method
    assert chosen({**SLURM, "SLURM_JOB_ID": "78"}).distributed_init_method != method
    assert chosen(SLURM, distributed_port=9).distributed_init_method == "tcp://gpu3:9"
    assert chosen({**SLURM, **MASTER}).distributed_init_method == "env://"
    assert chosen(SLURM, gpus=2).device_id == 1
    assert chosen(SLURM, gpus=1).device_id == 0  # each task sees its own
    node = {**SLURM, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    cfg = chosen(node, gpus=4)
    assert place(cfg)[:2] == (4, 8) and not cfg.distributed_no_spawn
    assert place(chosen(node))[:2] == (1, 2) and chosen(node).distributed_no_spawn
    # The step's own numbers come before the job's; mpirun's and Slurm's PMI variables agree.
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "PMI_SIZE": "2"}
    assert place(chosen({**step, "PMI_RANK": "1"}))[:2] == (1, 2)
    # A script that exports WORLD_SIZE for all its tasks.
    assert place(chosen({**SLURM, **MASTER, "WORLD_SIZE": "4"}))[:3] == (3, 4, "env://")
    few = {key: SLURM[key] for key in SLURM if key != "SLURM_NTASKS"}
    assert place(chosen({**few, "SLURM_NTASKS_PER_NODE": "2(x2)"}))[:2] == (3, 4)


def test_slurm_without_scontrol(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EsrlError, match=r"scontrol.*gpu\[3-4\].*set MASTER_ADDR"):
        chosen(SLURM)
    alone = {**SLURM, "SLURM_JOB_NODELIST": "gpu3", "SLURM_NNODES": "1"}
    assert chosen(alone).distributed_init_method.startswith("tcp://gpu3:")


@pytest.mark.parametrize(
    "env, gpus, options, message",
    [
        ({}, 0, {"distributed_world_size": 2}, "this process has no GPU.*torchrun --nproc-per-nod"),
        ({}, 1, {"distributed_world_size": 2}, r"this process has 1 GPU\(s\) and nothing says"),
        ({"WORLD_SIZE": "2"}, 0, {}, "WORLD_SIZE=2, but RANK is not set"),
        ({**TORCHRUN, "RANK": "4"}, 0, {}, "WORLD_SIZE=4, but RANK is 4"),
        ({**TORCHRUN, "RANK": "one"}, 0, {}, "RANK=one, which is no number"),
        (TORCHRUN, 0, {"distributed_world_size": 3}, "-size is 3, but torchrun started.* 3 of 4"),
        (TORCHRUN, 0, {"distributed_rank": 1}, "--distributed-rank is 1, but torchrun started"),
        (TORCHRUN, 1, {}, r"LOCAL_RANK 1 on a machine with 1 GPU\(s\)"),
        ({}, 0, {"distributed_world_size": 2, "distributed_rank": 2}, "nothing says where"),
    ],
)
def test_what_would_train_copies_or_nothing_is_refused(env, gpus, options, message):
    with pytest.raises(EsrlError, match=message):
        chosen(env, gpus, **options)


def test_ranks_by_hand_need_no_option_on_cpu():
    """fairseq would start a process for each GPU: none, with exit code 0."""
    by_hand = {"distributed_init_method": "tcp://a:1", "distributed_world_size": 2}
    assert place(chosen({}, **by_hand)) == (0, 2, "tcp://a:1", True, 0, "gloo")
    assert not chosen({}, gpus=2, **by_hand).distributed_no_spawn
    with pytest.raises(EsrlError, match="the ranks are 0 to 1"):
        chosen({}, distributed_rank=2, **by_hand)


def test_cpu_is_chosen_although_there_are_gpus(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = DistributedTrainingConfig(distributed_world_size=2, device_id=0)
    ranks.zero_sharding = "none"
    common = SimpleNamespace(cpu=True, tpu=False)
    prepare(SimpleNamespace(common=common, distributed_training=ranks))
    assert place(ranks) == (3, 4, "env://", True, 0, "gloo")
    ranks.distributed_backend, common.cpu = "nccl", False
    prepare(SimpleNamespace(common=common, distributed_training=ranks))
    assert place(ranks) == (3, 4, "env://", True, 1, "nccl")


@pytest.mark.parametrize(
    "size, gpus, options, message",
    [
        (1, 0, {"ddp_backend": "fully_sharded"}, "fully_sharded trains on GPUs alone"),
        (2, 0, {"ddp_backend": "slowmo"}, "slowmo trains on GPUs alone"),
        (2, 2, {"ddp_backend": "slowmo"}, "slowmo needs fairscale: pip install fairscale"),
        (2, 2, {"ddp_backend": "fully_sharded"}, "fully_sharded needs fairscale"),
        (2, 0, {"zero_sharding": "os"}, "--zero-sharding os needs fairscale"),
        (1, 0, {"ddp_backend": "slowmo"}, None),
        (2, 0, {"ddp_backend": "pytorch_ddp"}, None),
        (2, 0, {"ddp_backend": "no_c10d"}, None),
    ],
)
def test_backends(size, gpus, options, message, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    ranks = DistributedTrainingConfig(distributed_world_size=size, zero_sharding="none")
    for name, value in options.items():
        setattr(ranks, name, value)
    cfg = SimpleNamespace(distributed_training=ranks)
    if message is None:
        return backends.check_backend(cfg, gpus)
    with pytest.raises(EsrlError, match=message):
        backends.check_backend(cfg, gpus)


def test_no_samples_from_a_model_in_shards():
    with pytest.raises(EsrlError, match="leaves each rank a part of the weights"):
        backends.refuse_shards(SimpleNamespace(is_fsdp=True))
    backends.refuse_shards(SimpleNamespace(is_fsdp=False))


def test_ranks_that_do_not_know_of_each_other_stop(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EsrlError, match="each would train a copy.*world_size=4.*this one's is 3"):
        launch.refuse_copies()


def test_processes_that_fairseq_starts_are_ours():
    """One for each GPU: what they are sent brings this package, before they join the others."""
    guarded = pickle.dumps(running.Guarded(print))
    program = (
        f"import sys, pickle; sys.path.insert(0, {str(USER_DIR.parent)!r})\n"
        "from fairseq.distributed import utils\n"
        "assert not hasattr(utils.distributed_init, '__wrapped__')\n"
        f"pickle.loads({guarded!r})({{}})\n"
        "assert hasattr(utils.distributed_init, '__wrapped__')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "{}\n", result.stderr


def test_ddp_on_cpu(monkeypatch):
    """fairseq gives the number of a GPU, which torch refuses for a model that is on none."""
    from fairseq.models import distributed_fairseq_model

    import esrl_fairseq  # noqa: F401  (its shims)

    given = {}
    monkeypatch.setattr(
        DistributedDataParallel, "__init__", lambda self, module, **options: given.update(options)
    )
    build = distributed_fairseq_model.DistributedDataParallel
    build(module=torch.nn.Linear(1, 1), device_ids=[0], output_device=0)
    assert given == {"device_ids": None, "output_device": None}
    build(module=torch.nn.Linear(1, 1, device="meta"), device_ids=[0], output_device=0)
    assert given == {"device_ids": [0], "output_device": 0}
