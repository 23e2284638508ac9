"""Damaged checkpoints and full disks, as users meet them."""

import shutil

import pytest
from command_lines import FRESH, JOINED, MODEL, USER_DIR, esrl_options
from test_cli_resume import comparable, load, same_model
from test_reading_whole import cut, empty, flip

LAST = 8


def options(corpus, start, save_dir, *more):
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", start],
        f"--num-samples 3 --max-update {LAST} --disable-validation",
        "--save-interval-updates 2 --keep-interval-updates 2",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(commands, corpus, mle):
    folder = commands.folder / "whole-checkpoints"
    return folder, commands.succeed("fairseq-train", *options(corpus, mle, folder))


def refused(result):
    """The one sentence of a command that was refused."""
    text = result.stdout + result.stderr
    assert result.returncode == 1 and "Traceback" not in text, text[-2000:]
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("damage", [flip, empty])
def test_a_damaged_last_checkpoint(damage, commands, corpus, mle, whole, tmp_path):
    """The run goes on from the newest whole one, says so, and ends as if nothing had been."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for name in ("checkpoint_last.pt", "checkpoint_1_8.pt"):
        damage(folder / name)
    partial = folder / f"checkpoint_1_8.pt.{'a' * 16}.partial"
    partial.touch()
    result = commands.succeed("fairseq-train", *options(corpus, mle, folder))
    warning = next(line for line in result.stdout.splitlines() if "newest whole one" in line)
    assert str(folder / "checkpoint_last.pt") in warning and " is " in warning
    assert str(folder / "checkpoint_1_6.pt") in warning and "after update 6" in warning
    expected = comparable(whole[1], 6)
    assert len(expected) >= 2 and comparable(result, 6) == expected
    assert same_model(whole[0], folder) and not partial.exists()


@pytest.mark.parametrize(
    "command, option, damage, words",
    [
        ("fairseq-generate", "--path", flip, "is damaged"),
        ("fairseq-interactive", "--path", empty, "is empty"),
        ("fairseq-validate", "--path", cut, "is cut off"),
        ("fairseq-train", "--restore-file", flip, "is damaged"),
        ("fairseq-train", "--finetune-from-model", cut, "is cut off"),
        ("fairseq-train", "--kl-weight 0.1 --kl-reference", flip, "is damaged"),
        ("fairseq-train", "--reward model --reward-model", empty, "is empty"),
    ],
)
def test_a_damaged_file_that_is_named(
    command, option, damage, words, commands, corpus, mle, tmp_path
):
    path, given = tmp_path / "given.pt", [corpus.data, "--user-dir", USER_DIR]
    shutil.copyfile(mle, path)
    damage(path)
    if command == "fairseq-train":
        start = [] if option in ("--restore-file", "--finetune-from-model") else [mle]
        given = [*esrl_options(corpus.data, tmp_path), MODEL, JOINED, "--max-update 2"]
        given += ["--finetune-from-model", *start] if start else []
        given += [FRESH] if option == "--restore-file" else []
    elif command == "fairseq-validate":
        given.append("--task translation --batch-size 10")
    sentence = refused(commands.run(command, *given, *option.split(), path, stdin="hund\n"))
    assert str(path) in sentence and words in sentence
    assert [file.name for file in tmp_path.glob("*.pt")] == ["given.pt"]


def test_a_save_dir_that_cannot_be_written_to(commands, corpus, mle, tmp_path):
    (tmp_path / "file").touch()
    sentence = refused(
        commands.run("fairseq-train", *options(corpus, mle, tmp_path / "file" / "run"))
    )
    assert "--save-dir" in sentence and "Not a directory" in sentence


def test_saving_in_the_background(commands, corpus, mle, tmp_path):
    sentence = refused(
        commands.run("fairseq-train", *options(corpus, mle, tmp_path / "run", "--save-async"))
    )
    assert "--write-checkpoints-asynchronously" in sentence and not (tmp_path / "run").exists()


LIMITED = """
import resource
def f(sources, hypotheses, references):
    {what}
    return [len(text) / 100 for text in hypotheses]
"""


def test_a_disk_that_takes_no_more(commands, corpus, mle, whole, tmp_path):
    """The operating system refuses files of more than 100 kB from the fourth update on."""
    code = LIMITED.format(
        what="f.calls = getattr(f, 'calls', 0) + 1\n"
        "    if f.calls == 7:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))"
    )
    (commands.folder / "limited.py").write_text(code)
    words = ["--reward python:limited.f"]
    result = commands.run("fairseq-train", *options(corpus, mle, tmp_path / "run", *words))
    sentence = refused(result)
    assert "cannot be saved: File too large; earlier checkpoints are as they were" in sentence
    before = load(tmp_path / "run" / "checkpoint_last.pt")
    assert before["optimizer_history"][-1]["num_updates"] >= 2
    assert not list((tmp_path / "run").glob("*.partial"))
    (commands.folder / "limited.py").write_text(LIMITED.format(what="pass"))
    commands.succeed("fairseq-train", *options(corpus, mle, tmp_path / "run", *words))
