"""docs/deploy.md as it stands: its commands and programs run one after the other, and translate as
fairseq-generate does."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_fixtures import WORDS
from command_lines import JOINED, MODEL, USER_DIR, environment, esrl_options
from subword_nmt.apply_bpe import BPE

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface.__main__ import main

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

PAGE = USER_DIR.parent / "docs" / "deploy.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(title):
    """(language, text) of the section's blocks, without installations; "" is the page's begin."""
    page = PAGE.read_text(encoding="utf-8")
    section = (page.split(f"\n## {title}\n")[1] if title else page).split("\n## ")[0]
    return [found for found in FENCE.findall(section) if not found[1].startswith("pip install")]


def follow(title, folder):
    """Run a section's blocks in ``folder``, and return what the last one printed."""
    bin_folder = str(Path(sys.executable).parent)
    env = {**environment(), "PATH": bin_folder + os.pathsep + os.environ["PATH"]}
    env["PYTHONPATH"] = str(USER_DIR.parent)
    for language, text in blocks(title):
        command = {"sh": ["bash", "-ec"], "python": [sys.executable, "-c"]}[language]
        done = subprocess.run(
            [*command, text], cwd=folder, env=env, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def merges_of(piece):
    """From left to right; ``@@`` marks a piece that does not end a word."""
    signs = [*piece[:-2]] if piece.endswith("@@") else [*piece[:-1], piece[-1] + "</w>"]
    return [("".join(signs[:i]), signs[i]) for i in range(1, len(signs))]


def write_codes(path):
    """Codes that cut the corpus's words as they are cut; the order of merges decides."""
    words, draw = [*WORDS, *WORDS.values()], random.Random(1)
    pieces = " ".join(words).split()
    for _ in range(1000):
        draw.shuffle(pieces)
        lines = [" ".join(merge) + "\n" for piece in pieces for merge in merges_of(piece)]
        path.write_text("#version: 0.2\n" + "".join(lines), encoding="utf-8")
        with open(path, encoding="utf-8") as codes:
            bpe = BPE(codes)
        if all(bpe.process_line(word.replace("@@ ", "")) == word for word in words):
            return
    raise AssertionError("no order found")


@pytest.fixture(scope="module")
def trained(commands, corpus, mle, tmp_path_factory):
    """A folder with what the page names, and the outputs of fairseq-generate with a beam of 5."""
    folder = tmp_path_factory.mktemp("deploy")
    write_codes(folder / "codes")
    text = (corpus.text / "test.de").read_text(encoding="utf-8").replace("@@ ", "")
    (folder / "test.de").write_text(text, encoding="utf-8")
    (folder / "data-bin").symlink_to(corpus.data)
    for name in ("esrl_fairseq", "recipes"):
        (folder / name).symlink_to(USER_DIR.parent / name)
    commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, folder / "esrl"), MODEL, JOINED],
        *["--finetune-from-model", mle, "--max-epoch 2"],
    )
    generated = commands.succeed(
        *["fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--gen-subset test"],
        *["--path", folder / "esrl" / "checkpoint_best.pt", "--beam 5 --batch-size 20"],
        "--required-batch-size-multiple 1 --remove-bpe",
    ).lines("H-")
    return folder, [generated[place] for place in sorted(generated)]


@pytest.mark.long
def test_generate_and_average(trained):
    """The mean of two models is another one, and as good or nearly so."""
    folder, expected = trained
    scores = []
    for title in ("", "Average checkpoints"):
        printed = follow(title, folder)
        hypotheses = {int(line[2:].split()[0]): line for line in printed if line.startswith("H-")}
        scores.append(float(re.search(r"BLEU4 = ([\d.]+)", printed[-1])[1]))
        if not title:
            assert [hypotheses[i].split("\t")[2] for i in sorted(hypotheses)] == expected
    assert scores[1] == pytest.approx(scores[0], abs=5)
    models = [
        torch.load(folder / name, weights_only=False)["model"]
        for name in ("esrl/checkpoint1.pt", "esrl/checkpoint2.pt", "averaged.pt")
    ]
    for name, mean in models[2].items():
        torch.testing.assert_close(mean, (models[0][name] + models[1][name]) / 2)


@pytest.mark.parametrize(
    "title", [pytest.param("fairseq-interactive", marks=pytest.mark.long), "Python"]
)
def test_interactive_and_from_pretrained(title, trained):
    folder, expected = trained
    assert follow(title, folder) == expected


def test_transformers(trained):
    folder, expected = trained
    assert len(set(expected)) > 10
    assert follow("transformers", folder) == expected
    assert (folder / "trained" / "config.json").is_file()
    left = [path.name for path in folder.iterdir() if path.name.startswith(".trained")]
    assert not left  # of writing it


def test_ctranslate2(trained):
    pytest.importorskip("ctranslate2", reason="extra deploy is not installed")
    folder, expected = trained
    assert follow("CTranslate2", folder) == expected


def test_refusals(trained, tmp_path, monkeypatch):
    """One sentence, and no folder."""
    folder, _ = trained
    checkpoint, out = folder / "esrl" / "checkpoint_best.pt", tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "few").mkdir()
    for language in ("de", "en"):
        (tmp_path / "few" / f"dict.{language}.txt").write_text("cat 1\n")
    (tmp_path / "few" / "train.de-en.de.idx").touch()
    data = ["--data", folder / "data-bin"]
    for more, sentence in [
        (
            [],
            "is a checkpoint of --arch transformer, which is no model of the Hugging Face",
        ),
        (["--data", tmp_path / "gone"], "is no folder: give that of fairseq-preprocess"),
        (["--data", tmp_path], "no binarized data"),
        (["--data", tmp_path / "few"], "cannot be loaded with the dictionaries in"),
        ([*data, "--bpe-codes", "gone"], "there is no file gone"),
        ([*data, "--bpe-codes", "a", "b", "c"], "one file of sub-words, or two"),
        (["--bpe-codes", "a"], "give --data, the folder"),
        ([*data, "--hf-model", "x"], "no --hf-model"),
        ([*data, "--sentencepiece", folder / "codes"], "whose sub-words are made by subword-nmt"),
        ([*data, "--checkpoint", "gone.pt"], "there is no checkpoint gone.pt"),
        ([*data, "--out", tmp_path / "full"], "is not an empty folder"),
    ]:
        given = ["export", "--checkpoint", checkpoint, "--out", out, *more]
        monkeypatch.setattr(sys, "argv", ["esrl_fairseq.huggingface", *map(str, given)])
        with pytest.raises(EsrlError, match=sentence):
            main()
        assert not out.exists()
