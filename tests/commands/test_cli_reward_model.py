"""Train a reward model, then a translation model by it; what cannot work is refused."""

import io
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from cli_fixtures import make_pairs, preprocess, write_pairs
from command_lines import COMMON, FRESH, JOINED, MODEL, USER_DIR, esrl_options
from fairseq.data import Dictionary
from subword_nmt import apply_bpe, learn_bpe
from test_cli_language_model import LM, binarize
from test_cli_train import Malice, largest_difference, load, parameters

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.reward_models.data import collate_rows
from esrl_fairseq.reward_models.task import load_reward_model
from esrl_fairseq.rewards import build_reward, score_rows

SIZES = {"train": 120, "valid": 30, "test": 5}


def plain(text):
    return text.replace("@@ ", "")


def judged_split(number, seed):
    """Sources with a good and a bad output each, as lines; their ratings and preferences.

    A bad output has some words that the source does not ask for; its rating is minus their number.
    The last third is not rated, the first third not compared.
    """
    rng = random.Random(seed)
    lines, ratings, preferences = [], [], []
    for i, (source, output) in enumerate(make_pairs(number, seed)):
        source, words = plain(source), plain(output).split()
        wrong = rng.sample(range(len(words)), rng.randint(1, len(words)))
        bad = [("und" if j in wrong else word) for j, word in enumerate(words)]
        lines += [(source, " ".join(words)), (source, " ".join(bad))]
        ratings += ["0", str(-len(wrong))] if i < number * 2 // 3 else ["nan", "nan"]
        if i >= number // 3:
            preferences.append(f"{2 * i + 1} {2 * i + 2}")
    return lines, ratings, preferences


@pytest.fixture(scope="module")
def judged(commands):
    """Folder of judged outputs: text, bpe, codes, and data with their judgements.

    Its sub-words and dictionary are not those of the translation models in other fixtures.
    """
    folder = commands.folder / "judged"
    for seed, (split, number) in enumerate(SIZES.items()):
        lines, ratings, preferences = judged_split(number, seed + 10)
        write_pairs(folder / "text", split, lines)
        for name, values in (("ratings", ratings), ("preferences", preferences)):
            text = "".join(f"{value}\n" for value in values)
            (folder / f"{split}.{name}").write_text(text, encoding="utf-8")
    text = "".join((folder / "text" / f"train.{side}").read_text("utf-8") for side in ("de", "en"))
    codes = io.StringIO()
    learn_bpe.learn_bpe(io.StringIO(text), codes, 30)
    (folder / "codes").write_text(codes.getvalue(), encoding="utf-8")
    bpe = apply_bpe.BPE(io.StringIO(codes.getvalue()))
    (folder / "bpe").mkdir()
    for path in (folder / "text").iterdir():
        split = [bpe.process_line(line) for line in path.read_text("utf-8").splitlines(True)]
        (folder / "bpe" / path.name).write_text("".join(split), encoding="utf-8")
    preprocess(commands, folder / "bpe", folder / "data", "--joined-dictionary")
    for path in folder.glob("*.[rp]*s"):
        shutil.copy(path, folder / "data")
    return folder


def reward_options(judged, save_dir, *options, data=None):
    """Options of a reward model's training."""
    return [
        *[data or judged / "data", "--user-dir", USER_DIR, COMMON, MODEL, JOINED],
        "--task esrl_reward_model --criterion esrl_preference --lr 5e-3",
        *["--save-dir", save_dir, "--subword-codes", judged / "codes"],
        "--best-checkpoint-metric pair_accuracy --maximize-best-checkpoint-metric",
        *options,
    ]


@pytest.fixture(scope="module")
def trained(commands, judged):
    """Folder and output of a reward model's training."""
    save_dir = commands.folder / "reward-model"
    options = reward_options(judged, save_dir, "--max-epoch 6")
    return save_dir, commands.succeed("fairseq-train", *options)


def test_training_learns_and_logs(trained):
    save_dir, result = trained
    train, valid = result.logged("train"), result.logged("valid")
    names = {"loss", "rating_loss", "preference_loss", "pair_accuracy", "correlation"}
    assert all(names <= line.keys() for line in train + valid)
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert valid[-1]["best_pair_accuracy"] == max(line["pair_accuracy"] for line in valid) > 0.9
    assert valid[-1]["correlation"] > 0.5
    assert (save_dir / "checkpoint_best.pt").exists()


def binarized(judged, split):
    """Rows of a split as the model reads them, from the BPE text and the dictionary's file."""
    dictionary = Dictionary.load(str(judged / "data" / "dict.de.txt"))
    sides = [
        [
            dictionary.encode_line(line, add_if_not_exist=False).long()
            for line in (judged / "bpe" / f"{split}.{side}").read_text("utf-8").splitlines()
        ]
        for side in ("de", "en")
    ]
    return [torch.cat(pair) for pair in zip(*sides)]


def test_validation_is_what_the_reward_says(judged, trained):
    """Accuracy and correlation from the reward of plain text; sigmoid keeps the order."""
    save_dir, result = trained
    lines = [
        (judged / "text" / f"valid.{side}").read_text("utf-8").splitlines() for side in ("de", "en")
    ]
    reward = build_reward("model", model=str(save_dir / "checkpoint_last.pt"))
    rewards = reward(*lines)
    pairs = [map(int, line.split()) for line in (judged / "valid.preferences").open()]
    accuracy = np.mean([rewards[a - 1] > rewards[b - 1] for a, b in pairs])
    last = result.logged("valid")[-1]
    assert accuracy == pytest.approx(last["pair_accuracy"], abs=1e-3)
    ratings = np.array([float(line) for line in (judged / "valid.ratings").open()])
    seen = ~np.isnan(ratings)
    scores = np.log(rewards.astype(float) / (1 - rewards))
    correlation = np.corrcoef(scores[seen], ratings[seen])[0, 1]
    assert correlation == pytest.approx(last["correlation"], abs=2e-3)


def test_the_reward_equals_the_models_own(judged, trained, tmp_path):
    """Alone with its file, from text, in batches of any size; on the binarized rows themselves."""
    file = shutil.copy(trained[0] / "checkpoint_last.pt", tmp_path / "model.pt")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    reward = build_reward("model:0.5+repetition", part_options={"model": {"model": str(file)}})
    assert torch.equal(before, torch.random.get_rng_state())
    assert reward.range == (0, 1.5) and not reward.needs_references
    model = reward.parts[0][0]
    assert model.signature().startswith("model|sigmoid|sha256:")
    assert not any(p.requires_grad for p in model._model.parameters())
    sources, outputs = (
        (judged / "text" / f"valid.{side}").read_text("utf-8").splitlines() for side in ("de", "en")
    )
    network, _ = load_reward_model(str(file))
    rows = binarized(judged, "valid")
    with torch.no_grad():
        direct = torch.cat([network.reward(**collate_rows([row], network.pad)) for row in rows])
    assert direct.std() > 0.1
    np.testing.assert_allclose(model(sources, outputs), direct, rtol=0, atol=1e-6)
    model.batch_size = 3
    np.testing.assert_allclose(model(sources, outputs), direct, rtol=0, atol=1e-6)
    # Rows of several inputs in any order; an empty hypothesis has the lowest reward.
    found = score_rows(model, sources[:3], [outputs[2], "", outputs[0]], None, [2, 1, 0], [0, 1, 2])
    np.testing.assert_allclose(found, [direct[2], 0, direct[0]], rtol=0, atol=1e-6)
    with pytest.raises(EsrlError, match="at most 1024 tokens.* for sample 7 "):
        score_rows(model, sources[:1], ["the " * 1100], None, [0], [7])


def test_resuming_equals_uninterrupted(commands, judged, trained, tmp_path):
    for epochs in (2, 6):
        commands.succeed(
            "fairseq-train", *reward_options(judged, tmp_path, f"--max-epoch {epochs}")
        )
    one, other = (load(folder / "checkpoint_last.pt") for folder in (trained[0], tmp_path))
    assert largest_difference(one["model"], other["model"]) == 0
    assert one["model"]["spread.num_batches_tracked"] > 6
    best = [state["extra_state"]["best"] for state in (one, other)]
    assert best[0] == best[1]


def test_ratings_or_preferences_alone_and_an_encoder_from_mle(commands, judged, tmp_path):
    """The encoder begins as that of a translation model of the same data, or it is refused."""
    folder = tmp_path / "mle"
    commands.succeed(
        *["fairseq-train", judged / "data", MODEL, JOINED, COMMON, "--save-dir", folder],
        "--criterion label_smoothed_cross_entropy --lr 1e-3 --max-update 2",
    )
    for kind, metric in (("ratings", "correlation"), ("preferences", "pair_accuracy")):
        data = shutil.copytree(judged / "data", tmp_path / kind)
        for path in data.glob("*.ratings" if kind == "preferences" else "*.preferences"):
            path.unlink()
        given = [
            *reward_options(judged, tmp_path / f"{kind}-model", data=data),
            *["--finetune-from-model", folder / "checkpoint_last.pt", "--lr 1e-9 --max-update 1"],
            f"--best-checkpoint-metric {metric}",
        ]
        if kind == "preferences":  # the architecture is that of the translation model
            given = [word for word in given if word not in (MODEL, JOINED)]
            other = sentence(commands.run("fairseq-train", *given, "--encoder-attention-heads 4"))
            assert other.startswith("--encoder-attention-heads is 4 here but 2 in ")
        result = commands.succeed("fairseq-train", *given, "--decoder-attention-heads 4")
        (line,) = result.logged("valid")
        assert metric in line and len({"correlation", "pair_accuracy"} & line.keys()) == 1
        given, found = parameters(folder / "checkpoint_last.pt"), None
        found = parameters(tmp_path / f"{kind}-model" / "checkpoint_last.pt")
        encoder = [name for name in found if name.startswith("encoder.")]
        assert max((given[name] - found[name]).abs().max() for name in encoder) < 1e-6
        assert {name for name in found if name not in given} >= {"head.weight", "head.bias"}


def test_a_language_model_by_a_reward_model(commands, judged, trained, tmp_path):
    """RLHF: what follows a prompt is judged beside it, in other sub-words; one sample a prompt."""
    for split in ("train", "valid", "test"):
        shutil.copy(judged / "text" / f"{split}.en", tmp_path / split)
    data = binarize(commands, tmp_path, tmp_path / "data")
    file = trained[0] / "checkpoint_best.pt"
    result = commands.succeed(
        *["fairseq-train", data, "--user-dir", USER_DIR, "--save-dir", tmp_path / "rl", COMMON, LM],
        "--task esrl_language_modeling --criterion esrl --lr 1e-3 --max-update 3 --check-start off",
        "--prompt-tokens 1 --num-samples 1 --sample-max-len-b 8 --valid-beam 0",
        *["--reward model --reward-model", file],
    )
    training, valid = result.logged("train_inner"), result.logged("valid")
    assert len(training) == 3 and all(line["samples"] == 1 for line in training)
    assert all(0 < line["reward"] < 1 and line["reward_std"] > 0 for line in training)
    assert all(0 < line["reward"] < 1 for line in valid) and valid


@pytest.mark.long
def test_the_encoder_of_a_masked_language_model(commands, judged, tmp_path):
    """As docs/rewards.md has it; the model is then a reward like any other."""
    roberta = (
        "--arch roberta --encoder-layers 1 --encoder-embed-dim 32 --encoder-ffn-embed-dim 32 "
        "--encoder-attention-heads 2"
    )
    dictionary = judged / "data" / "dict.de.txt"
    commands.succeed(
        *["fairseq-preprocess", "--only-source", "--trainpref", judged / "bpe" / "train.de"],
        *["--validpref", judged / "bpe" / "valid.de", "--srcdict", dictionary],
        *["--destdir", tmp_path / "mono"],
    )
    commands.succeed(
        *["fairseq-train", tmp_path / "mono", "--task masked_lm --criterion masked_lm", roberta],
        *["--tokens-per-sample 64 --max-positions 64 --lr 1e-3 --max-update 2", COMMON],
        *["--save-dir", tmp_path / "mlm"],
    )
    data = shutil.copytree(judged / "data", tmp_path / "data")
    for language in ("de", "en"):
        with (data / f"dict.{language}.txt").open("a") as f:
            f.write("<mask> 1\n")
    options = [data, "--user-dir", USER_DIR, COMMON, roberta, "--max-positions 64"]
    result = commands.succeed(
        *["fairseq-train", *options, "--task esrl_reward_model --criterion esrl_preference"],
        *["--finetune-from-model", tmp_path / "mlm" / "checkpoint_last.pt", "--lr 1e-9"],
        *["--max-update 1 --save-dir", tmp_path / "rm", "--subword-codes", judged / "codes"],
    )
    assert "pair_accuracy" in result.logged("valid")[0]
    given = parameters(tmp_path / "mlm" / "checkpoint_last.pt")
    found = parameters(tmp_path / "rm" / "checkpoint_last.pt")
    encoder = [name for name in found if name.startswith("encoder.")]
    for name in encoder:
        before = given[name.replace("encoder.", "encoder.sentence_encoder.", 1)]
        assert (before - found[name]).abs().max() < 1e-6
    assert len(encoder) > 10
    reward = build_reward("model", model=str(tmp_path / "rm" / "checkpoint_last.pt"))
    assert len(set(reward(["ein haus", "ein baum"], ["a house", "a tree"]))) == 2
    with pytest.raises(EsrlError, match="reads at most 6[0-9] tokens, but source and hypothesis"):
        reward(["ein haus"], ["a house " * 40])


def test_esrl_by_a_reward_model(commands, corpus, mle, trained, tmp_path):
    """Other sub-words and another dictionary than the policy's; alone and in a sum."""
    file = trained[0] / "checkpoint_best.pt"
    runs = []
    for number, reward in enumerate(("model", "model:0.7+bleu:0.3")):
        save_dir = tmp_path / str(number)
        result = commands.succeed(
            *["fairseq-train", *esrl_options(corpus.data, save_dir), MODEL, JOINED, FRESH],
            *["--restore-file", mle, "--max-update 2 --capability reward"],
            *["--reward", reward, "--reward-model", file],
        )
        line = result.logged("train_inner")[-1]
        assert 0 < line["reward"] < 1 and line["reward_std"] > 0
        runs.append(result.logged("valid")[-1])
        assert largest_difference(parameters(mle), parameters(save_dir / "checkpoint_last.pt")) > 0
    assert runs[0]["reward"] != runs[1]["reward"]


def sentence(result):
    """What a refused command said."""
    assert result.returncode not in (0, -9)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "reward, file, words",
    [
        ("model", None, "'model' needs a reward model: give its checkpoint with --reward-model"),
        (
            "model",
            "gone.pt",
            "gone.pt does not exist: give a checkpoint of the task esrl_reward_model",
        ),
        ("model", "MLE", "is no reward model but the checkpoint of a model for the task transla"),
        ("model", "text.pt", "text.pt is a text file: give a checkpoint"),
        ("bleu", "MLE", " is for one reward that needs a model, but --reward bleu has none"),
    ],
)
def test_what_is_no_reward_model(reward, file, words, commands, corpus, mle, tmp_path):
    (tmp_path / "text.pt").write_text("text")
    options = ["--reward-model", mle if file == "MLE" else tmp_path / file] if file else []
    result = commands.run(
        *["fairseq-train", *esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED],
        *["--reward", reward, *options],
    )
    assert words in sentence(result)


def test_reward_models_are_loaded_safely(trained, tmp_path):
    state = load(trained[0] / "checkpoint_last.pt")
    state["extra_state"]["malice"] = Malice(str(tmp_path / "made"))
    torch.save(state, tmp_path / "bad.pt", pickle_module=pickle)
    with pytest.raises(EsrlError, match="bad.pt wants to run .*nothing of it was executed"):
        build_reward("model", model=str(tmp_path / "bad.pt"))
    assert not (tmp_path / "made").exists()


def no_judgements(data, judged):
    for path in data.glob("*.[rp]*s"):
        path.unlink()
    return []


def a_rating_too_few(data, judged):
    path = data / "train.ratings"
    path.write_text("".join(path.read_text().splitlines(True)[1:]))
    return []


def equal_ratings(data, judged):
    (data / "train.ratings").write_text("1\n" * 2 * SIZES["train"])
    return []


def no_codes(data, judged):
    return ["--subword-codes", ""]


def other_codes(data, judged):
    lines = (judged / "codes").read_text("utf-8").splitlines(True)
    (data / "codes").write_text("".join(lines[:10]), encoding="utf-8")
    return ["--subword-codes", data / "codes"]


def sentencepiece(data, judged):
    for side in ("de", "en"):
        words = (data / f"dict.{side}.txt").read_text("utf-8").splitlines()
        words = [f"▁{word.replace('@@ ', ' ')}" if "@@ " in word else word for word in words]
        (data / f"dict.{side}.txt").write_text("\n".join([*words, ""]), encoding="utf-8")
    return []


def gone_codes(data, judged):
    return ["--subword-codes", data / "gone"]


def two_dictionaries(data, judged):
    lines = (data / "dict.en.txt").read_text("utf-8").splitlines(True)
    (data / "dict.en.txt").write_text("".join(lines[::-1]), encoding="utf-8")
    return []


def empty_output(data, judged):
    dictionary = ["--srcdict", judged / "data" / "dict.de.txt", "--joined-dictionary"]
    lines = (judged / "bpe" / "train.en").read_text("utf-8").splitlines(True)
    text = shutil.copytree(judged / "bpe", data / "text")
    (text / "train.en").write_text("".join([*lines[:4], "\n", *lines[5:]]), encoding="utf-8")
    return ["PREPROCESS", text, *dictionary]


@pytest.mark.parametrize(
    "break_data, words",
    [
        (no_judgements, "there are no judgements of "),
        (a_rating_too_few, "train.ratings has 239 ratings, but the data have 240 lines"),
        (equal_ratings, "are all equal"),
        (no_codes, "give the codes that they were made with, --subword-codes"),
        (other_codes, "are not the codes of the data"),
        (gone_codes, "cannot be read"),
        (sentencepiece, "sub-words made by SentencePiece (such as '▁"),
        (two_dictionaries, "with --joined-dictionary"),
        (empty_output, "train.en, line 5 is empty: remove"),
    ],
)
def test_data_that_cannot_work(break_data, words, commands, judged, tmp_path):
    data = shutil.copytree(judged / "data", tmp_path / "data")
    options = break_data(data, judged)
    if options[:1] == ["PREPROCESS"]:
        preprocess(commands, options[1], tmp_path / "other", *options[2:])
        for path in (tmp_path / "other").glob("train.*"):
            shutil.copy(path, data)
        options = []
    result = commands.run(
        "fairseq-train", *reward_options(judged, tmp_path / "run", *options, data=data)
    )
    assert words in sentence(result)


def test_other_options_that_cannot_work(commands, judged, tmp_path):
    result = commands.run("fairseq-train", *reward_options(judged, tmp_path, "--eval-bleu"))
    assert "a reward model writes no text" in sentence(result)
