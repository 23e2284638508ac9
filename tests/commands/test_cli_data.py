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


def test_damaged_data(trained, commands, corpus, mle, tmp_path):
    """One sentence at the start, whatever reads them: also fairseq's own task and criterion."""
    data = shutil.copytree(corpus.data, tmp_path / "data")
    own = ["--user-dir", USER_DIR]

    def damage(name, change):
        whole = (corpus.data / name).read_bytes()
        (data / name).write_bytes(change(bytearray(whole)))
        return whole

    damage("train.de-en.de.idx", lambda content: b"no index")
    sentence = refused(commands, *trained(data))
    assert f"{data}/train.de-en.de.bin and train.de-en.de.idx are not whole (" in sentence
    damage("train.de-en.de.idx", lambda content: content)
    damage("valid.de-en.en.bin", lambda content: content[:-6])
    mle_options = [*own, MODEL, JOINED, COMMON, "--save-dir", tmp_path / "run"]
    sentence = refused(commands, data, *mle_options, "--criterion cross_entropy --lr 1")
    assert f"{data}/valid.de-en.en.bin and valid.de-en.en.idx are not whole (" in sentence
    damage("test.de-en.de.bin", lambda content: content[:-4] + b"\x00\x7f" + content[-2:])
    generate = [*own, "--path", mle, "--task esrl_translation --gen-subset test"]
    sentence = refused(commands, data, *generate, script="fairseq-generate")
    assert f"{data}/test.de-en.de.bin, line 20: there is a word number 32,512" in sentence
    damage("dict.en.txt", lambda content: content[:-3])
    sentence = refused(commands, data, *generate[:-1], script="fairseq-interactive")
    assert f"the dictionary {data}/dict.en.txt cannot be read (Incorrect dictionary" in sentence
    assert not list(tmp_path.glob("run/*.pt"))


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
