"""What a run starts from: its architecture by default, one sentence where it does not fit, and
hints for options that are not known."""

import shutil

import pytest
import torch
from command_lines import JOINED, MODEL, esrl_options
from test_cli_errors import contents, earlier, folder, refuse  # noqa: F401 (fixtures)
from test_cli_resume import load

FOUR_HEADS = "--encoder-attention-heads 4"
OTHER_HEADS = "--encoder-attention-heads is 4 here but 2 in "


def test_architecture_of_the_start_model(commands, corpus, mle, tmp_path):
    """Without --arch, interrupted and resumed: bit for bit what options by hand lead to."""

    def run(name, *more):
        words = esrl_options(corpus.data, tmp_path / name)
        words += ["--finetune-from-model", mle, "--rescoring-dropout", *more]
        return commands.succeed("fairseq-train", *words).stdout

    run("hand", MODEL, JOINED, "--max-update 4")
    first, resumed = run("taken", "--max-update 2"), run("taken", "--max-update 4")
    options = "--arch transformer --encoder-embed-dim 32 --encoder-ffn-embed-dim 32"
    assert f"architecture of {mle}: {options}" in first and JOINED in first
    assert f"architecture of {tmp_path / 'taken' / 'checkpoint_last.pt'}: {options}" in resumed
    assert "as they may" not in first + resumed
    hand, taken = (load(tmp_path / name / "checkpoint_last.pt") for name in ("hand", "taken"))
    assert hand["optimizer_history"][-1]["num_updates"] == 4
    for name in ("model", "last_optimizer_state"):
        torch.testing.assert_close(taken[name], hand[name], rtol=0, atol=0)


def test_a_users_own_dropout(commands, corpus, mle, tmp_path):
    """It is the run's, the rest is the start model's."""
    result = commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, tmp_path / "run"), "--restore-file", mle],
        "--reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters",
        "--dropout 0.3 --max-update 1",
    )
    assert f"as they may: --dropout is 0.3 here but 0.1 in {mle}\n" in result.stdout
    model = load(tmp_path / "run" / "checkpoint_last.pt")["cfg"]["model"]
    assert model.dropout == 0.3 and model.encoder_attention_heads == 2


@pytest.mark.parametrize(
    ("more", "start", "words"),
    [
        ([FOUR_HEADS], "--restore-file", OTHER_HEADS),
        ([MODEL], "--finetune-from-model", "--share-all-embeddings is off here but on in "),
        ([MODEL, JOINED, FOUR_HEADS, "--kl-weight 0.1"], "--kl-reference", OTHER_HEADS),
    ],
)
def test_another_architecture(more, start, words, commands, corpus, mle, tmp_path):
    (tmp_path / "run").mkdir()
    given = [*esrl_options(corpus.data, tmp_path / "run"), *more, start, mle]
    sentence = refuse(commands, tmp_path / "run", *given)
    assert sentence.startswith(f"{words}{mle}: give the checkpoint")


def test_a_resumed_run_of_another_architecture(commands, corpus, folder):  # noqa: F811
    options = [*esrl_options(corpus.data, folder), MODEL, JOINED, FOUR_HEADS]
    assert f"{OTHER_HEADS}{folder / 'checkpoint_last.pt'}: " in refuse(commands, folder, *options)


def other_tensors(path):
    state = torch.load(path, weights_only=True)
    names = [name for name in state["model"] if "self_attn" in name]
    for name in names:
        state["model"][name.replace("self_attn", "attention")] = state["model"].pop(name)
    torch.save(state, path)


def other_positions(path):
    """Learned ones, as many as an option says which is compared with nothing else."""
    state = torch.load(path, weights_only=True)
    options = state["cfg"]["model"]
    options.encoder_learned_pos, options.max_source_positions = True, 50
    state["model"]["encoder.embed_positions.weight"] = torch.zeros(52, 32)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (
            lambda path: path.write_text("text"),
            JOINED,
            "start.pt is a text file: give a checkpoint",
        ),
        (other_tensors, JOINED, "start.pt do not fit this run's model: encoder.layers.0.self_attn"),
        (
            other_positions,
            "--max-source-positions 60",
            "encoder.embed_positions.weight is [62, 32] here but [52, 32] there: give the",
        ),
    ],
)
def test_what_is_no_start_model(change, more, words, commands, corpus, mle, tmp_path):
    (tmp_path / "run").mkdir()
    start = shutil.copy(mle, tmp_path / "start.pt")
    change(start)
    options = [*esrl_options(corpus.data, tmp_path / "run"), more, "--finetune-from-model", start]
    sentence = refuse(commands, tmp_path / "run", *options)
    assert words in sentence and len(sentence) < 600, sentence


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--num-samples 3", "no --arch is given, and no model that has one: give --finetune-from"),
        (f"{MODEL} --elimination-ration 0.3", "; did you mean --elimination-ratio?"),
        (f"{MODEL} --task translation --num-samples 3", "belongs to --task esrl_translation (or"),
    ],
)
def test_command_lines(more, words, commands, corpus, tmp_path):
    (tmp_path / "run").mkdir()
    sentence = refuse(
        commands, tmp_path / "run", *esrl_options(corpus.data, tmp_path / "run"), more
    )
    assert words in sentence
