"""Options of rewards as the command line gives them."""

from __future__ import annotations

import inspect
from typing import Any

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.build import is_switch, leaf_names, registered
from esrl_fairseq.rewards.function import PREFIX

Options = dict[str, dict[str, Any]]
FORM = "write --reward-options REWARD.OPTION=VALUE,…, such as chrf.word_order=2"
WORDS = {"true": True, "false": False, "none": None}
SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def command_line_options(
    name: str, options: str | None, model: str | None, device: str | None
) -> Options:
    """What ``part_options`` of `build_reward` is for the reward `name`.

    Args:
        name: the reward, as ``--reward`` takes it.
        options: ``--reward-options``: ``reward.option=value``, separated by commas. Values are
            numbers, true, false or none where they look so, otherwise text; of a switch they are
            true, yes, on, 1, or their opposites.
        model: ``--reward-model``, for the one part of `name` that takes a model and has none.
        device: ``--reward-device``, for all parts that take a device and have none.

    Raises:
        EsrlError: `options` cannot be read or names another reward, or no part, or more than one,
            takes the model.
    """
    parts = [part for part in leaf_names(name) if not part.startswith(PREFIX)]
    result = _read(options or "", name, parts)
    if model is not None:
        takers = [part for part in parts if _lacks(part, "model", result)]
        if len(takers) != 1:
            several = ",".join(f"{part}.model=…" for part in takers)
            raise EsrlError(
                f"--reward-model {model} is for one reward that needs a model, but --reward {name} "
                + (f"has several: give --reward-options {several}" if takers else "has none")
            )
        result[takers[0]]["model"] = model
    if device is not None:
        takers = [part for part in parts if _lacks(part, "device", result)]
        if not takers:
            raise EsrlError(
                f"--reward-device {device} is for rewards with a model, but --reward {name} has "
                "none: leave it out"
            )
        for part in takers:
            result[part]["device"] = device
    return result


def _read(text: str, name: str, parts: list[str]) -> Options:
    result: Options = {part: {} for part in parts}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        part, dot, option = key.strip().partition(".")
        if not (equals and dot and option):
            raise EsrlError(f"--reward-options {text}: cannot read {item!r}; {FORM}")
        if part not in result:
            raise EsrlError(
                f"--reward-options {text}: {part!r} is no part of --reward {name}"
                f"{did_you_mean(part, parts)}; {FORM}"
            )
        value = value.strip()
        switch = is_switch(registered(part), option) and value.lower() in SWITCH
        result[part][option] = SWITCH[value.lower()] if switch else _value(value)
    return result


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _lacks(part: str, option: str, given: Options) -> bool:
    """Whether the reward takes the option and was not given it."""
    return option in inspect.signature(registered(part)).parameters and option not in given[part]
