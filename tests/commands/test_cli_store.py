"""The store of large data through the command line: checkpoints that share files, and shards."""

import shutil

import pytest
from cli_fixtures import make_pairs, preprocess, write_pairs
from command_lines import JOINED, MODEL, USER_DIR, esrl_options
from test_cli_resume import comparable, load, same_model

from esrl_fairseq.state.capability import restored

LARGE = """
import os
from esrl_fairseq.state import capability

capability.WHOLE = 0  # every data set is a large one
calls = 0

def words(sources, hypotheses, references):
    return [min(len(h.split()), 10) / 10 for h in hypotheses]

def damaging(sources, hypotheses, references):
    global calls
    calls += 1
    folder = os.path.join(os.environ["RUN"], "capability")
    if calls == 15:
        for name in os.listdir(folder):
            os.truncate(os.path.join(folder, name), 10)
    return words(sources, hypotheses, references)

words.range = damaging.range = (0.0, 1.0)
"""


@pytest.fixture(scope="module")
def options(commands, corpus, mle):
    """The same command begins and resumes a run whose store is kept in files."""
    (commands.folder / "large_store.py").write_text(LARGE)
    user_dir = commands.folder / "large" / "plugin"
    user_dir.mkdir(parents=True)
    (user_dir / "__init__.py").write_text(
        f"import sys\nsys.path[:0] = [{str(USER_DIR.parent)!r}, {str(commands.folder)!r}]\n"
        "import esrl_fairseq\n"
    )

    def of(save_dir, reward="words", data=corpus.data):
        return [
            *["fairseq-train", *esrl_options(data, save_dir), MODEL, JOINED, "--user-dir"],
            *[user_dir, "--finetune-from-model", mle, f"--reward python:large_store.{reward}"],
            "--capability reward --num-samples 5 --elimination-ratio 0.5 --rescoring-dropout",
            "--save-interval-updates 4 --keep-interval-updates 1 --keep-last-epochs 2",
            "--best-checkpoint-metric reward --maximize-best-checkpoint-metric --max-update 36",
        ]

    return of


@pytest.fixture(scope="module")
def whole(commands, options):
    """A run of three epochs and a half."""
    save_dir = commands.folder / "whole"
    return save_dir, commands.succeed(*options(save_dir))


def stores(save_dir, name="checkpoint_last.pt"):
    state = load(save_dir / name)["extra_state"]["EsrlTranslationTask"]["rl"]
    return state["stores"], [restored(s, [str(save_dir)]).records for s in state["stores"].values()]


def updates_of(checkpoint):
    return load(checkpoint)["optimizer_history"][-1]["num_updates"]


def resumed(commands, options, whole, name, folder):
    """A copy of the run goes on from one of its checkpoints, to the same end."""
    shutil.copytree(whole[0], folder)
    shutil.copy(folder / name, folder / "checkpoint_last.pt")
    updates = updates_of(folder / name)
    result = commands.succeed(*options(folder))
    expected = comparable(whole[1], updates)
    assert expected and comparable(result, updates) == expected
    assert same_model(whole[0], folder)
    assert stores(folder)[1][0].tobytes() == stores(whole[0])[1][0].tobytes()
    return updates


def test_resumes_from_an_older_epoch(commands, options, whole, tmp_path):
    """Bit for bit; the epochs before it are gone, and what only they needed."""
    names = {path.name for path in whole[0].glob("*.pt")}
    assert {"checkpoint2.pt", "checkpoint3.pt", "checkpoint_best.pt"} <= names
    assert "checkpoint1.pt" not in names
    for name in names:
        (state,) = stores(whole[0], name)[0].values()
        assert not len(state["packed"]) and state["files"]
    assert resumed(commands, options, whole, "checkpoint2.pt", tmp_path / "run") == 20


@pytest.mark.long
def test_resumes_from_every_checkpoint(commands, options, whole, tmp_path):
    """That of the end left out, from which fairseq makes one update more."""
    paths = [path for path in whole[0].glob("*.pt") if updates_of(path) < 36]
    found = {resumed(commands, options, whole, path.name, tmp_path / path.name) for path in paths}
    assert len(found) >= 2


def test_a_checkpoint_without_its_files(commands, options, whole, tmp_path):
    """Copied alone: one sentence, and the run goes on."""
    shutil.copy(whole[0] / "checkpoint3.pt", tmp_path / "checkpoint_last.pt")
    result = commands.succeed(*options(tmp_path))
    lines = [line for line in result.stdout.splitlines() if "store cannot be read" in line]
    assert len(lines) == 1 and f"there is no {tmp_path}" in lines[0] and "copy" in lines[0]
    assert result.logged("train_inner")[-1]["num_updates"] == 36


@pytest.mark.long
def test_files_cut_off_in_use(commands, options, whole, tmp_path, monkeypatch):
    """The run ends as it would have, and its last checkpoint is whole."""
    monkeypatch.setenv("RUN", str(tmp_path))
    result = commands.run(*options(tmp_path, "damaging"), fresh=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "written anew" in result.stdout
    assert comparable(result, 0) == comparable(whole[1], 0)
    assert stores(tmp_path)[1][0].tobytes() == stores(whole[0])[1][0].tobytes()


@pytest.fixture(scope="module")
def shards(commands, corpus):
    """Three folders with different pairs, of equally many lines."""
    found = []
    for number in range(3):
        text = commands.folder / f"text{number}"
        shutil.copytree(corpus.text, text)
        write_pairs(text, "train", make_pairs(60, seed=20 + number))
        data = commands.folder / f"shard{number}"
        preprocess(commands, text, data, dictionary=corpus.dictionary)
        found.append(str(data))
    return found


@pytest.fixture(scope="module")
def sharded(commands, shards, mle):
    """A run that ended in the second shard of the first two, and its command with other data."""
    save_dir = commands.folder / "sharded"

    def command(folders):
        options = esrl_options(":".join(folders), save_dir)
        return ["fairseq-train", *options, MODEL, JOINED, "--finetune-from-model", mle]

    commands.succeed(*command(shards[:2]), "--max-update 4")
    return command


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([0], "with 2 data shards, but this run has 1"),
        ([0, 1, 2], "with 2 data shards, but this run has 3"),
        ([1, 0], "with the same data shards in another order"),
        ([0, 2], "with another data shard in the place of"),
    ],
)
def test_other_shards(chosen, words, commands, shards, sharded):
    """Left out, added, reordered or exchanged, also where the one being trained on is the same."""
    result = commands.run(*sharded([shards[number] for number in chosen]), "--max-update 8")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert words in result.stderr.splitlines()[-1]


def test_the_same_shards_elsewhere(commands, shards, sharded, tmp_path):
    moved = [shutil.copytree(shards[number], tmp_path / f"d{number}") for number in range(2)]
    result = commands.succeed(*sharded(map(str, moved)), "--max-update 8")
    assert result.logged("train_inner")[-1]["num_updates"] == 8
