"""What was meant by an option or a choice that a command does not know."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Collection
from typing import Any

from fairseq import models, registry, tasks
from fairseq.dataclass.utils import gen_parser_from_dataclass

from esrl_fairseq.core.suggest import closest

PACKAGE = __name__.split(".")[0]


def explain(message: str, parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> str:
    """One of argparse's messages, with what was meant where that can be known.

    Args:
        parser: of the command.
        chosen: values of options that bring others (``task``, ``criterion``, ``arch``, …).
    """
    unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unknown:
        words = [word.split("=")[0] for word in unknown[1].split() if word.startswith("-")]
        hints = [hint(word, parser, chosen) for word in words]
        return "; ".join([message, *filter(None, hints)])
    wrong = re.match(r"argument (\S+): invalid choice: '([^']*)'", message)
    action = wrong and parser._option_string_actions.get(wrong[1].split("/")[0])
    if wrong and action:
        choice = closest(wrong[2], map(str, action.choices or ()))
        return f"{wrong[0]}: did you mean {choice}?" if choice else message
    return message


def hint(option: str, parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> str:
    """What brings an option that ``parser`` does not know, or which was meant; empty if unknown."""
    owners = all_owners()
    if option in owners:
        return f"{option} {belongs_to(owners[option], chosen)}"
    ours = {name for name, found in owners.items() if any(cls_is_ours(x) for _, _, x in found)}
    known = ours.union(parser._option_string_actions)
    parts = words(option)
    close = [name for name in known if parts < words(name)]  # --encoder-heads
    meant = close[0] if len(close) == 1 else closest(option.replace("_", "-"), known, cutoff=0.75)
    if not meant:
        return ""
    if meant in parser._option_string_actions:
        return f"did you mean {meant}?"
    return f"did you mean {meant}, which {belongs_to(owners[meant], chosen)}?"


def words(option: str) -> set[str]:
    """Those of ``--an-option``."""
    return set(re.findall(r"[^\W_]+", option))


Owner = tuple[str, str, Any]
"""Option, choice and class: what brings further options, such as ``--task esrl_translation``."""


def belongs_to(owners: Collection[Owner], chosen: dict[str, Any]) -> str:
    """Which choice brings an option, this package's before fairseq's."""
    ordered = sorted(owners, key=lambda owner: not cls_is_ours(owner[2]))
    kind = ordered[0][0]
    names = [name for flag, name, _ in ordered if flag == kind]
    others = f" (or {', '.join(names[1:3])}{', …' if len(names) > 3 else ''})" if names[1:] else ""
    now = chosen.get(kind.replace("-", "_"))
    given = f"--{kind} is {now}" if now else f"--{kind} is not given"
    return f"belongs to --{kind} {names[0]}{others}, but {given}"


def cls_is_ours(cls: Any) -> bool:
    """Whether a class is one of this package."""
    return bool(cls.__module__.split(".")[0] == PACKAGE)


def all_owners() -> dict[str, list[Owner]]:
    """Every option that some task, model, criterion and so on brings, and which do."""
    found: dict[str, list[Owner]] = {}
    registries = {"task": tasks.TASK_REGISTRY, "arch": models.MODEL_REGISTRY}
    others = {name.replace("_", "-"): r["registry"] for name, r in registry.REGISTRIES.items()}
    for kind, classes in {**registries, **others}.items():
        for name, cls in classes.items():
            for option in options_of_class(cls):
                found.setdefault(option, []).append((kind, name, cls))
    return found


def options_of_class(cls: Any) -> list[str]:
    """The options that it adds to a command line."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    with contextlib.suppress(Exception):  # of classes by others, which a hint shall not stumble on
        if hasattr(cls, "add_args"):
            cls.add_args(parser)
        elif getattr(cls, "__dataclass", None):
            gen_parser_from_dataclass(parser, getattr(cls, "__dataclass")())  # noqa: B009
    return list(parser._option_string_actions)
