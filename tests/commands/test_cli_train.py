"""The commands of the README's road and what has to keep working beside it."""

import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from cli_fixtures import preprocess
from command_lines import FRESH, JOINED, MODEL, USER_DIR, esrl_options
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from esrl_fairseq.sampling.options import elimination_ratio
from esrl_fairseq.state.capability import restored

LOGGED = (
    "reward reward_std baseline loss loss_mrt loss_reinforce share_mrt samples samples_hist "
    "eliminated temperature capability entropy unique empty truncated length_ratio sampled_tokens "
    "seconds_stage_one seconds_reward seconds_stage_two peak_gb"
).split()


def parameters(checkpoint):
    """The model's parameters, loaded with torch's safe loader."""
    return load(checkpoint)["model"]


def load(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def largest_difference(one, other):
    """Of two models' parameters."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def store(save_dir, shard=0):
    """The records of the capability store at the end of a run."""
    state = load(save_dir / "checkpoint_last.pt")["extra_state"]["EsrlTranslationTask"]["rl"]
    return restored(state["stores"][shard], [str(save_dir)]).records


@pytest.fixture(scope="module")
def tuned(commands, corpus, mle):
    """The main road: fine-tune the MLE checkpoint for two epochs, in processes of their own."""
    save_dir = commands.folder / "tuned"
    result = commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, save_dir), MODEL, JOINED, FRESH],
        *["--restore-file", mle, "--max-epoch 2 --num-samples 6 --elimination-ratio 0.5"],
        "--best-checkpoint-metric reward --maximize-best-checkpoint-metric",
        fresh=True,
    )
    return save_dir, result


def test_main_road_logs_and_saves(tuned, mle):
    save_dir, result = tuned
    first, second = result.logged("train")
    assert set(LOGGED) <= second.keys()
    # At first nothing is known, and perhaps no input has equal samples only.
    assert set(LOGGED) - {"capability", "loss_reinforce"} <= first.keys()
    assert first["samples"] == 6 and first["eliminated"] == 0
    assert second["samples"] < 5 and 0.4 < second["eliminated"] < 0.6
    assert all({"loss", "reward", "length_ratio"} <= line.keys() for line in result.logged("valid"))
    assert result.logged("valid")[1]["best_reward"] == max(
        line["reward"] for line in result.logged("valid")
    )
    assert largest_difference(parameters(mle), parameters(save_dir / "checkpoint_last.pt")) > 0
    assert (store(save_dir)["epoch"] == 2).all()


def test_generate_and_interactive_agree(commands, corpus, tuned):
    save_dir, _ = tuned
    options = [corpus.data, "--user-dir", USER_DIR, "--path", save_dir / "checkpoint_best.pt"]
    # By default fairseq leaves out a last batch that is no multiple of 8.
    options.append("--post-process subword_nmt --beam 4 --required-batch-size-multiple 1")
    generated = commands.succeed("fairseq-generate", *options, fresh=True)
    assert re.search(r"Generate test with beam=4: BLEU4 = \d", generated.stdout)
    hypotheses = generated.lines("D-")
    assert sorted(hypotheses) == list(range(20)) and not any("@@" in h for h in hypotheses.values())

    source = (corpus.text / "test.de").read_text(encoding="utf-8")
    typed = commands.succeed("fairseq-interactive", *options, stdin=source, fresh=True)
    assert typed.lines("D-") == hypotheses


class Malice:
    """Unpickles by making a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_checkpoints_are_loaded_safely(commands, corpus, mle, tmp_path):
    state = load(mle)
    state["extra_state"]["malice"] = Malice(str(tmp_path / "made"))
    torch.save(state, tmp_path / "bad.pt", pickle_module=pickle)
    result = commands.run(
        "fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", tmp_path / "bad.pt"
    )
    assert result.returncode != 0 and "nothing of it was executed" in result.stderr
    assert not (tmp_path / "made").exists()


def test_checkpoints_with_a_number_as_elimination_ratio(tuned, tmp_path):
    """Versions without ``auto`` saved such a configuration; models load with it as before."""
    state = load(tuned[0] / "checkpoint_best.pt")
    task = state["cfg"]["task"]
    assert task["elimination_ratio"] == "0.5"
    task["elimination_ratio"] = 0.25
    torch.save(state, tmp_path / "earlier.pt")
    _, _, task = load_model_ensemble_and_task([str(tmp_path / "earlier.pt")])
    assert elimination_ratio(task.options) == 0.25


def short_run(commands, corpus, mle, save_dir, *options, **keywords):
    """A few updates from the MLE checkpoint."""
    return commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, save_dir, **keywords), MODEL, JOINED, FRESH],
        *["--restore-file", mle, "--max-update 3", *options],
    )


def test_stock_task_gets_a_sampler(commands, corpus, mle, tmp_path):
    result = short_run(commands, corpus, mle, tmp_path, task="translation")
    assert result.stdout.count("attached a sampler with default options (8 samples an input") == 1
    assert result.logged("train_inner")[-1]["samples"] == 8
    assert result.logged("valid")[0]["reward"] > 0


def test_objectives_and_mle_weight(commands, corpus, mle, tmp_path):
    runs = {}
    for options in ("fused", "mrt", "reinforce", "reinforce --mle-weight 0.3"):
        save_dir = tmp_path / options.replace(" ", "")
        result = short_run(commands, corpus, mle, save_dir, f"--objective {options}")
        log = result.logged("train_inner")
        runs[options] = parameters(save_dir / "checkpoint_last.pt")
        assert ("nll_references" in log[0]) == ("--mle-weight" in options)
        if "mrt" in options:
            assert all(line["share_mrt"] == 1 for line in log)
        if "reinforce" in options:
            assert all(line["share_mrt"] == 0 for line in log)
    names = list(runs)
    for i, name in enumerate(names[1:]):
        assert largest_difference(runs[names[i]], runs[name]) > 0 or name == "mrt"


@pytest.mark.long
def test_standard_sampling(commands, corpus, mle, tmp_path):
    """With and without cache, the updates of two-stage sampling up to rounding."""
    runs, logs = [], []
    for sampling in ("two-stage", "standard", "standard-nocache"):
        result = short_run(
            *[commands, corpus, mle, tmp_path / sampling, "--sampling", sampling],
            "--mle-weight 0.3",
        )
        runs.append(parameters(tmp_path / sampling / "checkpoint_last.pt"))
        logs.append(result.logged("train_inner"))
    for model, log in zip(runs[1:], logs[1:]):
        assert largest_difference(runs[0], model) < 1e-5
        for line, expected in zip(log, logs[0]):
            same = LOGGED[:-4] + ["nll_references"]  # but memory and time
            assert [line.get(k) for k in same] == [expected.get(k) for k in same]
            assert line["seconds_stage_two"] < line["seconds_stage_one"]
    assert largest_difference(parameters(mle), runs[0]) > 0


@pytest.mark.parametrize(
    "more",
    [
        "--objective ppo --kl-weight 0.1 --kl-reference MLE",
        pytest.param("", marks=pytest.mark.long),
        pytest.param("--sampling standard", marks=pytest.mark.long),
    ],
)
def test_half_precision(more, commands, corpus, mle, tmp_path):
    """It takes the road of full precision, up to its rounding; fp16 needs a GPU."""
    runs, rewards = [], []
    for precision in ("", "--memory-efficient-bf16"):
        save_dir = tmp_path / f"run{precision}"
        options = f"--max-update 4 {more} {precision}".replace("MLE", str(mle))
        result = short_run(commands, corpus, mle, save_dir, options)
        log = result.logged("train_inner")
        rewards.append([line["reward"] for line in log])
        runs.append(parameters(save_dir / "checkpoint_last.pt"))
    assert np.allclose(*rewards, atol=0.05)
    start = parameters(mle)
    moved = [{k: v.float() - start[k] for k, v in run.items()} for run in runs]
    for name, full in moved[0].items():
        if full.norm() > 0.05 * start[name].norm():
            assert torch.cosine_similarity(full.flatten(), moved[1][name].flatten(), 0) > 0.5


@pytest.mark.long
def test_other_baselines_and_controls(commands, corpus, mle, tmp_path):
    """Leave-one-out, every reward baseline and every control train; their log lines say so."""
    runs, logs, words = {}, {}, {}
    for number, options in enumerate(
        (
            "--objective rloo --min-samples 2",
            "--objective reinforce --reward-baseline ema --baseline-decay 0.5",
            "--objective reinforce --reward-baseline window --baseline-window 1",
            "--objective reinforce --reward-baseline batch",
            "--objective reinforce --reward-baseline none",
            "--objective reinforce --reward-control constant",
            "--reward-control shuffled --capability-noise permuted",
        )
    ):
        result = short_run(commands, corpus, mle, tmp_path / str(number), options)
        runs[options] = parameters(tmp_path / str(number) / "checkpoint_last.pt")
        logs[options] = result.logged("train_inner")
        words[options] = result.stdout + result.stderr
    rloo, ema, window, batch, none, constant, shuffled = runs
    assert all("loss_rloo" in line and "loss_reinforce" not in line for line in logs[rloo])
    assert all(line["share_mrt"] == 0 for line in logs[rloo])
    for options in (ema, window, batch, none, constant):
        assert all("loss_reinforce" in line and "loss_rloo" not in line for line in logs[options])
    for i, options in enumerate(runs):
        for other in list(runs)[:i]:
            same = largest_difference(runs[options], runs[other]) == 0
            assert not same, (options, other)
    # The first update's samples are the same in all; the baseline is their mean, until there is
    # something in the past.
    baselines = {options: [line["baseline"] for line in logs[options]] for options in runs}
    for options in (ema, window, batch):
        assert baselines[options][0] == pytest.approx(logs[none][0]["reward"], abs=1e-3)
        assert len(set(baselines[options])) > 1
    assert baselines[window][2] == pytest.approx(logs[window][1]["reward"], abs=1e-3)
    own = [line["reward"] for line in logs[ema]]
    assert baselines[ema][2] == pytest.approx((0.5 * own[0] + own[1]) / 1.5, abs=1e-3)
    for line in logs[batch]:
        assert line["baseline"] == pytest.approx(line["reward"], abs=1e-3)
    assert baselines[none] == [0, 0, 0] and baselines[constant] == [1, 1, 1]
    assert all(0 < line["reward"] < 1 for line in logs[constant])
    assert largest_difference(parameters(mle), runs[constant]) == 0
    assert "--reward-control constant" in words[constant]
    assert "--reward-control shuffled" in words[shuffled]
    assert "--capability-noise permuted" in words[shuffled]
    assert "without effect in this run: --capability-noise permuted (for" in words[shuffled]
    assert not any("without effect" in words[options] for options in list(runs)[:-1])
    assert not any("-control" in words[options] for options in (rloo, ema, window, batch, none))


def test_shards_with_stock_options_of_the_task(commands, corpus, mle, tmp_path):
    """Two shards in turn, sources cut to 4 words, BLEU in validation as stock fairseq does it."""
    lines = {
        side: (corpus.text / f"train.{side}").read_text(encoding="utf-8").splitlines(True)
        for side in ("de", "en")
    }
    shards = []
    for number in range(2):
        text = tmp_path / f"text{number}"
        shutil.copytree(corpus.text, text)
        for side, kept in lines.items():
            half = "".join(kept[number * 120 :][:120])  # 120 and 80 lines
            (text / f"train.{side}").write_text(half, encoding="utf-8")
        preprocess(commands, text, tmp_path / f"data{number}", dictionary=corpus.dictionary)
        shards.append(str(tmp_path / f"data{number}"))
    result = commands.succeed(
        *["fairseq-train", *esrl_options(":".join(shards), tmp_path / "esrl"), MODEL, JOINED],
        *[FRESH, "--restore-file", mle, "--max-epoch 4"],
        "--truncate-source --max-source-positions 5",
        *["--eval-bleu --eval-bleu-remove-bpe --eval-bleu-args", '{"beam": 2}'],
    )
    epochs = result.logged("train")
    assert [line["samples"] == 8 for line in epochs] == [True, True, False, False]
    assert all(line["samples"] < 7 for line in epochs[2:])
    assert all(line["bleu"] > 0 for line in result.logged("valid"))
    for number, size in enumerate((120, 80)):
        records = store(tmp_path / "esrl", number)
        assert len(records) == size and (records["epoch"] == 3 + number).all()


def test_update_freq_2_equals_a_doubled_batch(commands, corpus, tuned, tmp_path):
    """Both go on from a checkpoint, so the queue is filled and dynamic sampling is active."""
    save_dir, _ = tuned
    runs = []
    for number, (size, freq) in enumerate(((20, 1), (10, 2))):
        result = commands.succeed(
            *["fairseq-train", *esrl_options(corpus.data, tmp_path / str(number)), MODEL, JOINED],
            *["--restore-file", save_dir / "checkpoint1.pt"],
            f"--batch-size {size} --update-freq {freq} --curriculum 9 --max-epoch 2",
            "--num-samples 6 --elimination-ratio 0.5",
        )
        log = result.logged("train_inner")
        assert len(log) == 10 and all(line["samples"] < 6 for line in log[1:])
        runs.append((parameters(tmp_path / str(number) / "checkpoint_last.pt"), log))
    (one, one_log), (other, other_log) = runs
    assert largest_difference(one, other) < 1e-5
    for name in ("loss", "reward", "baseline", "samples", "share_mrt", "entropy", "capability"):
        for a, b in zip(one_log, other_log):
            assert a[name] == pytest.approx(b[name], abs=2e-3), name


@pytest.fixture(scope="module")
def separate(commands, corpus):
    """The corpus with a dictionary for each side."""
    data = preprocess(commands, corpus.text, commands.folder / "separate")
    assert (data / "dict.de.txt").read_text() != (data / "dict.en.txt").read_text()
    return data


LSTM = (
    "--arch lstm --encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-hidden-size 16 "
    "--decoder-hidden-size 16 --decoder-out-embed-dim 16"
)
LIGHTCONV = (
    "--arch lightconv --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 "
    "--decoder-embed-dim 16 --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16 "
    "--encoder-attention-heads 2 --decoder-attention-heads 2 --encoder-kernel-size-list [3] "
    "--decoder-kernel-size-list [3] --encoder-conv-type lightweight "
    "--decoder-conv-type lightweight"
)


@pytest.mark.parametrize(
    "model",
    [*(pytest.param(x, marks=pytest.mark.long) for x in ("lstm", "lightconv")), "transformer"],
)
def test_other_models_and_separate_dictionaries(model, commands, separate, tmp_path):
    options = {"lstm": LSTM, "lightconv": LIGHTCONV, "transformer": MODEL}[model]
    result = commands.succeed(
        *["fairseq-train", *esrl_options(separate, tmp_path), options],
        "--max-update 12 --mle-weight 1 --lr 5e-4 --elimination-ratio 0.5",
    )
    log = result.logged("train_inner")
    assert len(log) == 12 and log[0]["samples"] == 8 and log[-1]["samples"] < 8
    assert log[-1]["nll_references"] < log[0]["nll_references"]
    if model != "transformer":
        generated = commands.succeed(
            *["fairseq-generate", separate, "--user-dir", USER_DIR],
            *["--path", tmp_path / "checkpoint_last.pt", "--required-batch-size-multiple 1"],
        )
        assert len(generated.lines("H-")) == 20


HYDRA = """
common: {{user_dir: {user_dir}, seed: 1, log_format: json, log_interval: 1, no_progress_bar: true}}
task:
  _name: esrl_translation
  data: {data}
  source_lang: de
  target_lang: en
  num_samples: 4
  capability: entropy
  elimination_ratio: 0.3
criterion: {{_name: esrl, objective: fused, mle_weight: 0.1}}
model:
  _name: transformer
  share_all_embeddings: true
  dropout: 0.1
  encoder: {{layers: 1, embed_dim: 32, ffn_embed_dim: 32, attention_heads: 2}}
  decoder: {{layers: 1, embed_dim: 32, ffn_embed_dim: 32, attention_heads: 2}}
dataset: {{batch_size: 20, required_batch_size_multiple: 1, num_workers: 0}}
optimization: {{lr: [2e-4], max_update: 12, clip_norm: 1.0}}
optimizer: adam
lr_scheduler: fixed
checkpoint:
  save_dir: {save_dir}
  finetune_from_model: {mle}
  best_checkpoint_metric: reward
  maximize_best_checkpoint_metric: true
hydra: {{run: {{dir: {folder}}}}}
"""


def test_hydra_train_with_a_config_file(commands, corpus, mle, tmp_path):
    """``fairseq-hydra-train --config-dir FOLDER --config-name NAME``, no other option needed.

    ``common.user_dir`` is the user dir, and the names in ``task`` and ``criterion`` are the
    options' names with ``_`` for ``-``.
    """
    paths = {"user_dir": USER_DIR, "data": corpus.data, "mle": mle, "folder": tmp_path}
    (tmp_path / "esrl.yaml").write_text(HYDRA.format(save_dir=tmp_path / "run", **paths))
    result = commands.succeed(
        "fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "esrl", fresh=True
    )
    text = result.stdout + result.stderr + "".join(p.read_text() for p in tmp_path.glob("*.log"))
    assert '"samples": "4"' in text and "nll_references" in text
    assert store(tmp_path / "run")["samples"].min() >= 1
    tuned = parameters(tmp_path / "run" / "checkpoint_last.pt")
    assert largest_difference(parameters(mle), tuned) > 0


EVERY_RANK_SAVES = """
import sys
sys.path.insert(0, {parent!r})
import esrl_fairseq
from fairseq.trainer import Trainer
Trainer.should_save_checkpoint_on_current_rank = property(lambda self: True)
"""


def test_two_ranks(commands, corpus, mle, tmp_path):
    """Two gloo ranks on CPU; a user dir around ours lets the second one save its model too."""
    user_dir = tmp_path / "every_rank_saves"
    user_dir.mkdir()
    (user_dir / "__init__.py").write_text(EVERY_RANK_SAVES.format(parent=str(USER_DIR.parent)))
    (tmp_path / "rank1").mkdir()
    commands.two_ranks(
        lambda rank: [
            *["fairseq-train", *esrl_options(corpus.data, tmp_path / f"rank{rank}"), MODEL, JOINED],
            *[FRESH, "--user-dir", user_dir, "--restore-file", mle, "--max-epoch 2"],
            *["--batch-size 10 --capability-store", tmp_path / f"store{rank}"],
        ]
    )
    one, other = (load(tmp_path / f"rank{rank}" / "checkpoint_last.pt") for rank in range(2))
    assert one["optimizer_history"][-1]["num_updates"] == 20
    assert largest_difference(one["model"], other["model"]) == 0
    rl, rl_other = (ckpt["extra_state"]["EsrlTranslationTask"]["rl"] for ckpt in (one, other))
    queues = [state["baseline"]["state"]["rewards"] for state in (rl, rl_other)]
    assert torch.equal(*queues) and len(queues[0]) == 1000
    assert torch.equal(rl["stores"][0]["packed"], rl_other["stores"][0]["packed"])
    assert (store(tmp_path / "rank0")["epoch"] == 2).all()
    assert (tmp_path / "store0").exists() and not (tmp_path / "store1").exists()
