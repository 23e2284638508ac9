"""Which process can save the last state when a run fails, and what kind of failure it was."""

from types import SimpleNamespace

import pytest

from esrl_fairseq.checks.memory import out_of_memory
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescue import Rescue


@pytest.mark.parametrize(
    "rank, ranks, sharding, backend, can",
    [
        (0, 1, "none", "pytorch_ddp", True),
        (0, 2, "none", "pytorch_ddp", True),
        (1, 2, "none", "legacy_ddp", False),
        (0, 2, "os", "legacy_ddp", False),
        (0, 2, "none", "fully_sharded", False),
    ],
)
def test_who_can_save_alone(rank, ranks, sharding, backend, can):
    """The first of several ranks, where each has the whole state."""
    trainer = SimpleNamespace(
        data_parallel_world_size=ranks,
        data_parallel_rank=rank,
        is_fsdp=backend == "fully_sharded",
        cfg=SimpleNamespace(distributed_training=SimpleNamespace(zero_sharding=sharding)),
        model=None,
        get_num_updates=lambda: 0,
    )
    assert (rank == 0 and not Rescue(trainer).sharded()) == can


def test_a_rewards_memory_is_the_rewards():
    """Training's would have a batch skipped, or a crash.pt written, and advice given."""
    assert out_of_memory(MemoryError()) and out_of_memory(RuntimeError("CUDA out of memory"))
    assert not out_of_memory(EsrlError("reward 'r' raised OutOfMemoryError: CUDA out of memory"))
