"""Data that are not there, for the tasks of this package; through the command line in
tests/commands/test_cli_data.py."""

import shutil

import pytest

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


def test_damaged_shards(corpus, tmp_path):
    """Said at the first loading, whichever epoch they are for; other splits do not matter."""
    shards = [str(corpus.data)]
    for name, damaged in (("whole", "valid.de-en.en.bin"), ("damaged", "train.de-en.en.bin")):
        shards.append(str(shutil.copytree(corpus.data, tmp_path / name)))
        with open(tmp_path / name / damaged, "ab") as file:
            file.write(b"no end")
    languages = {"source_lang": "de", "target_lang": "en"}

    def load(data):
        task = EsrlTranslationTask.setup_task(EsrlTranslationConfig(data=data, **languages))
        task.cfg.train_subset, task.cfg.dataset_impl = "train", None
        task.load_dataset("train", epoch=1)
        task.load_dataset("valid")
        return task

    task = load(":".join(shards[:2]))
    task.load_dataset("train", epoch=2)
    for data in (":".join(shards), ":".join(reversed(shards))):
        with pytest.raises(EsrlError, match="damaged/train.de-en.en.bin and .* are not whole"):
            load(data)


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
