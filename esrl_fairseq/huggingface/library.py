"""What is loaded by transformers, with one sentence where that fails."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from esrl_fairseq import compat
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.hub import hub_or_cache


@dataclass(frozen=True)
class Kind:
    """What an architecture of ours takes.

    Attributes:
        arch: its name.
        what: its models, in words.
        loader: transformers' class that loads them.
        types: their model types.
        task: the task that trains them.
    """

    arch: str
    what: str
    loader: str
    types: tuple[str, ...]
    task: str


CAUSAL = Kind(
    "hf_causal_lm",
    "a causal LM",
    "AutoModelForCausalLM",
    # Their logits are a projection of the last layer's states, and nothing beside.
    ("llama", "mistral", "qwen2", "qwen3"),
    "esrl_language_modeling",
)
SEQ2SEQ = Kind(
    "hf_seq2seq",
    "a sequence-to-sequence model",
    "AutoModelForSeq2SeqLM",
    # See :mod:`esrl_fairseq.huggingface.families`.
    (
        *("bart", "blenderbot", "blenderbot-small", "fsmt", "m2m_100", "marian", "mbart", "mt5"),
        *("pegasus", "plbart", "t5", "umt5"),
    ),
    "esrl_translation",
)
KINDS = (CAUSAL, SEQ2SEQ)
FROM_5 = ("fsmt",)
"""Model types that version 4 of the library cannot decode with a cache."""


def transformers() -> Any:
    """The library.

    Raises:
        EsrlError: it cannot be imported, for whatever reason: libraries that do not fit together
            raise all kinds of errors.
    """
    compat.hide_torchaudio_that_does_not_load()
    try:
        return importlib.import_module("transformers")
    except Exception as error:
        raise EsrlError(
            f"models of Hugging Face need transformers, which cannot be imported ({error}): "
            "pip install 'transformers>=4.57' gguf accelerate (the extra 'hf')"
        ) from error


def locate(where: str) -> tuple[str, dict[str, str]]:
    """Folder or name, and further arguments of ``from_pretrained``: where a GGUF file is named,
    its folder and the file."""
    if where.endswith(".gguf"):
        folder, file = os.path.split(where)
        return folder or ".", {"gguf_file": file}
    return where, {}


@contextlib.contextmanager
def _loading(what: str, where: str) -> Iterator[None]:
    """Around the code that loads; draws no random numbers."""
    if where.endswith(".gguf") and os.path.isdir(os.path.dirname(where) or "."):
        if not os.path.isfile(where):
            raise EsrlError(f"there is no file {where}: give the path of a GGUF file")
    try:
        with torch.random.fork_rng(devices=[]), hub_or_cache(locate(where)[0]):
            yield
    except Exception as error:  # whatever libraries and files lead to
        why = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        raise EsrlError(
            f"the {what} of {where} cannot be loaded by transformers ({type(error).__name__}: "
            f"{why}): give the folder, GGUF file or hub name of a model with its tokenizer; "
            "without network, download it before"
        ) from error


def load_config(where: str, what: str = "configuration") -> Any:
    """The configuration of the model at ``where``; ``what`` is being loaded.

    Raises:
        EsrlError: it cannot be loaded.
    """
    name, file = locate(where)
    library = transformers()
    with _loading(what, where):
        return library.AutoConfig.from_pretrained(name, **file)


def load_settings(where: str) -> Any:
    """What of a model :func:`end_tokens` and the like ask for: its ``config`` and its
    ``generation_config``, without weights.

    Raises:
        EsrlError: they cannot be loaded.
    """
    config, library = load_config(where), transformers()
    with _loading("generation_config.json", where):
        try:
            generation = library.GenerationConfig.from_pretrained(where)
        except OSError:  # there is none, as beside old models
            generation = library.GenerationConfig.from_model_config(config)
    return SimpleNamespace(config=config, generation_config=generation)


def kind_of(where: str) -> Kind:
    """The kind of the model at ``where``.

    Raises:
        EsrlError: no architecture of ours takes it, or its configuration cannot be loaded.
    """
    found = load_config(where).model_type
    for kind in KINDS:
        if found in kind.types:
            return kind
    ours = " and ".join(f"{', '.join(kind.types)} (--arch {kind.arch})" for kind in KINDS)
    raise EsrlError(f"the model of {where} is of the kind {found}, but taken are {ours} only")


def refuse_other_kinds(found: str, where: str, kind: Kind) -> None:
    """Refuse a model that ``kind`` does not take.

    Args:
        found: the model's type.

    Raises:
        EsrlError: naming the architecture that does, if there is one; or the library is too old.
    """
    if found in kind.types:
        version = transformers().__version__
        if found in FROM_5 and int(version.split(".")[0]) < 5:
            raise EsrlError(
                f"the model of {where} is of the kind {found}, which needs transformers 5, and not "
                f"{version}: pip install 'transformers>=5'"
            )
        return
    other = next((x for x in KINDS if found in x.types), None)
    mend = "" if other is None else f": choose --arch {other.arch} with --task {other.task}"
    raise EsrlError(
        f"the model of {where} is of the kind {found}, but --arch {kind.arch} takes "
        f"{', '.join(kind.types)} only{mend}"
    )


def load_model(where: str, attention: str | None = None, kind: Kind = CAUSAL) -> Any:
    """The model at ``where``, in float32 on the CPU; draws no random numbers.

    Args:
        where: a folder, a GGUF file or a hub name.
        attention: transformers' ``attn_implementation``; None leaves it the choice.
        kind: what it has to be.

    Raises:
        EsrlError: it cannot be loaded, or is of another kind.
    """
    library = transformers()
    name, file = locate(where)
    if not file:  # of GGUF files configurations are slow to read
        refuse_other_kinds(load_config(where, "model").model_type, where, kind)
    chosen: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if file and hasattr(library, "GgufConfig"):
        # Without it, versions that know it may leave weights packed, which cannot be trained.
        chosen["quantization_config"] = library.GgufConfig(dequantize=True)
    with _loading("model", where):
        model, about = getattr(library, kind.loader).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **file, **chosen
        )
    refuse_other_kinds(model.config.model_type, where, kind)
    missing = sorted(about["missing_keys"])
    if missing:
        raise EsrlError(
            f"the model of {where} has no weights {textwrap.shorten(', '.join(missing), 200)}: "
            "choose a complete one"
        )
    if not end_tokens(model):
        raise EsrlError(
            f"the model of {where} has no end-of-text token, so that no sample would end: set "
            "eos_token_id in its config.json"
        )
    return model


def cache_argument(decoder: Any) -> str:
    """The name of the argument with which ``decoder`` gets its cache: transformers renamed it in
    version 5, and takes the old name until 5.40, with a warning."""
    names = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def encoder_decoder_cache(config: Any) -> Any:
    """An empty cache of keys and values of a decoder, and of its source."""
    library = transformers()
    parts = (library.DynamicCache(config=config) for _ in range(2))
    return library.EncoderDecoderCache(*parts)


def checkpoint_layers(model: Any) -> None:
    """In training mode, have the layers of ``model`` computed again in the backward pass."""
    # transformers 5 has both names, and 6 the first alone.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def end_tokens(model: Any) -> list[int]:
    """Ids that end a text; empty if there are none."""
    for config in (model.generation_config, model.config):
        found = config.eos_token_id
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def start_token(model: Any) -> int:
    """Id that begins a text: that of models without one is what ends the text before."""
    found = model.config.bos_token_id
    return end_tokens(model)[0] if found is None else int(found)


@functools.cache
def load_tokenizer(where: str) -> Any:
    """The tokenizer beside the model at ``where``, loaded once.

    Raises:
        EsrlError: it cannot be loaded.
    """
    name, file = locate(where)
    library = transformers()
    with _loading("tokenizer", where):
        return library.AutoTokenizer.from_pretrained(name, **file)


def vocabulary_size(where: str) -> int:
    """Words that the model at ``where`` scores, of which its tokenizer may use fewer.

    Raises:
        EsrlError: its configuration cannot be loaded.
    """
    return int(load_config(where).vocab_size)
