"""--freeze-encoder and --freeze-embeddings by fairseq's commands: what is trained, what checkpoints
hold, resumed runs, several ranks."""

import shutil

import pytest
import torch
from command_lines import JOINED, MODEL, esrl_options
from test_cli_language_model import refused
from test_cli_resume import comparable, load, same_model


def options(corpus, mle, folder, *more):
    return [
        *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED],
        *["--finetune-from-model", mle, "--num-samples 3 --kl-weight 0.01 --max-update 8"],
        *["--save-interval-updates 4 --no-epoch-checkpoints --disable-validation", *more],
    ]


@pytest.fixture(scope="module")
def frozen(commands, corpus, mle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    return folder, commands.succeed(*options(corpus, mle, folder, "--freeze-encoder"))


def check(start, folder):
    """The encoder, whose embeddings the decoder has too, is as it was; the optimizer has a state
    for the other parameters alone."""
    before, after = load(start)["model"], load(folder / "checkpoint_last.pt")
    names = [name for name in before if after["model"][name].dim()]
    equal = {name for name in names if torch.equal(before[name], after["model"][name])}
    shared = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    ours = {name for name in names if name.startswith("encoder.")} | shared
    assert ours <= equal
    # The bias of keys has no gradient but rounding.
    moved = {name for name in names if name not in ours and "version" not in name}
    assert {name for name in moved if not name.endswith("k_proj.bias")} <= moved - equal
    state = after["last_optimizer_state"]
    assert len(state["state"]) == len(moved) == len(state["param_groups"][0]["params"])


def test_frozen_parts_stay_as_they_are(corpus, mle, frozen):
    folder, result = frozen
    check(mle, folder)
    assert "decoder.output_projection.weight, too: the encoder shares it" in result.stdout
    assert result.logged("train_inner")[0]["kl"] == 0  # by the same kernels
    assert result.logged("train_inner")[-1]["kl"] > 0


def test_resumed_equals_uninterrupted(commands, corpus, mle, frozen, tmp_path):
    (tmp_path / "resumed").mkdir()
    checkpoint = next(frozen[0].glob("checkpoint_*_4.pt"))
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    given = options(corpus, mle, tmp_path / "resumed", "--freeze-encoder")
    sentence = refused(commands, *given[:-1])
    assert "was trained with --freeze-encoder, and this run is without it" in sentence
    resumed = commands.succeed(*given)
    expected = comparable(frozen[1], 4)
    assert len(expected) >= 4 and comparable(resumed, 4) == expected
    assert same_model(frozen[0], tmp_path / "resumed")


@pytest.mark.long
def test_from_a_run_that_froze_nothing(commands, corpus, mle, tmp_path):
    """Its parameters can be gone on from, its optimizer's state cannot."""
    commands.succeed(*options(corpus, mle, tmp_path / "all", "--max-update 1"))
    start = tmp_path / "all" / "checkpoint_last.pt"
    given = options(corpus, mle, tmp_path / "part", "--freeze-encoder")
    given = [word for word in given if word not in ("--finetune-from-model", mle)]
    given += ["--restore-file", start]
    sentence = refused(commands, *given)
    assert "was trained without --freeze-encoder, and this run is with it" in sentence
    commands.succeed(*given, "--reset-optimizer --reset-lr-scheduler --reset-dataloader")
    check(start, tmp_path / "part")


@pytest.mark.long
@pytest.mark.parametrize("backend", ["legacy_ddp", "c10d"])
def test_two_ranks(backend, commands, corpus, mle, tmp_path):
    """Distributed wrappers wait for no gradient of a frozen parameter."""
    more = ["--freeze-encoder --rescoring-dropout --max-update 2", f"--ddp-backend {backend}"]
    results = commands.two_ranks(lambda rank: options(corpus, mle, tmp_path, *more))
    assert len(results[0].logged("train_inner")) == 2
    check(mle, tmp_path)
