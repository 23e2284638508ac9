"""docs/deploy.md as it stands: its commands and programs run one after the other, and translate as
fairseq-generate does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import preprocess
from command_lines import COMMON, JOINED, MODEL, USER_DIR, environment, esrl_options

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface.__main__ import main

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

PAGE = USER_DIR.parent / "docs" / "deploy.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(title):
    """(language, text) of the section's blocks, without installations."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
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


@pytest.fixture(scope="module")
def trained(commands, corpus, tmp_path_factory):
    """A folder with what the page names, and the outputs of fairseq-generate with a beam of 5."""
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    folder = tmp_path_factory.mktemp("deploy")
    texts = {path.name: path.read_text("utf-8").replace("@@ ", "") for path in corpus.text.iterdir()}
    with open(folder / "codes", "w", encoding="utf-8") as codes:
        learn_bpe((texts["train.de"] + texts["train.en"]).splitlines(), codes, 200)
    with open(folder / "codes", encoding="utf-8") as codes:
        bpe = BPE(codes)
    (folder / "text").mkdir()
    for name, text in texts.items():
        lines = [bpe.process_line(line) + "\n" for line in text.splitlines()]
        (folder / "text" / name).write_text("".join(lines), encoding="utf-8")
    (folder / "test.de").write_text(texts["test.de"], encoding="utf-8")
    data = preprocess(commands, folder / "text", folder / "data-bin", "--joined-dictionary")
    commands.succeed(
        *["fairseq-train", data, MODEL, JOINED, COMMON, "--save-dir", folder / "mle"],
        "--criterion label_smoothed_cross_entropy --lr 5e-3 --max-epoch 12 --no-epoch-checkpoints",
    )
    commands.succeed(
        *["fairseq-train", *esrl_options(data, folder / "esrl"), MODEL, JOINED, "--max-update 2"],
        *["--finetune-from-model", folder / "mle" / "checkpoint_last.pt", "--max-epoch 1"],
    )
    (folder / "esrl_fairseq").symlink_to(USER_DIR)
    generated = commands.succeed(
        *["fairseq-generate", data, "--user-dir", USER_DIR, "--gen-subset test --remove-bpe"],
        *["--path", folder / "esrl" / "checkpoint_best.pt", "--beam 5 --batch-size 20"],
        "--required-batch-size-multiple 1",
    ).lines("H-")
    return folder, [generated[place] for place in sorted(generated)]


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
        ([], "is a checkpoint of --arch transformer, which is no model of the Hugging Face library"),
        (["--data", tmp_path / "gone"], "is no folder: give that of fairseq-preprocess"),
        (["--data", tmp_path], "no binarized data"),
        (["--data", tmp_path / "few"], "cannot be loaded with the dictionaries in"),
        ([*data, "--bpe-codes", "gone"], "there is no file gone"),
        ([*data, "--bpe-codes", "a", "b", "c"], "one file of sub-words, or two"),
        ([*data, "--checkpoint", "gone.pt"], "there is no checkpoint gone.pt"),
        ([*data, "--out", tmp_path / "full"], "is not an empty folder"),
    ]:
        given = ["export", "--checkpoint", checkpoint, "--out", out, *more]
        monkeypatch.setattr(sys, "argv", ["esrl_fairseq.huggingface", *map(str, given)])
        with pytest.raises(EsrlError, match=sentence):
            main()
        assert not out.exists()
