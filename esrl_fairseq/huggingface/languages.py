"""Languages of multilingual models: their codes, and the tokens that choose what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library

MULTILINGUAL = ("m2m_100", "mbart", "plbart")
"""Model types whose tokenizers may have languages."""


@dataclass(frozen=True)
class Start:
    """Tokens of a language before a text; None where the model's own come there.

    Attributes:
        first: what the decoder starts with.
        forced: what follows.
    """

    first: int | None = None
    forced: int | None = None


def codes_of(tokenizer: Any) -> dict[str, int]:
    """The tokens of a tokenizer's languages, by their codes; none if it knows no languages."""
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100, whose tokens are not the codes
        return {code: tokenizer.get_lang_id(code) for code in tokenizer.lang_code_to_token}
    if getattr(tokenizer, "lang_code_to_id", None):
        return dict(tokenizer.lang_code_to_id)
    names = ("extra_special_tokens", "additional_special_tokens")  # before and from version 5 on
    tokens: list[Any] = next((x for x in (getattr(tokenizer, n, None) for n in names) if x), [])
    known = {tokenizer.mask_token, tokenizer.unk_token}
    found = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in tokens}
    return {code: token for code, token in found.items() if code not in known}


def chosen(where: str, given: str | None, side: str, ending: str | None = None) -> str | None:
    """The code of a language of the model at ``where``; None if it knows none.

    Args:
        given: of the option; None takes ``ending`` where that is a code.
        side: of the option, ``source`` or ``target``.
        ending: what the names of data files end with.

    Raises:
        EsrlError: the model knows no such language, or none at all; or none is chosen.
    """
    option = f"--hf-{side}-lang"
    codes = codes_of(library.load_tokenizer(where))
    if given and not codes:
        raise EsrlError(f"the tokenizer of {where} knows no languages: leave out {option} {given}")
    code = given or ending
    if not codes or code in codes:
        return code if codes else None
    some = ", ".join(list(codes)[:5])
    hint = did_you_mean(code, list(codes)) if code else ""
    if given:
        raise EsrlError(
            f"the model of {where} knows no language {given!r}{hint}: {option} takes one of its "
            f"{len(codes)}, such as {some}"
        )
    why = "" if ending is None else f", and {ending!r} is none of them{hint}"
    raise EsrlError(
        f"the model of {where} knows {len(codes)} languages{why}: choose one with {option}, such "
        f"as {some}"
    )


def start_of(where: str, model_type: str, code: str | None) -> Start:
    """Tokens with which texts of a language begin.

    Args:
        model_type: of the model at ``where``.
        code: see :func:`chosen`.
    """
    if code is None:
        return Start()
    tokenizer = library.load_tokenizer(where)
    token = codes_of(tokenizer)[code]
    # mBART-25 starts with the language; whoever has it before the text is forced to write it.
    if model_type != "m2m_100" and not puts_first(tokenizer, token, code):
        return Start(first=token)
    return Start(forced=token)


def puts_first(tokenizer: Any, token: int, code: str) -> bool:
    """Whether texts of the language begin with its token, as the tokenizer writes them."""
    tokenizer.tgt_lang = code
    return tokenizer(text_target="")["input_ids"][:1] == [token]
