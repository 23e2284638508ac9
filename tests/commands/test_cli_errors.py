"""Bad input: one clear sentence, exit code not 0, no traceback, nothing overwritten."""

import shutil

import pytest
import torch
from cli_fixtures import make_pairs, preprocess, write_pairs
from command_lines import FRESH, JOINED, MODEL, esrl_options

import esrl_fairseq  # noqa: F401 (torch's safe loader then knows what fairseq's checkpoints hold)


@pytest.fixture(scope="module")
def earlier(commands, corpus, mle):
    """Folder of an earlier run: checkpoints and a store."""
    save_dir = commands.folder / "earlier"
    commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, save_dir), MODEL, JOINED, FRESH],
        *["--restore-file", mle, "--max-update 2"],
    )
    return save_dir


@pytest.fixture
def folder(earlier, tmp_path):
    """A copy of it."""
    return shutil.copytree(earlier, tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(commands, folder, *options):
    """Run the command, check that it was refused properly, and return the sentence."""
    before = contents(folder)
    result = commands.run("fairseq-train", *options)
    assert result.returncode not in (0, -9)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    assert contents(folder) == before
    sentence = result.stderr.splitlines()[-1]
    assert "Warning" not in sentence and len(sentence) > 30
    return sentence


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--reward", "nonsense", ["'nonsense'", "bleu"]),
        ("--reward", "length:0.5+BLUE:0.5", ["'BLUE' (did you mean 'bleu'?)"]),
        ("--reward-post-process", "sentencepiece", ["not join", "the dictionary", "subword_nmt"]),
        ("--reward-post-process", "@@", ["'@@' does not join", "process subword_nmt"]),
        ("--reward", "bleu:0.5+python:nowhere.f", ["'python:nowhere.f'", "no module 'nowhere'"]),
        ("--elimination-ratio", 1.5, ["--elimination-ratio is 1.5", "from 0 to 1"]),
        ("--elimination-ratio", -0.1, ["--elimination-ratio is -0.1", "from 0 to 1"]),
        ("--elimination-ratio", "nan", ["--elimination-ratio is nan", "from 0 to 1"]),
        ("--elimination-ratio", "much", ["--elimination-ratio is much", "auto or a number"]),
        ("--min-samples", 0, ["auto never skips an input", "--elimination-ratio", "such as 0.3"]),
        ("--num-samples", 0, ["--num-samples is 0", "from 1"]),
        ("--min-samples", 9, ["--min-samples is 9", "from 0 to 8"]),
        ("--sample-temperature", 0, ["--sample-temperature is 0", "positive"]),
        ("--risk-alpha", 0, ["--risk-alpha is 0", "positive"]),
        ("--reward-tokenize", "nonsense", ["'nonsense'", "13a"]),
        ("--baseline-decay", 1, ["--baseline-decay is 1.0", "below 1"]),
        ("--kl-weight", -1, ["--kl-weight is -1.0", "0 or more"]),
        ("--kl-weight", 0.1, ["--kl-weight is 0.1", "--kl-reference", "--finetune-from-model"]),
        ("--kl-target", 4, ["--kl-target adapts --kl-weight, which is 0", "positive"]),
        ("--objective rloo --num-samples", 1, ["rloo", "--num-samples is 1", "at least 2"]),
    ],
)
def test_options(option, value, words, commands, corpus, folder):
    sentence = refuse(
        commands, folder, *esrl_options(corpus.data, folder), MODEL, JOINED, option, value
    )
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("file", "words"), [("gone.pt", "does not exist"), ("dict.pt", "is a text file")]
)
def test_frozen_model(file, words, commands, corpus, folder, tmp_path):
    """A file that is not there, and one that is no checkpoint; before the first batch."""
    shutil.copy(corpus.dictionary, tmp_path / "dict.pt")
    options = [*esrl_options(corpus.data, folder), MODEL, JOINED, "--max-update 4"]
    sentence = refuse(commands, folder, *options, "--kl-weight 0.1 --kl-reference", tmp_path / file)
    assert sentence.startswith(f"--kl-reference {tmp_path / file} {words}: give a checkpoint")


def data_of(commands, corpus, tmp_path, pairs, split="train", dictionary=None):
    """Other data with the same dictionary."""
    text = tmp_path / "text"
    shutil.copytree(corpus.text, text)
    write_pairs(text, split, pairs)
    return preprocess(commands, text, tmp_path / "data", dictionary=dictionary or corpus.dictionary)


def start_anew(data, folder, mle, tmp_path):
    """Options of a new run that saves where an earlier one did, with a store elsewhere."""
    options = [*esrl_options(data, folder), MODEL, JOINED, FRESH, "--restore-file", mle]
    return [*options, "--capability-store", tmp_path / "store"]


@pytest.mark.parametrize(
    "split, side, line, sentence",
    [
        ("train", 0, "", "train.de, line 7 is empty: remove"),
        ("train", 1, "", "train.en, line 7 is empty, but --reward bleu needs references"),
        ("valid", 1, "", "valid.en, line 7 is empty, but --reward bleu needs references"),
        ("valid", 1, "@@ @@", "valid.en, line 7 has no text, only '@@ @@', but --reward bleu"),
    ],
)
def test_lines_without_text(split, side, line, sentence, commands, corpus, mle, folder, tmp_path):
    """Refused before anything is trained or saved, in the valid set, too."""
    pairs = [list(pair) for pair in make_pairs(40, seed=1)]
    pairs[6][side] = line
    dictionary = corpus.dictionary
    if line:  # to make the marks known, a lone one
        dictionary = tmp_path / "dict.txt"
        dictionary.write_text(corpus.dictionary.read_text() + "@@ 1\n")
    data = data_of(commands, corpus, tmp_path, pairs, split, dictionary)
    assert refuse(commands, folder, *start_anew(data, folder, mle, tmp_path)).startswith(sentence)


def test_a_valid_line_that_is_too_long(commands, corpus, folder):
    options = [*esrl_options(corpus.data, folder), MODEL, JOINED]
    options.append("--max-source-positions 5 --max-update 4 --accept-other-batches")
    sentence = refuse(commands, folder, *options)
    assert sentence.startswith("valid, line ") and "is too long (" in sentence


def test_no_target_side(commands, corpus, mle, folder, tmp_path):
    data = shutil.copytree(corpus.data, tmp_path / "data")
    for ending in ("bin", "idx"):
        (data / f"train.de-en.en.{ending}").unlink()
    sentence = refuse(commands, folder, *start_anew(data, folder, mle, tmp_path))
    assert "has no target side" in sentence and "references" in sentence


def test_resuming_with_a_damaged_baseline(commands, corpus, folder):
    path = folder / "checkpoint_last.pt"
    state = torch.load(path, weights_only=True)
    rl = state["extra_state"]["EsrlTranslationTask"]["rl"]
    rl["baseline"]["state"] = {"median": torch.ones(3)}
    torch.save(state, path)
    options = esrl_options(corpus.data, folder)
    sentence = refuse(commands, folder, *options, MODEL, JOINED)
    assert "reward baseline cannot be read" in sentence and "median" in sentence


def test_resuming_with_other_data(commands, corpus, mle, folder, tmp_path):
    """Other pairs; and as many, of the same lengths, one word being another."""
    pairs = make_pairs(200, seed=1)
    changed = [list(pair) for pair in pairs]
    words = changed[77][1].split()
    changed[77][1] = " ".join([words[0].replace("@", "") and "cat", *words[1:]])
    assert words[0] not in ("cat",) and len(words) == len(changed[77][1].split())
    for number, other in enumerate((make_pairs(200, seed=9), changed)):
        data = data_of(commands, corpus, tmp_path / str(number), other)
        sentence = refuse(commands, folder, *esrl_options(data, folder), MODEL, JOINED)
        assert "checkpoint's capability store belongs to other training data" in sentence
        assert "as many samples, but of other tokens" in sentence


@pytest.mark.parametrize("place", ["file", "file/in/it", "/proc/nowhere"])
def test_a_store_in_a_wrong_place(place, commands, corpus, mle, folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    options = [*esrl_options(corpus.data, folder), MODEL, JOINED]
    sentence = refuse(commands, folder, *options, "--capability-store", tmp_path / place)
    assert f"store cannot be kept in {tmp_path / place} (" in sentence


BROKEN = """
calls = 0

def after(results):
    def f(sources, hypotheses, references):
        global calls
        calls += 1
        return [0.5 * (len(h) % 2) for h in hypotheses] if calls < 3 else results(hypotheses)
    return f

def fail(hypotheses):
    raise ValueError("no server answers")

raises = after(fail)
nan = after(lambda hypotheses: [float("nan")] * len(hypotheses))
short = after(lambda hypotheses: [0.5] * (len(hypotheses) - 1))
"""


@pytest.mark.parametrize(
    "function, words",
    [
        ("raises", ["raised ValueError: no server answers", "train, line"]),
        ("nan", ["returned nan", "train, line", "must be a finite number"]),
        ("short", ["returned", "instead of"]),
    ],
)
def test_rewards_that_break_in_training(function, words, commands, corpus, folder, monkeypatch):
    """In its third update a run ends with the sentence; the last state is kept, nothing else."""
    (commands.folder / "broken_rewards.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(commands.folder))
    before = contents(folder)
    options = [*esrl_options(corpus.data, folder), MODEL, JOINED, "--max-update 9"]
    reward = f"python:broken_rewards.{function}"
    result = commands.run(
        "fairseq-train", *options, "--capability none --reward", reward, fresh=True
    )
    assert result.returncode not in (0, -9)
    sentence = result.stderr.splitlines()[-1]
    assert reward in sentence and all(word in sentence for word in words), sentence
    after = contents(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"training_record.jsonl", "MODEL_CARD.md"} == {"checkpoint_last.pt"}


@pytest.fixture(scope="module")
def other_vocabulary(commands, corpus):
    """The corpus with a larger dictionary."""
    text = commands.folder / "other"
    shutil.copytree(corpus.text, text)
    pairs = make_pairs(200, seed=1)
    extra = [" ".join(f"w{i}{j}" for j in range(5)) for i in range(8)]
    write_pairs(text, "train", pairs + [(line, line) for line in extra])
    return preprocess(commands, text, text / "data", "--joined-dictionary")


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model"])
def test_checkpoint_of_another_vocabulary(
    option, commands, other_vocabulary, mle, folder, tmp_path
):
    options = [*esrl_options(other_vocabulary, folder), MODEL, JOINED, option, mle]
    if option == "--finetune-from-model":  # it is ignored where there is a checkpoint to resume
        for path in folder.glob("checkpoint*"):
            path.rename(path.with_name(f"old.{path.name}"))
    else:
        options.append(FRESH)
    sentence = refuse(commands, folder, *options, "--capability-store", tmp_path / "store")
    assert "another vocabulary" in sentence and "40" in sentence and "80" in sentence
