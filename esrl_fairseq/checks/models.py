"""Refusals of models and tasks that cannot be trained on what they write word by word."""

from __future__ import annotations

import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq.models import (
    ARCH_MODEL_REGISTRY,
    FairseqEncoderModel,
    FairseqIncrementalDecoder,
    FairseqLanguageModel,
    FairseqMultiModel,
)
from fairseq.models.nat.fairseq_nat_model import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.online_backtranslation import OnlineBackTranslationTask
from fairseq.tasks.simultaneous_translation import SimulTextToTextTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError

AUTOREGRESSIVE = "an autoregressive --arch such as transformer, bart_base or lstm"
AT_ONCE: list[tuple[type, str]] = [
    (FairseqMultiModel, "is several models, one for each pair of languages"),
    (FairseqNATModel, "is not autoregressive"),
    (FairseqEncoderModel, "has no decoder"),
]
"""Kinds of models that do not write word by word, and why."""


def check_arch(cfg: Any) -> None:
    """Refuse an architecture whose models :func:`check_model` would refuse, before one is built.

    Args:
        cfg: options of the model.
    """
    kind = ARCH_MODEL_REGISTRY.get(arch_of(cfg))
    if kind is not None:
        _refuse_lack(kind.__name__, _lack_of(kind))


def arch_of(cfg: Any) -> str:
    """``--arch``, in the options of a model."""
    return getattr(cfg, "_name", None) or getattr(cfg, "arch", None) or ""


def check_model(model: Any) -> None:
    """Refuse a model that cannot be sampled from word by word.

    Args:
        model: not wrapped.

    Raises:
        EsrlError: naming what it lacks, and what to choose.
    """
    decoder, lack = getattr(model, "decoder", None), _lack_of(type(model))
    if not lack and decoder is None:
        lack = "has no decoder"
    if not lack and not isinstance(decoder, FairseqIncrementalDecoder):
        lack = f"has a decoder ({type(decoder).__name__}) without incremental decoding"
    _refuse_lack(type(model).__name__, lack)
    if getattr(decoder, "adaptive_softmax", None) is not None:
        # fairseq computes it in place, so that stage two could not differentiate it.
        raise EsrlError(
            "models with --adaptive-softmax-cutoff are not supported: train one without it"
        )


def _lack_of(kind: type) -> str:
    """Why models of this class do not write word by word; empty if nothing speaks against it."""
    return next((why for base, why in AT_ONCE if issubclass(kind, base)), "")


def _refuse_lack(model: str, lack: str) -> None:
    if lack:
        raise EsrlError(
            f"criterion esrl samples word by word, but {model} {lack}: choose {AUTOREGRESSIVE}, or "
            "transformer_lm with --task esrl_language_modeling"
        )


def what_failed(error: Exception) -> str:
    """An error that is not ours, in one line: its kind, text and place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    return f"{text}; {Path(place.filename).name}, line {place.lineno}"


MIXED = "mixes pairs of languages, of which --criterion esrl trains one"
PAIR = "choose --task esrl_translation with --source-lang and --target-lang, one pair a run"
TASKS: list[tuple[type, str, str]] = [
    (
        LanguageModelingTask,
        "has no prompts, which --criterion esrl needs",
        "choose --task esrl_language_modeling",
    ),
    (
        TranslationLevenshteinTask,
        "is for models that do not write word by word, as --criterion esrl samples",
        f"choose --task esrl_translation and {AUTOREGRESSIVE}",
    ),
    (MultilingualTranslationTask, MIXED, PAIR),
    (TranslationMultiSimpleEpochTask, MIXED, PAIR),
    (OnlineBackTranslationTask, MIXED, PAIR),
    (SimulTextToTextTask, "writes while it reads, which --criterion esrl cannot train", PAIR),
    (TranslationTask, "", ""),
    (
        FairseqTask,
        "is not of those that --criterion esrl can train",
        "choose --task esrl_translation for texts from texts, or --task esrl_language_modeling for "
        "continuations of prompts",
    ),
]
"""Kinds of tasks: why they cannot be trained (empty: they can), and what to choose instead. The
first kind that a task is of counts."""


def check_task(task: FairseqTask) -> None:
    """Refuse a task other than fairseq's translation and what is derived from it, which has batches
    of one pair of languages to sample for.

    Raises:
        EsrlError: naming the task, and what to choose.
    """
    name = next((name for name, kind in TASK_REGISTRY.items() if kind is type(task)), "")
    _refuse_task(name or type(task).__name__, type(task))


def _refuse_task(name: str, task: type) -> None:
    why, mend = next((why, mend) for kind, why, mend in TASKS if issubclass(task, kind))
    if why:
        raise EsrlError(f"--task {name} {why}: {mend}")


def check_languages(cfg: Any) -> None:
    """Refuse languages that have no word of their own in the dictionary of multilingual BART.

    Args:
        cfg: options of the task.

    Raises:
        EsrlError: naming the option, and what to give.
    """
    known = (cfg.langs or "").split(",")  # as fairseq reads them
    if not any(known):
        raise EsrlError(
            "--langs is missing: give all languages of the model's pretraining in their order, "
            "such as --langs ar_AR,de_DE,en_XX"
        )
    for option, lang in (("source", cfg.source_lang), ("target", cfg.target_lang)):
        if lang not in known:
            raise EsrlError(
                f"--{option}-lang is {lang}{did_you_mean(lang, known)}, which is not one of "
                f"--langs {cfg.langs}: its data have to be named as the model names languages "
                f"(fairseq-preprocess --{option}-lang), and --langs has to have all of them"
            )


def check_choices(given: Namespace) -> None:
    """Refuse a command line whose task or architecture criterion esrl cannot train, before either
    is built: fairseq may fail there first.

    Args:
        given: what the parser found at first sight.

    Raises:
        EsrlError: see :func:`check_task` and :func:`check_arch`.
    """
    if getattr(given, "criterion", None) != "esrl":
        return
    task, model = TASK_REGISTRY[given.task], ARCH_MODEL_REGISTRY.get(getattr(given, "arch", None))
    if not hasattr(task, "start_sampling"):  # tasks of ours
        _refuse_task(given.task, task)
    if model is None:
        return
    if getattr(model, "needs_own_task", False) and not hasattr(task, "start_sampling"):
        raise EsrlError(
            f"--task {given.task} does not know the text of --arch {given.arch}: choose --task "
            "esrl_translation"
        )
    check_arch(given)
    if issubclass(model, FairseqLanguageModel) and not issubclass(task, LanguageModelingTask):
        raise EsrlError(
            f"--arch {given.arch} is a language model, which --task {given.task} cannot train: "
            "choose --task esrl_language_modeling, or an --arch with an encoder"
        )
