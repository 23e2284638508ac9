"""PPO through the command lines: resumed between two passes, at an epoch's end, on two ranks."""

import shutil

import pytest
import torch
from command_lines import JOINED, MODEL, esrl_options
from test_cli_resume import comparable, load


def options(corpus, mle, save_dir, *more):
    """The same command starts and resumes a run; 25 batches an epoch, of which the last is alone
    with ``--update-freq 2``."""
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", mle],
        *["--objective ppo --num-samples 4 --elimination-ratio 0.5 --batch-size 8", *more],
    ]


def copy_of(checkpoint, folder):
    """A folder in which a run goes on from the checkpoint."""
    folder.mkdir()
    shutil.copy(checkpoint, folder / "checkpoint_last.pt")
    return folder


def same_parameters(one, other):
    one, other = (load(folder / "checkpoint_last.pt")["model"] for folder in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


def passes(result):
    return [line["ppo_pass"] for line in result.logged("train_inner")]


def test_resumed_between_passes_equals_uninterrupted(commands, corpus, mle, tmp_path):
    """From update 7 of 16, a second pass; update 13 has one batch where two are kept."""
    more = (
        "--ppo-passes 5 --ppo-level token --update-freq 2 --rescoring-dropout --mle-weight 0.1",
        "--save-interval-updates 7 --max-update 16",
    )

    def run(folder):
        return commands.succeed("fairseq-train", *options(corpus, mle, folder, *more))

    whole = run(tmp_path / "whole")
    assert passes(whole) == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 3]
    for line in whole.logged("train_inner"):
        assert (line["sampled_tokens"] > 0) == (line["ppo_pass"] == 1) == (line["ppo_kl"] == 0)
        assert {"ppo_clipped", "ppo_ratio", "loss_ppo", "nll_references"} <= line.keys()
    checkpoint = tmp_path / "whole" / "checkpoint_1_7.pt"
    resumed = run(copy_of(checkpoint, tmp_path / "resumed"))
    expected = comparable(whole, 7)
    assert len(expected) > 9 and comparable(resumed, 7) == expected
    assert same_parameters(tmp_path / "whole", tmp_path / "resumed")

    state = load(checkpoint)
    state["extra_state"]["EsrlTranslationTask"]["rl"]["replay"]["kept"] = []
    torch.save(state, copy_of(checkpoint, tmp_path / "forgot") / "checkpoint_last.pt")
    assert passes(run(tmp_path / "forgot")) == [1, 2, 3, 4, 5, 1, 1, 2, 3]
    assert not same_parameters(tmp_path / "whole", tmp_path / "forgot")


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_resume_with_a_dummy_batch(commands, corpus, mle, tmp_path):
    """The second rank has 12 of 25 batches: a dummy ends its epochs, in pass 3 and in pass 1."""

    def run(folder):
        more = "--ppo-passes 4 --update-freq 2,1 --max-epoch 2 --save-interval-updates 6"
        return commands.two_ranks(
            lambda rank: [
                "fairseq-train",
                *options(corpus, mle, folder, more),
                f"--capability-store {folder}/store{rank}",
            ]
        )[0]

    whole = run(tmp_path / "whole")
    assert passes(whole) == [1, 2, 3, 4, 1, 2, 3] + [1, 2, 3, 4] * 3 + [1]
    checkpoint = tmp_path / "whole" / "checkpoint_1_6.pt"
    kept = load(checkpoint)["extra_state"]["EsrlTranslationTask"]["rl"]["replay"]["kept"]
    ids = [batch["batch"]["id"].tolist() for rank in kept for batch in rank]
    assert [len(rank) for rank in kept] == [2, 2] and len(set(sum(ids, []))) == 32
    resumed = run(copy_of(checkpoint, tmp_path / "resumed"))
    assert passes(resumed) == passes(whole)[6:]
    assert comparable(resumed, 6) == comparable(whole, 6)
    assert same_parameters(tmp_path / "whole", tmp_path / "resumed")
