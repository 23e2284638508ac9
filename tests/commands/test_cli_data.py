"""Where a user has put things: data that are not there, and a --user-dir beside the package."""

import shutil

import pytest
from command_lines import COMMON, JOINED, MODEL, USER_DIR, esrl_options

ROOT = USER_DIR.parent
LANGUAGES = "--source-lang de --target-lang en"


def refused(commands, *options, script="fairseq-train"):
    """The sentence in which a command ends."""
    result = commands.run(script, *options)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    return result.stderr.splitlines()[-1]


@pytest.fixture
def trained(corpus, mle, tmp_path):
    """Options of a run on data that are yet to be named."""
    options = [*esrl_options("DATA", tmp_path / "run"), MODEL, JOINED, "--max-update 1"]
    return lambda data, *more: [data, *options[1:], "--finetune-from-model", mle, *more]


def test_no_folder(trained, commands, tmp_path):
    sentence = refused(commands, *trained(tmp_path / "gone"))
    assert f"there is no folder {tmp_path / 'gone'}" in sentence
    assert not list(tmp_path.glob("run/*"))


def test_reward_model_on_a_file(commands, corpus, tmp_path):
    options = ["--user-dir", USER_DIR, "--task esrl_reward_model --criterion esrl_preference"]
    options += [MODEL, JOINED, COMMON, LANGUAGES, "--save-dir", tmp_path]
    sentence = refused(commands, corpus.text / "train.de", *options)
    assert f"{corpus.text / 'train.de'} is a file, not a folder" in sentence


def test_a_shard_without_training_data(trained, commands, corpus, tmp_path):
    """Said before the first update, not when its epoch comes."""
    shard = shutil.copytree(corpus.data, tmp_path / "shard", ignore=lambda _, names: train(names))
    sentence = refused(commands, *trained(f"{corpus.data}:{shard}"))
    assert f"no data of the split 'train' in {shard}, which has test.de-en, valid" in sentence
    assert not list(tmp_path.glob("run/*"))


def train(names):
    return [name for name in names if name.startswith("train.")]


def test_damaged_data(trained, commands, corpus, tmp_path):
    data = shutil.copytree(corpus.data, tmp_path / "data")
    (data / "train.de-en.de.idx").write_bytes(b"no index")
    sentence = refused(commands, *trained(data))
    assert f"data of the split 'train' in {data} cannot be read (" in sentence


def test_generating_from_a_split_without_data(commands, corpus, mle):
    sentence = refused(
        *[commands, corpus.data, "--user-dir", USER_DIR, "--path", mle],
        "--task esrl_translation --gen-subset tset",
        script="fairseq-generate",
    )
    assert "no data of the split 'tset'" in sentence and "--gen-subset" in sentence


@pytest.mark.parametrize("name", ["esrl_fairseq", "my-clone"])
def test_user_dir_may_be_the_repository(name, trained, commands, corpus, tmp_path):
    """Under whatever name, be it the package's, which Python would take for an empty package."""
    clone = tmp_path / name
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(USER_DIR, clone / "esrl_fairseq", ignore=unwanted)
    shutil.copy(ROOT / "__init__.py", clone)
    with open(clone / "esrl_fairseq" / "__init__.py", "a") as f:
        f.write(f"\nprint('the package in', {str(clone)!r})\n")
    options = trained(corpus.data)
    options[options.index("--user-dir") + 1] = clone
    log = commands.succeed("fairseq-train", *options)
    assert log.stdout.count(f"the package in {clone}") == 1
    assert log.logged("train_inner")[0]["samples"] == 8
