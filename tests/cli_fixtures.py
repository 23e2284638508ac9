"""Fixtures for the tests of the command lines: a tiny corpus and a model pre-trained on it."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_lines import COMMON, JOINED, MODEL, Commands

SOURCE = "katze,hund,sieht,mag,die,ein,blau@@ es,rotes,haus,baum,und,schläft,gross@@ er,heute"
TARGET = "cat,dog,sees,likes,the,a,blue,re@@ d,ho@@ use,tr@@ ee,and,sleep@@ s,b@@ ig,today"
WORDS = dict(zip(SOURCE.split(","), TARGET.split(",")))


def write_pairs(folder, split, pairs):
    """``split.de`` and ``split.en`` of (source, target) pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, language in enumerate(("de", "en")):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / f"{split}.{language}").write_text(text, encoding="utf-8")


def make_pairs(number, seed):
    """Word-for-word translations of 3 to 6 random words."""
    rng = random.Random(seed)
    sources = [rng.choices(sorted(WORDS), k=rng.randint(3, 6)) for _ in range(number)]
    return [(" ".join(words), " ".join(WORDS[word] for word in words)) for words in sources]


def preprocess(commands, text, data, *options, dictionary=None):
    """fairseq-preprocess of ``text/{train,valid,test}`` into the folder ``data``."""
    shared = ["--srcdict", dictionary, "--tgtdict", dictionary] if dictionary else []
    commands.succeed(
        "fairseq-preprocess",
        "--source-lang de --target-lang en",
        f"--trainpref {text / 'train'} --validpref {text / 'valid'} --testpref {text / 'test'}",
        *["--destdir", data, *shared, *options],
    )
    return data


@dataclass
class Corpus:
    """Folders of a corpus of 200 pairs: plain text, binarized with a joined dictionary."""

    text: Path
    data: Path

    @property
    def dictionary(self):
        return self.data / "dict.de.txt"


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    runner = Commands(tmp_path_factory.mktemp("commands"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def corpus(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text"
    for split, number, seed in (("train", 200, 1), ("valid", 20, 2), ("test", 20, 3)):
        write_pairs(text, split, make_pairs(number, seed))
    return Corpus(text, preprocess(commands, text, folder / "data", "--joined-dictionary"))


@pytest.fixture(scope="session")
def mle(commands, corpus, tmp_path_factory):
    """Path of a half-trained checkpoint, made by stock fairseq without this package."""
    folder = tmp_path_factory.mktemp("mle")
    commands.succeed(
        *["fairseq-train", corpus.data, MODEL, JOINED, COMMON, "--save-dir", folder],
        "--criterion label_smoothed_cross_entropy --label-smoothing 0.1",
        "--lr 5e-3 --max-epoch 12 --no-epoch-checkpoints",
    )
    return folder / "checkpoint_last.pt"
