"""What ``generate`` adds to a sequence-to-sequence model: a policy's fixed parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.languages import Start

NOT_FOLLOWED = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "begin_suppress_tokens": ([],),
    "guidance_scale": (1,),
}
"""Settings of a search that change scores, and their values that do not."""


@dataclass(frozen=True)
class Policy:
    """What does not depend on weights.

    Attributes:
        start: tokens that the decoder reads before a text, the start token first; the others are
            forced, and not scored.
        ends: tokens that end a text.
        forbidden: tokens that have no probability.
    """

    start: tuple[int, ...]
    ends: tuple[int, ...]
    forbidden: tuple[int, ...]


def setting(model: Any, name: str) -> Any:
    """One of ``generate``'s settings, which old models have in their configuration."""
    found = getattr(model.generation_config, name, None)
    return getattr(model.config, name, None) if found is None else found


def policy_of(model: Any, where: str, language: Start) -> Policy:
    """The policy of the model at ``where``.

    Args:
        language: tokens of the language that it writes, which come before the model's own.

    Raises:
        EsrlError: the model has no token to start with, or forbids sequences of tokens.
    """
    start = language.first
    for name in ("decoder_start_token_id", "bos_token_id"):
        start = setting(model, name) if start is None else start
    if start is None:
        raise EsrlError(
            f"the model of {where} has no token that its decoder starts with: set "
            "decoder_start_token_id in its generation_config.json"
        )
    forced = language.forced
    if forced is None and language.first is None:
        forced = setting(model, "forced_bos_token_id")
    ends = library.end_tokens(model)
    return Policy(
        (_one(start), *([] if forced is None else [_one(forced)])),
        tuple(ends),
        tuple(sorted(_forbidden(model, where) - set(ends))),
    )


def _one(token: Any) -> int:
    return int(token[0] if isinstance(token, (list, tuple)) else token)


def _forbidden(model: Any, where: str) -> set[int]:
    words = setting(model, "bad_words_ids") or []
    several = next((word for word in words if len(word) > 1), None)
    if several is not None:
        raise EsrlError(
            f"the model of {where} forbids the tokens {several} in a row (bad_words_ids), and here "
            "only single ones can be forbidden: take it out of its generation_config.json"
        )
    return {word[0] for word in words if word} | set(setting(model, "suppress_tokens") or [])


def not_followed(model: Any) -> list[str]:
    """Settings of ``generate`` that have no part in the policy, with their values."""
    found = {name: setting(model, name) for name in NOT_FOLLOWED}
    return [
        f"{name} {value}"
        for name, value in found.items()
        if value is not None and value not in NOT_FOLLOWED[name]
    ]
