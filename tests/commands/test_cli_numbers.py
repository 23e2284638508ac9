"""NaN and infinity: one sentence that says what and where, and the last good checkpoint kept.
Half precision: what runs without a GPU, and a sentence for what does not."""

import pytest
import torch
from command_lines import JOINED, MODEL, esrl_options
from test_cli_resume import load
from test_cli_run import refused

import esrl_fairseq  # noqa: F401 (torch's safe loader then knows what fairseq's checkpoints hold)

NAME = "decoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def bad(commands, mle):
    """A checkpoint with one NaN, another with an infinity."""
    state = torch.load(mle, weights_only=True)
    for name, value in (("nan", torch.nan), ("inf", -torch.inf)):
        state["model"][NAME][3, 4] = value
        torch.save(state, commands.folder / f"{name}.pt")
        state["model"][NAME][3, 4] = 0
    return {name: commands.folder / f"{name}.pt" for name in ("nan", "inf")}


@pytest.mark.parametrize("road", ["--finetune-from-model", "--restore-file", "--kl-reference"])
def test_a_model_that_holds_nan(road, commands, corpus, bad, mle, tmp_path):
    """Before the first update, with nothing written."""
    kind = "inf" if road == "--restore-file" else "nan"
    start = ["--finetune-from-model", mle, "--kl-weight 0.1"] if "kl" in road else []
    given = [*esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED, *start, road, bad[kind]]
    fresh = "--reset-optimizer --reset-dataloader" if kind == "inf" else "--num-samples 2"
    sentence = refused(commands, *given, fresh)
    what = "infinity" if kind == "inf" else "NaN"
    assert f"{bad[kind]}" in sentence and f"{NAME} holds {what} (1 of 1,024 values)" in sentence
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_model_that_diverges(commands, corpus, mle, tmp_path):
    """The last good checkpoint stays as it is, and nothing takes its place."""
    save_dir = tmp_path / "run"
    given = [*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", mle]
    given += ["--no-epoch-checkpoints --disable-validation"]
    commands.succeed("fairseq-train", *given, "--max-update 2")
    last = save_dir / "checkpoint_last.pt"
    good = last.read_bytes()
    sentence = refused(commands, *given, "--lr 3e38 --max-update 6")
    assert "log-probabilities are not finite (NaN or infinity), first for sample " in sentence
    assert "update 3 left a model that is not saved, since its " in sentence
    assert "lower --lr" in sentence and sentence.endswith(f"{last} is as it was before")
    assert last.read_bytes() == good and not (save_dir / "crash.pt").exists()
    # Parameters that are no numbers are not saved even where no batch has been seen since.
    given[given.index(save_dir)] = tmp_path / "other"
    infinite = "--optimizer sgd --weight-decay 1e30 --lr 1e30 --save-interval-updates 1"
    sentence = refused(commands, *given, infinite)
    assert sentence.startswith("update 1 left a model that is not saved, since its ")
    assert " holds infinity (" in sentence or " holds NaN (" in sentence
    assert not list((tmp_path / "other").glob("*.pt"))


REWARD = """
calls = 0

def f(sources, hypotheses, references):
    global calls
    calls += 1
    return [1e30 if calls > 3 else len(text) / 500 for text in hypotheses]
"""


def test_gradients_that_overflow(commands, corpus, mle, tmp_path):
    """What was learned before is saved; fairseq's crash.pt and pages of norms are not written."""
    (commands.folder / "huge_reward.py").write_text(REWARD)
    sentence = refused(
        commands,
        *esrl_options(corpus.data, tmp_path / "run"),
        *[MODEL, JOINED, "--finetune-from-model", mle, "--max-update 8 --disable-validation"],
        "--reward python:huge_reward.f --capability none",
    )
    assert sentence.startswith("update 4 cannot be made, gradients are Nan/Inf")
    assert "rewards are from 1e+30 to 1e+30: look at the reward, or lower --lr" in sentence
    assert "the state after update 3 is in " in sentence
    last = load(tmp_path / "run" / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == 3
    assert all(value.isfinite().all() for value in last["model"].values())
    assert not (tmp_path / "run" / "crash.pt").exists()


def test_a_perplexity_beyond_all_numbers(commands, corpus, mle, tmp_path):
    """It is infinite, and the epoch is saved."""
    run = [*esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED]
    run += ["--finetune-from-model", mle, "--lr 1e3 --max-update 3"]
    result = commands.succeed("fairseq-train", *run)
    assert result.logged("valid")[-1]["ppl"] == float("inf")
    assert load(tmp_path / "run" / "checkpoint_last.pt")["extra_state"]["val_loss"] > 1024


@pytest.mark.long
def test_half_precision_without_a_gpu(commands, corpus, mle, tmp_path):
    """Trains near what float32 does, or says that it needs a GPU. (--amp is float32 there: fairseq
    has torch's autocast on GPUs alone.)"""
    run = [*esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED]
    run += ["--finetune-from-model", mle, "--max-update 1 --no-save"]
    logged = []
    for form in ("--seed 1", "--bf16", "--memory-efficient-bf16", "--amp"):
        result = commands.succeed("fairseq-train", *run, form)
        train, valid = result.logged("train_inner")[0], result.logged("valid")[-1]
        names = ("entropy", "reward", "loss", "gnorm")
        logged.append({"valid": valid["loss"], **{name: train[name] for name in names}})
    for found in logged[1:]:
        assert found == pytest.approx(logged[0], rel=0.02, abs=0.02)
    assert len({found["valid"] for found in logged[:2]}) == 2
    sentence = refused(commands, *run, "--memory-efficient-fp16")
    assert "--memory-efficient-fp16 need a GPU" in sentence and "choose --bf16" in sentence
