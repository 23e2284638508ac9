"""What the options of an architecture come to, whatever way they were given."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from fairseq import models
from fairseq.models.transformer import TransformerConfig, TransformerModelBase
from fairseq.models.transformer.transformer_config import (
    DecoderConfig,
    EncDecBaseConfig,
    QuantNoiseConfig,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SECTIONS = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}
"""Of a transformer in a config file; on the command line they are prefixes."""

IMPLIED = {
    "share_all_embeddings": "share_decoder_input_output_embed",
    "merge_src_tgt_embed": "share_decoder_input_output_embed",
}
"""Options that set others while the model is built."""

OF_TASKS = "add_bos_token"
"""An option of tasks that language models learn with: what each text begins with."""


def name_of(options: Any) -> str:
    """The ``--arch`` of ``cfg.model``; empty where none is known."""
    known = as_dictionary(options)
    return str(known.get("_name") or known.get("arch") or "")


def model_class(arch: str) -> Any:
    """The class of ``--arch``; None if it is not registered."""
    return models.ARCH_MODEL_REGISTRY.get(arch)


def as_dictionary(options: Any) -> dict[str, Any]:
    """``cfg.model`` of any kind; what it takes from parts of the configuration that are not known
    is left out."""
    if isinstance(options, DictConfig):
        try:
            found: Any = OmegaConf.to_container(options, resolve=True)
        except OmegaConfBaseException:  # another part is not there
            found = OmegaConf.to_container(options, resolve=False)
    else:
        found = vars(options)
    return {name: value for name, value in found.items() if not from_elsewhere(value)}


def from_elsewhere(value: Any) -> bool:
    """Whether a default is another option's value."""
    return isinstance(value, str) and value.startswith("${")


@functools.cache
def command_line(arch: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that the model of ``arch`` adds to the command line: those with a default, which
    come before what the architecture sets, and what the others are where nobody says anything."""
    parser = argparse.ArgumentParser(
        add_help=False, conflict_handler="resolve", argument_default=argparse.SUPPRESS
    )
    model_class(arch).add_args(parser)
    first, last = {}, {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:
            first[action.dest] = action.default
        else:  # a flag that is not given is the other of its two values
            last[action.dest] = not action.const if isinstance(action.const, bool) else None
    return first, last


@functools.cache
def defaults(arch: str) -> dict[str, Any]:
    """The options of an architecture, with what they are where neither user nor architecture says
    anything: those that its model adds to the command line, and those that it sets itself."""
    cls = model_class(arch)
    first, last = command_line(arch)
    own = argparse.Namespace(**first)
    with contextlib.suppress(AttributeError):  # one of fairseq's reads what it did not set
        models.ARCH_CONFIG_REGISTRY[arch](own)
    found = {**dict.fromkeys(vars(own)), **last, **first}
    if issubclass(cls, TransformerModelBase):
        found.update(flat(vars(TransformerConfig())))
    dataclass = getattr(cls, "__dataclass", None)
    if dataclass is not None:
        fields = as_dictionary(dataclass())
        elsewhere = {field.name for field in dataclasses.fields(dataclass)} - fields.keys()
        found = {name: value for name, value in found.items() if name not in elsewhere} | fields
    if issubclass(cls, models.FairseqLanguageModel):
        found[OF_TASKS] = False
    return {name: value for name, value in found.items() if not name.startswith("_")}


def flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options with those of sections under their names on the command line."""
    found = {}
    for name, value in options.items():
        if name in SECTIONS:
            fields = SECTIONS[name].__dataclass_fields__.keys() - {"_name"}
            given = value.items() if isinstance(value, Mapping) else ()  # else fairseq's default
            section = SECTIONS[name](**{key: x for key, x in given if key in fields})
            found.update({f"{name}_{key}": getattr(section, key) for key in fields})
        else:
            found[name] = value
    return found


def resolve(arch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of ``arch``, where the user gives some (or all). Empty where ``arch`` is not
    registered, or some are missing that others need."""
    if model_class(arch) is None:
        return {}
    top = {name: value for name, value in given.items() if name not in SECTIONS}
    namespace = argparse.Namespace(**{**command_line(arch)[0], **top})
    try:
        models.ARCH_CONFIG_REGISTRY[arch](namespace)
    except Exception:  # lengths that do not match, …
        return {}
    found = {**defaults(arch), **vars(namespace)}
    # As fairseq does it: what sections say is not seen by the architecture's function.
    found.update(flat({name: value for name, value in given.items() if name in SECTIONS}))
    for option, other in IMPLIED.items():
        if found.get(option) and other in found:
            found[other] = True
    return {name: found[name] for name in defaults(arch)}


def options_of(options: Any) -> dict[str, Any]:
    """All options of the architecture in ``cfg.model``, of a run or a checkpoint: those that it
    does not hold have their default. See :func:`resolve`."""
    return resolve(name_of(options), as_dictionary(options))


def same(one: Any, other: Any) -> bool:
    """Whether two values of an option are spellings of one."""
    return plain(one) == plain(other)


def plain(value: Any) -> Any:
    """A value without its spelling: ``"[3, 7]"``, ``"3,7"`` and ``[3, 7]`` are one."""
    if isinstance(value, str):
        try:
            return plain(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return "".join(value.split()) or None
    if isinstance(value, (list, tuple)):
        return tuple(plain(x) for x in value)
    return value
