"""Refusals of models and tasks that cannot be trained on what they write word by word."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from fairseq.models import FairseqIncrementalDecoder, FairseqMultiModel
from fairseq.models.nat.fairseq_nat_model import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.online_backtranslation import OnlineBackTranslationTask
from fairseq.tasks.simultaneous_translation import SimulTextToTextTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from esrl_fairseq.errors import EsrlError

OTHER_ARCH = "choose an autoregressive --arch such as transformer, bart_base or lstm"
OTHER_LANGUAGE_MODEL = "or transformer_lm with --task esrl_language_modeling"


def check_model(model: Any) -> None:
    """Refuse a model that cannot be sampled from word by word.

    Args:
        model: not wrapped.

    Raises:
        EsrlError: naming what it lacks, and what to choose.
    """
    decoder, lacks = getattr(model, "decoder", None), ""
    if isinstance(model, FairseqMultiModel):
        lacks = "is several models, one for each pair of languages"
    elif decoder is None:
        lacks = "has no decoder"
    elif isinstance(model, FairseqNATModel):
        lacks = "is not autoregressive"
    elif not isinstance(decoder, FairseqIncrementalDecoder):
        lacks = f"has a decoder ({type(decoder).__name__}) without incremental decoding"
    if lacks:
        raise EsrlError(
            f"criterion esrl samples word by word, but {type(model).__name__} {lacks}: "
            f"{OTHER_ARCH}, {OTHER_LANGUAGE_MODEL}"
        )
    if getattr(decoder, "adaptive_softmax", None) is not None:
        # fairseq computes it in place, so that stage two could not differentiate it.
        raise EsrlError(
            "models with --adaptive-softmax-cutoff are not supported: train one without it"
        )


def what_failed(error: Exception) -> str:
    """An error that is not ours, in one line: its kind, text and place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}; {Path(place.filename).name}, line {place.lineno}"


PAIR = (
    "choose --task esrl_translation with --source-lang and --target-lang, one pair of languages "
    "a run"
)
TEXT = (
    "choose --task esrl_translation for texts from texts, or --task esrl_language_modeling for "
    "continuations of prompts"
)
UNABLE: list[tuple[type, str, str]] = [
    (LanguageModelingTask, "has no prompts", "choose --task esrl_language_modeling"),
    (
        TranslationLevenshteinTask,
        "is for models that are not autoregressive",
        f"choose --task esrl_translation, and {OTHER_ARCH.removeprefix('choose ')}",
    ),
    (MultilingualTranslationTask, "mixes pairs of languages", PAIR),
    (TranslationMultiSimpleEpochTask, "mixes pairs of languages", PAIR),
    (OnlineBackTranslationTask, "makes its own pairs from monolingual data", PAIR),
    (SimulTextToTextTask, "is for models that read while they write", PAIR),
]
"""Kinds of tasks that cannot be trained: why, and what to choose instead."""


def check_task(task: FairseqTask) -> None:
    """Refuse a task without batches of sources and targets, one pair of languages, to sample for.

    fairseq's translation, and what is derived from it, has them.

    Raises:
        EsrlError: naming the task, and what to choose.
    """
    why, mend = "has no sources to write texts for", TEXT
    for kind, reason, instead in UNABLE:
        if isinstance(task, kind):
            why, mend = reason, instead
            break
    else:
        if isinstance(task, TranslationTask):
            return
    name = next((name for name, kind in TASK_REGISTRY.items() if kind is type(task)), "")
    raise EsrlError(
        f"--task {name or type(task).__name__} {why}, which criterion esrl needs: {mend}"
    )
