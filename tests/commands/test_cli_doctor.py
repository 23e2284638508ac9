"""``esrl-doctor`` in front of a training's command: all faults at once, and nothing is written."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_fixtures import make_pairs, preprocess, write_pairs
from command_lines import JOINED, MODEL, USER_DIR, esrl_options

SCRIPT = """
import sys
sys.path.insert(0, {!r})
from esrl_fairseq.doctor import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def doctor(commands):
    """Runs esrl-doctor: its exit code, and {what: [(level, text)]}."""
    script = commands.folder / "bin" / "esrl-doctor"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(str(USER_DIR.parent)))

    def call(*words):
        before = everything(commands.folder)
        job = commands.start(str(script), *words, environment={"COLUMNS": "120"})
        result = job.wait()
        assert "Traceback" not in result.stdout + result.stderr, result.stderr[-3000:]
        assert everything(commands.folder) == before
        return result.returncode, findings(result.stdout)

    return call


def everything(folder):
    """Files below a folder, without those that hold what commands print."""
    files = (path for path in Path(folder).rglob("*") if path.suffix not in (".in", ".out", ".err"))
    return {path: path.stat().st_mtime_ns for path in files if "__pycache__" not in str(path)}


def findings(text):
    """Of a table: {what: [(level, text)]}."""
    found = {}
    for line in text.splitlines()[:-2]:
        new = re.match(r"(\S.*?) +(ok|warning|wrong) +(.*)", line)
        if new:
            what = new[1]
            found.setdefault(what, []).append((new[2], new[3]))
        else:
            level, before = found[what][-1]
            found[what][-1] = (level, f"{before} {line.strip()}")
    return found


def wrong(found, level="wrong"):
    """All that is of a level, as one text."""
    every = [(what, one) for what, several in found.items() for one in several]
    return "\n".join(f"{what}: {text}" for what, (its_level, text) in every if its_level == level)


def command(data, save_dir, *more):
    return ["fairseq-train", *esrl_options(data, save_dir), *more]


def test_a_training_that_fits(doctor, corpus, mle, tmp_path):
    """With --check-start warn, since the model is half trained."""
    start = ["--finetune-from-model", mle, "--check-start warn"]
    code, found = doctor(*command(corpus.data, tmp_path / "new", *start))
    assert code == 0, found
    assert not wrong(found) and not (tmp_path / "new").exists()
    assert "GB in stage two" in found["memory needed"][0][1]
    assert "200 training inputs" in found["lengths"][0][1]
    assert found["reward"][0][1].startswith("bleu|")
    assert "trains transformer" in found["training"][0][1]


def test_data_and_a_start_model_alone(doctor, corpus, mle):
    code, found = doctor(corpus.data, mle, "--check-start warn")
    assert code == 0, found
    assert "--task esrl_translation" in found["command"][0][1]


def test_several_faults_at_once(doctor, corpus, mle, tmp_path):
    """Of the command, the architecture, the reward, options and the folder."""
    (tmp_path / "file").touch()
    words = command(corpus.data, tmp_path / "file", MODEL, JOINED, "--finetune-from-model", mle)
    words = [w for w in words if w not in ("--user-dir", USER_DIR)]
    more = ["--encoder-ffn-embed-dim 64 --nonsense 3 --reward BLUE --fp16 --risk-alpha 0"]
    more += ["--reward-post-process x --sample-min-len 2000"]
    code, found = doctor(*words, *more)
    text = wrong(found)
    assert code == 1
    for words in (
        "command: --user-dir is missing",
        "command: unrecognized arguments: --nonsense",
        "is a file): choose another",
        "did you mean 'bleu'",
        "--reward-post-process is 'x'",
        "--risk-alpha is 0",
        "--encoder-ffn-embed-dim is 64 here but 32",
        "--fp16 and --memory-efficient-fp16 need a GPU",
        "--sample-min-len is 2000, but the model writes at most 1023 tokens",
    ):
        assert words in text, text


def data_of(commands, tmp_path, change, dictionary=None):
    """Other data: each pair of texts changed."""
    for split, number in (("train", 40), ("valid", 10), ("test", 10)):
        pairs = [tuple(map(change, pair)) for pair in make_pairs(number, seed=7)]
        write_pairs(tmp_path / "text", split, pairs)
    given = () if dictionary else ("--joined-dictionary",)
    return preprocess(commands, tmp_path / "text", tmp_path / "data", *given, dictionary=dictionary)


def test_another_vocabulary_and_other_subwords(doctor, commands, mle, tmp_path):
    """Sub-words as SentencePiece marks them, which the default does not join."""
    data = data_of(commands, tmp_path, lambda text: "▁" + text.replace("@@", "").replace(" ", " ▁"))
    code, found = doctor(*command(data, tmp_path / "new", "--finetune-from-model", mle))
    text = wrong(found)
    assert code == 1
    assert "does not join" in text and "give --reward-post-process sentencepiece" in text
    assert "was trained with another vocabulary" in text or "are others here" in text, text


def test_words_in_another_order(doctor, commands, corpus, mle, tmp_path):
    """A dictionary of the same size fits the model, and gives its words another meaning."""
    lines = corpus.dictionary.read_text().splitlines()
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("\n".join(lines[::-1]) + "\n")
    data = data_of(commands, tmp_path, str, dictionary)
    code, found = doctor(*command(data, tmp_path / "new", "--finetune-from-model", mle))
    assert code == 1 and "are others here" in wrong(found), found


def test_inputs_that_are_too_long(doctor, corpus, mle, tmp_path):
    more = [
        "--finetune-from-model",
        mle,
        "--max-source-positions 4 --sample-max-len-a 0 --sample-max-len-b 2",
    ]
    code, found = doctor(*command(corpus.data, tmp_path / "new", *more))
    assert code == 1 and "valid, line" in wrong(found) and "is too long" in wrong(found)
    warned = wrong(found, "warning")
    assert re.search(r"\d+ of 200 training lines are longer than what the model reads", warned)
    assert "of the references are longer than samples can be" in warned


def test_a_damaged_checkpoint_and_missing_data(doctor, corpus, mle, tmp_path):
    """Neither keeps the other from being found."""
    damaged, data = tmp_path / "damaged.pt", shutil.copytree(corpus.data, tmp_path / "data")
    damaged.write_bytes(mle.read_bytes()[:-500])
    for file in data.glob("valid.*"):
        file.unlink()
    words = command(data, tmp_path / "new", "--finetune-from-model", damaged)
    code, found = doctor(*words)
    text = wrong(found)
    assert code == 1 and "damaged.pt is cut off" in text and "the split 'valid'" in text, text
    assert "reward" not in text  # which could be looked at
    (data / "dict.de.txt").unlink()
    torch.save({"weights": torch.ones(3)}, damaged)
    code, found = doctor(*words)
    text = wrong(found)
    assert code == 1 and "there is no dictionary" in text and "damaged.pt" in text, text


def test_a_package_that_is_missing(doctor, corpus, mle, tmp_path):
    more = ["--finetune-from-model", mle, "--reward bleu:0.5+comet:0.5 --reward-model comet=x"]
    code, found = doctor(*command(corpus.data, tmp_path / "new", *more))
    assert code == 1 and "pip install unbabel-comet" in wrong(found), found
    assert "stage two" in found["memory needed"][0][1]  # the rest was looked at


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["fairseq-generate", "data"], "fairseq-generate trains nothing"),
        (["fairseq-train", "nowhere", "--task esrl_translation --criterion esrl"], "no --arch is"),
        (["fairseq-train", "--criterion", "esrll"], "did you mean esrl?"),
        (["nowhere", "nothing.pt"], "there is no folder nowhere"),
    ],
)
def test_what_is_no_training(words, sentence, doctor):
    code, found = doctor(*words)
    assert code == 1 and sentence in wrong(found), found
