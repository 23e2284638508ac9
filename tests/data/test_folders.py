"""Data that are not there, for the tasks of this package; through the command line in
tests/commands/test_cli_data.py."""

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from esrl_fairseq.data import folders
from esrl_fairseq.data.folders import missing
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.language_task import EsrlLanguageModelingConfig, EsrlLanguageModelingTask
from esrl_fairseq.reward_models.task import RewardModelConfig, RewardModelTask
from esrl_fairseq.task import EsrlTranslationConfig, EsrlTranslationTask

TASKS = [
    (EsrlTranslationTask, EsrlTranslationConfig),
    (RewardModelTask, RewardModelConfig),
    (EsrlLanguageModelingTask, EsrlLanguageModelingConfig),
]
LANGUAGES = [{}, {"source_lang": "de", "target_lang": "en"}]


def refusal(task, config, data, languages):
    """What the task says of the data; the language model has no languages."""
    known = {key: value for key, value in languages.items() if hasattr(config, key)}
    with pytest.raises(EsrlError) as found:
        task.setup_task(config(data=str(data), **known))
    return str(found.value)


@pytest.mark.parametrize("task, config", TASKS)
@pytest.mark.parametrize("languages", LANGUAGES)
def test_no_folder(task, config, languages, tmp_path):
    """Neither the first one nor a later one."""
    (tmp_path / "file").write_text("a text")
    for data in ("gone", "file", f"{tmp_path}:gone", f"gone:{tmp_path}"):
        wrong = [part for part in str(data).split(":") if part in ("gone", "file")][0]
        path = str(data).replace(wrong, str(tmp_path / wrong))
        words = "is a file, not a folder" if wrong == "file" else "there is no folder"
        sentence = refusal(task, config, path, languages)
        assert words in sentence and str(tmp_path / wrong) in sentence and "--destdir" in sentence


@pytest.mark.parametrize("task, config", TASKS)
@pytest.mark.parametrize("languages", LANGUAGES)
def test_a_folder_without_data(task, config, languages, tmp_path):
    (tmp_path / "train.de").write_text("a text")
    sentence = refusal(task, config, tmp_path, languages)
    if task is EsrlLanguageModelingTask:
        assert f"there is no dictionary {tmp_path / 'dict.txt'}" in sentence
    elif languages:
        assert f"there is no dictionary {tmp_path / 'dict.de.txt'}" in sentence
        assert ("With --only-source" in sentence) == (task is EsrlTranslationTask)
    else:
        assert f"{tmp_path} has no binarized data" in sentence


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "cut": (lambda bins, index: cut(bins, 20), "20 bytes where the index says 28"),
    "empty": (lambda bins, index: cut(bins, 0), "0 bytes where the index says 28"),
    "longer": (lambda bins, index: bins.write_bytes(bytes(99)), "99 bytes where"),
    "index cut": (lambda bins, index: cut(index, 30), "buffer"),
    "sizes": (lambda bins, index: flip(index, 26), "do not follow each other"),
    "places": (lambda bins, index: flip(index, 54), "do not follow each other"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(kind, tmp_path, monkeypatch):
    """A pair of files whose lengths do not fit, other splits do not matter."""
    monkeypatch.setattr(folders, "AT_ONCE", 2)
    lines = [[4, 5, 2], [4, 2], [2], [5, 2]] if kind == "places" else [[4, 5, 2], [4, 2], [4, 2]]
    for split in ("train", "valid"):
        builder = MMapIndexedDatasetBuilder(str(tmp_path / f"{split}.de-en.de.bin"), np.int32)
        for line in lines:
            builder.add_item(torch.tensor(line))
        builder.finalize(str(tmp_path / f"{split}.de-en.de.idx"))
        folders.check_whole(str(tmp_path), split)
    damage, words = DAMAGE[kind]
    damage(*(tmp_path / f"train.de-en.de.{end}" for end in ("bin", "idx")))
    with pytest.raises(EsrlError, match="train.de-en.de.bin and .* are not whole") as found:
        folders.check_whole(str(tmp_path), "train")
    assert words in str(found.value) and "fairseq-preprocess" in str(found.value)
    folders.check_whole(str(tmp_path), "valid")


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "which has no binarized data at all: make"),
        (["train.de-en.de.bin", "train.de-en.de.idx"], "which has train.de-en: make"),
        (["train.idx", "train.bin", "test.idx", "test.bin"], "which has test, train: make"),
        (["train.idx", "test.idx", "test.bin"], "which has test: make"),  # no train.bin
    ],
)
def test_what_is_there_is_named(names, words, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    sentence = str(missing("valid", str(tmp_path)))
    assert f"no data of the split 'valid' in {tmp_path}, {words}" in sentence
