"""Less usual architectures and tasks of fairseq: they train, or one sentence says why not."""

import numpy as np
import pytest
from command_lines import COMMON, JOINED, MODEL, USER_DIR, esrl_options

from esrl_fairseq.rewards import build_reward, score_rows

SIZES = MODEL.removeprefix("--arch transformer ")


@pytest.mark.parametrize(
    "model",
    [
        f"--arch bart_base {SIZES} --objective ppo --mle-weight 0.1",
        f"--arch mbart_base {SIZES} --sampling standard --mle-weight 0.1 --sample-temperature 0.8 "
        "--temperature-correction tempered",
    ],
    ids=lambda model: " ".join(model.split()[1:2] + model.split()[-3:]),
)
def test_models_that_train(model, commands, corpus, tmp_path):
    options = esrl_options(corpus.data, tmp_path)
    more = "--num-samples 3 --max-update 1 --disable-validation --no-save --reward length"
    result = commands.succeed("fairseq-train", *options, JOINED, model, more)
    (log,) = result.logged("train_inner")
    assert log["gnorm"] > 0 and log["entropy"] > 0


@pytest.mark.parametrize(
    "options, words",
    [
        (
            "--task translation_multi_simple_epoch --lang-pairs de-en --langs de,en "
            "--sampling-method temperature --arch transformer",
            ["--task translation_multi_simple_epoch", "one pair", "--task esrl_translation"],
        ),
        (
            "--task esrl_translation --arch nonautoregressive_transformer",
            ["NATransformerModel is not autoregressive", "transformer"],
        ),
        (
            "--task esrl_translation --arch transformer --encoder-embed-dim 64 "
            "--share-all-embeddings",
            ["--arch transformer cannot be built", "--encoder-embed-dim", "line"],
        ),
        (
            "--task translation --arch transformer_lm",
            ["transformer_lm is a language model", "--task esrl_language_modeling"],
        ),
        ("--task masked_lm --arch roberta_base", ["--task masked_lm", "--task esrl_translation"]),
        (
            "--task multilingual_translation --lang-pairs de-en --arch transformer",
            ["--task multilingual_translation", "one pair", "--task esrl_translation"],
        ),
        (
            "--task esrl_translation_from_pretrained_bart --langs de_DE,en --arch mbart_base",
            ["--source-lang is de, which", "--langs de_DE,en", "fairseq-preprocess"],
        ),
        (
            "--task translation_from_pretrained_bart --langs de --arch mbart_base",
            ["--target-lang is en", "--langs de:"],
        ),
        (
            "--task esrl_translation_from_pretrained_bart --arch mbart_base",
            ["--langs is missing"],
        ),
    ],
    ids=lambda value: value.split()[1] if isinstance(value, str) else "",
)
def test_what_cannot_be_trained(options, words, commands, corpus, tmp_path):
    """One sentence, before anything is drawn or saved."""
    result = commands.run(
        "fairseq-train",
        *[corpus.data, "--user-dir", USER_DIR, SIZES, options, COMMON],
        *["--criterion esrl --lr 1e-4 --save-dir", tmp_path / "run"],
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert all(word in sentence for word in words), sentence
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    "task, more",
    [
        pytest.param("translation_from_pretrained_bart", "", marks=pytest.mark.long),
        (
            "esrl_translation_from_pretrained_bart --prepend-bos",
            "--num-samples 3 --objective ppo --mle-weight 0.1 --truncate-source",
        ),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_multilingual_bart(task, more, commands, corpus, tmp_path):
    """Its task is trained by likelihood, goes on with ESRL, and generates what validation saw."""
    task = f"--task {task} --langs de,en"
    common = [corpus.data, "--user-dir", USER_DIR, task, MODEL, JOINED, COMMON]
    mle = tmp_path / "mle"
    commands.succeed(
        *["fairseq-train", *common, "--save-dir", mle, "--criterion cross_entropy --lr 5e-3"],
        "--max-epoch 12 --no-epoch-checkpoints --disable-validation",
    )
    run = tmp_path / "run"
    result = commands.succeed(
        *[
            "fairseq-train",
            *common,
            "--save-dir",
            run,
            "--criterion esrl --lr 1e-4 --check-start off",
        ],
        *["--finetune-from-model", mle / "checkpoint_last.pt", "--valid-beam 1"],
        "--max-update 2 --no-epoch-checkpoints",
        *more.split(),
    )
    first, (valid,) = result.logged("train_inner")[0], result.logged("valid")
    assert first["truncated"] < 0.1 and first["reward"] > 0.2
    generated = commands.succeed(
        *["fairseq-generate", corpus.data, "--user-dir", USER_DIR, task, "--path"],
        *[run / "checkpoint_last.pt", "--gen-subset valid --beam 1 --max-len-a 1.2 --max-len-b 10"],
        "--remove-bpe --required-batch-size-multiple 1",
    )
    written, references = (generated.lines(name) for name in ("D-", "T-"))
    hypotheses = [written[i] for i in range(20)]
    targets = [[references[i]] for i in range(20)]
    ids = range(20)
    scores = score_rows(build_reward("bleu"), [""] * 20, hypotheses, targets, ids, ids)
    assert valid["reward"] == pytest.approx(np.mean(scores), abs=1e-3)
