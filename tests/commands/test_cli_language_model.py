"""``--task esrl_language_modeling`` on the command line: a language model by stock fairseq, ESRL,
PPO, resuming, two ranks, what is refused, and what fairseq does with the result."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_lines import COMMON, USER_DIR
from test_cli_resume import comparable, load, same_model
from test_cli_train import largest_difference, parameters

LM = (
    "--arch transformer_lm --decoder-layers 1 --decoder-embed-dim 32 --decoder-input-dim 32 "
    "--decoder-output-dim 32 --decoder-ffn-embed-dim 32 --decoder-attention-heads 2 --dropout 0.1 "
    "--share-decoder-input-output-embed --tokens-per-sample 40"
)
REWARD = """
def cats(sources, hypotheses, references):
    return [text.split().count("cat") / max(len(text.split()), 1) for text in hypotheses]

cats.range = (0, 1)
cats.needs_references = False


def dogs(sources, hypotheses, references):  # says nothing of itself
    return [text.split().count("dog") for text in hypotheses]
"""


@dataclass
class Lines:
    """A binarized corpus of 200 lines, and a language model trained on it."""

    text: Path
    data: Path
    model: Path


def binarize(commands, text, data, *options):
    prefixes = " ".join(f"--{split}pref {text / split}" for split in ("train", "valid", "test"))
    commands.succeed("fairseq-preprocess", "--only-source", prefixes, "--destdir", data, *options)
    return data


@pytest.fixture(scope="module")
def lines(commands, corpus):
    """The target side of the corpus; MLE by fairseq's own task and criterion."""
    folder = commands.folder / "lines"
    (folder / "text").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        shutil.copy(corpus.text / f"{split}.en", folder / "text" / split)
    data = binarize(commands, folder / "text", folder / "data")
    commands.succeed(
        *["fairseq-train", data, "--task language_modeling --sample-break-mode eos", LM, COMMON],
        "--criterion cross_entropy --lr 5e-3 --max-epoch 8 --no-epoch-checkpoints",
        *["--user-dir", USER_DIR, "--save-dir", folder / "mle"],
    )
    (commands.folder / "lm_reward.py").write_text(REWARD)
    return Lines(folder / "text", data, folder / "mle" / "checkpoint_last.pt")


def options(lines, folder, *more, data=None, start=True, model=LM):
    """The same command starts and resumes a run."""
    return [
        *[
            "fairseq-train",
            data or lines.data,
            "--user-dir",
            USER_DIR,
            "--save-dir",
            folder,
            COMMON,
        ],
        *["--task esrl_language_modeling --criterion esrl --lr 5e-4", model],
        *(["--finetune-from-model", lines.model] if start else []),
        *["--reward python:lm_reward.cats --sample-max-len-b 8 --num-samples 4", *more],
    ]


def test_main_road(commands, lines, tmp_path):
    """The reward rises; validation has reward and perplexity; fairseq reads the checkpoint."""
    result = commands.succeed(
        *options(lines, tmp_path, "--prompt-tokens 2 --max-epoch 4 --kl-weight 0.01"),
        "--best-checkpoint-metric reward --maximize-best-checkpoint-metric",
    )
    training, valid = result.logged("train_inner"), result.logged("valid")
    assert len(training) == 40 and training[0]["kl"] == 0 and training[-1]["kl"] > 0.1
    assert all(line["samples"] == 4 for line in training[:10])
    assert all(line["samples"] < 4 for line in training[10:])
    reward = [sum(line["reward"] for line in part) for part in (training[:10], training[-10:])]
    assert reward[1] > 1.2 * reward[0]
    assert len(valid) == 5 and all(line["ppl"] > 1 and "length_ratio" in line for line in valid)
    assert valid[-1]["best_reward"] == max(line["reward"] for line in valid)

    path = ["--user-dir", USER_DIR, "--path", tmp_path / "checkpoint_best.pt"]
    scored = commands.succeed(
        "fairseq-eval-lm", lines.data, *path, "--gen-subset valid --sample-break-mode eos"
    )
    assert "Perplexity" in scored.stdout + scored.stderr
    written = commands.succeed(
        *["fairseq-generate", lines.data, *path, "--task esrl_language_modeling --prompt-tokens 2"],
        "--gen-subset test --sampling --beam 1 --max-len-b 12 --remove-bpe",
        "--required-batch-size-multiple 1",
    )
    found = written.lines("H-")
    assert len(found) == 20 and all(written.lines("S-")[i] for i in found)


def test_a_function_of_the_users_own_with_all_defaults(commands, lines, tmp_path):
    """Prompts without a target side; then going on with a number as --elimination-ratio."""
    given = [*options(lines, tmp_path), "--reward python:lm_reward.dogs --kl-weight 0.05"]
    result = commands.succeed(*given, "--max-epoch 2")
    training = result.logged("train_inner")
    assert len(training) == 20 and all(line["samples"] < 4 for line in training[10:])
    assert all("capability" not in line for line in training)
    assert len(result.logged("valid")) == 3 and "ppl" not in result.logged("valid")[-1]
    assert "WARNING" not in result.stdout

    number = "--elimination-ratio 0.5"
    sentence = refused(commands, *given, number, "--max-epoch 4")
    assert "--capability reward needs a reward in [0, 1], 'python:lm_reward.dogs'" in sentence
    result = commands.succeed(*given, number, "--max-epoch 4 --reward python:lm_reward.cats")
    training = result.logged("train_inner")
    assert [line["samples"] for line in training[:10]] == [4] * 10  # nothing is known
    assert all("capability" in line and line["samples"] < 4 for line in training[10:])


@pytest.mark.parametrize(
    "more",
    [
        "--num-samples 1 --min-samples 0 --kl-weight 0.05 --kl-target 0.5 --elimination-ratio 0.5",
        "--prompt-tokens 2 --objective ppo --ppo-passes 4 --ppo-level token --mle-weight 0.1",
        pytest.param(
            "--sampling standard --reward-text whole --capability entropy --valid-beam 0",
            marks=pytest.mark.long,
        ),
    ],
)
def test_resumed_equals_uninterrupted(more, commands, lines, tmp_path):
    """From the checkpoint after update 6 of 14, whole lines being prompts but once; it brings the
    architecture."""

    def run(folder, model=LM):
        more_updates = [more, "--save-interval-updates 6 --max-update 14"]
        return commands.succeed(*options(lines, folder, *more_updates, model=model))

    whole = run(tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    checkpoint = tmp_path / "whole" / "checkpoint_1_6.pt"
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    resumed = run(tmp_path / "resumed", "--tokens-per-sample 40")
    expected = comparable(whole, 6)
    assert len(expected) > 8 and comparable(resumed, 6) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")
    assert largest_difference(
        parameters(checkpoint), parameters(tmp_path / "whole" / "checkpoint_last.pt")
    )
    if "--num-samples 1" in more:
        samples = [line["samples"] for line in whole.logged("train_inner")]
        assert samples[:10] == [1] * 10 and all(0 < k < 1 for k in samples[10:])
        assert whole.logged("train_inner")[-1]["share_mrt"] == 0
    if "--prompt-tokens" not in more:
        assert "ppl" not in whole.logged("valid")[-1]


@pytest.mark.slow
def test_two_ranks(commands, lines, tmp_path):
    """Two gloo ranks, each with half of a batch: KL, queue and store are of both."""
    (tmp_path / "rank1").mkdir()
    more = "--prompt-tokens 2 --max-epoch 2 --kl-weight 0.05 --lr 1e-12"
    results = commands.two_ranks(
        lambda rank: options(lines, tmp_path / f"rank{rank}", more, "--batch-size 10")
    )
    state = load(tmp_path / "rank0" / "checkpoint_last.pt")
    rl = state["extra_state"]["EsrlLanguageModelingTask"]["rl"]
    assert len(rl["baseline"]["state"]["rewards"]) == 1000 and len(rl["stores"]) == 1
    lines_logged = results[0].logged("train_inner")
    assert len(lines_logged) == 20 and lines_logged[-1]["samples"] < 4


def refused(commands, *given):
    """What a refused command said."""
    result = commands.run(*given)
    assert result.returncode not in (0, -9)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--prompt-tokens 0", "--prompt-tokens is 0, but must be at least 1"),
        ("--reward bleu", "has no target side, but --reward bleu needs references: choose a rew"),
        (
            "--capability bleu --elimination-ratio 0.5",
            "or give --prompt-tokens, so that the rest of each line is its ref",
        ),
        ("--mle-weight 0.1", "--mle-weight 0.1 needs references: leave it out, or give --prompt"),
        ("--reward bleu --prompt-tokens 4", "these lines, or give fewer --prompt-tokens"),
        ("--tokens-per-sample 5", "tokens, but the model reads at most 5, with"),
        ("--add-bos-token --tokens-per-sample 5", "model reads at most 5, with the start symbol"),
        ("--reward-post-process @@", "not join the sub-words of the dictionary, made by subword"),
        ("--shorten-method truncate", "--shorten-method does not go with --task esrl_language_mod"),
        ("--task language_modeling", "choose --task esrl_language_modeling"),
        ("--reward repetition:2 --elimination-ratio 0.5", "needs a reward in [0, 1]"),
        ("--kl-weight 0.1 --kl-reference gone.pt", "--kl-reference gone.pt does not exist"),
    ],
)
def test_refusals(more, words, commands, lines, tmp_path):
    start = "tokens-per-sample" not in more
    given = options(lines, tmp_path / "run", start=start)
    if "--task" in more:  # which does not know our options
        given = [str(word).replace("--sample-max-len-b 8 --num-samples 4", "") for word in given]
    sentence = refused(commands, *given, more)
    assert words in sentence, sentence
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_models_with_an_encoder_are_refused(arch, commands, lines, tmp_path):
    given = [str(word).replace(LM, f"--arch {arch}") for word in options(lines, tmp_path)]
    sentence = refused(commands, *given)
    assert "trains language models, which" in sentence and "transformer_lm" in sentence


def test_data(commands, lines, tmp_path):
    """Empty prompts, no dictionary, no data."""
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid", "test"):
        (text / split).write_text("the cat\n" if split == "valid" else "the cat\n\na dog\n\n")
    data = binarize(commands, text, tmp_path / "data", "--srcdict", lines.data / "dict.txt")
    sentence = refused(commands, *options(lines, tmp_path / "run", data=data))
    assert sentence == "train, line 2 is empty (the first of 2 such lines): leave out these lines"
    (data / "train.bin").unlink()
    (data / "train.idx").unlink()
    sentence = refused(commands, *options(lines, tmp_path / "run", data=data))
    assert f"there are no prompts {data / 'train'}" in sentence
    (data / "dict.txt").unlink()
    sentence = refused(commands, *options(lines, tmp_path / "run", data=data))
    assert f"there is no dictionary {data / 'dict.txt'}" in sentence
