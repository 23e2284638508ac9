"""2,000 updates: nothing grows, nothing slows down, nothing is left."""

import pytest
from command_lines import JOINED, MODEL, esrl_options
from soak import Soak

UPDATES = 2000
HOUR = 3600


def command(corpus, mle, save_dir, *more):
    """200 epochs of ten updates; saved at the end of each, validated in every twentieth."""
    return [
        "fairseq-train",
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", mle],
        "--num-samples 4 --elimination-ratio 0.5 --sample-max-len-a 0 --sample-max-len-b 12",
        f"--max-update {UPDATES} --no-epoch-checkpoints --validate-interval 20",
        "--save-interval-updates 100 --keep-interval-updates 2",
        *more,
    ]


@pytest.mark.long
def test_many_updates_with_a_capability_store(commands, corpus, mle, tmp_path):
    running = commands.start(*command(corpus, mle, tmp_path))
    with Soak([running], tmp_path) as soak:
        result = running.wait(HOUR)
    print(*soak.figures(), sep="\n")
    assert result.returncode == 0 and len(result.logged("train_inner")) == UPDATES
    soak.check()


@pytest.mark.long
def test_many_updates_of_two_ranks(commands, corpus, mle, tmp_path):
    running = commands.start_two_ranks(
        lambda rank: command(corpus, mle, tmp_path, "--batch-size 10")
    )
    with Soak(running, tmp_path) as soak:
        results = [rank.wait(HOUR) for rank in running]
    print(*soak.figures(), sep="\n")
    assert all(result.returncode == 0 for result in results)
    assert len(results[0].logged("train_inner")) == UPDATES
    soak.check()
