"""Options: their help, and their names among fairseq's."""

import dataclasses
import re
import runpy
import sys

import pytest
from fairseq.dataclass.configs import FairseqConfig

from esrl_fairseq.huggingface.bpe import HfTokenizerConfig
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.reward_models.criterion import PreferenceConfig
from esrl_fairseq.reward_models.task import RewardModelConfig
from esrl_fairseq.sampling.options import PromptConfig, SamplingConfig
from esrl_fairseq.task import EsrlTranslationConfig, LanguageTagsConfig


def options(config):
    """Fields that are no copies of fairseq's options, nor its own ``_name``."""
    fields = [f for f in dataclasses.fields(config) if not str(f.default).startswith("${")]
    return [f for f in fields if not f.name.startswith("_")]


@pytest.fixture
def shown(capsys, monkeypatch):
    """What ``python -m esrl_fairseq`` prints of each option."""
    monkeypatch.setenv("COLUMNS", "10000")  # wide enough not to break lines within words
    monkeypatch.setattr(sys, "argv", ["python -m esrl_fairseq", "-h"])
    runpy.run_module("esrl_fairseq", run_name="__main__")
    text = capsys.readouterr().out
    assert "option_strings" not in text, "an unescaped % in a help text"
    assert "--capability reward, --sample-max-len-a 0.0, --sample-max-len-b 50; and" in text
    entries = re.split(r"\n  (?=\S)", text)
    return {entry.split()[0]: " ".join(entry.split()) for entry in entries}


@pytest.mark.parametrize(
    "config",
    [
        *[EsrlCriterionConfig, EsrlTranslationConfig, LanguageTagsConfig, PromptConfig],
        *[RewardModelConfig, PreferenceConfig, HfTokenizerConfig],
    ],
)
def test_every_option_is_listed_with_its_help(config, shown):
    """Those of fairseq's translation task, too; defaults are told where there is one."""
    assert options(config)
    for field in options(config):
        option = "data" if field.name == "data" else "--" + field.name.replace("_", "-")
        assert " ".join(field.metadata["help"].split()).replace("%%", "%") in shown[option]
        if field.default in (None, dataclasses.MISSING):
            assert "(default: None)" not in shown[option]
        else:
            assert f"(default: {field.default})" in shown[option]


@pytest.mark.parametrize("words", [["--nosuch"], ["--reward", "bleu"], ["-h", "x"], ["train"]])
def test_it_prints_and_does_nothing_else(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python -m esrl_fairseq", *words])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("esrl_fairseq", run_name="__main__")
    shown = capsys.readouterr()
    assert f"was given {' '.join(words)}: give options to fairseq-train" in shown.err
    assert not shown.out


def test_names_are_not_taken_by_fairseq():
    """All options share one namespace: fairseq would read ours as its own of the same name."""
    taken = {
        name
        for field in FairseqConfig.__dataclass_fields__.values()
        if dataclasses.is_dataclass(field.type)
        for name in field.type.__dataclass_fields__
    }
    assert "sampling" in taken
    for config in (EsrlCriterionConfig, SamplingConfig, PromptConfig, LanguageTagsConfig):
        own = {field.name for field in options(config)}
        assert len(own) > 1 and not own & taken
