"""No code in a checkpoint's configuration: fairseq evaluates some of its settings as Python."""

from __future__ import annotations

import ast
import operator
import re
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from esrl_fairseq.errors import EsrlError

EVALUATED = frozenset(
    # attention, softmax, embeddings
    "xformers_att_config encoder_xformers_att_config decoder_xformers_att_config "
    "adaptive_softmax_cutoff adaptive_input_cutoff character_filters "
    # lstm, fconv, fconv_lm, fconv_self_att, lightconv, laser
    "encoder_layers decoder_layers encoder_attention decoder_attention self_attention "
    "gated_attention project_input downsample pretrained decoder_zero_init "
    "encoder_kernel_size_list decoder_kernel_size_list encoder_glu decoder_glu weight_softmax "
    # speech
    "conv_feature_layers conv_aggregator_layers feature_encoder_spec conv_enc_config "
    "conv_dec_config vggblock_enc_config transformer_enc_config transformer_dec_config "
    "transformer_context transformer_sampling wer_args "
    # tasks, optimizers, devices
    "left_pad_source left_pad_target extra_data extra_lang_pairs langtoks sampling_weights "
    "adam_betas adamax_betas lamb_betas adafactor_eps pipeline_balance pipeline_devices "
    "pipeline_encoder_balance pipeline_encoder_devices pipeline_decoder_balance "
    "pipeline_decoder_devices".split()
)
"""Settings that fairseq and its examples give to ``eval``, in any section. A test compares them
with fairseq's source."""

LONGEST = 10_000
"""Characters of a setting, items of a list: no model has more."""

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
"""What checkpoints hold beside literals: ``[(512, 3)] * 20``."""

REFERENCE = re.compile(r"\$\{(?:\w+\.)*(\w+)\}")
"""A setting that is another one's value."""
LOOKED_UP = re.compile(r"\$\{[^{}]*:|\$\{[^}]*\$\{")
"""One that a function finds, such as ``${oc.env:HOME}``, or may find: ``${${model.a}:HOME}``."""
COPY = re.compile(r"\(\w*\)")
"""Part of a folder's name, as in ``run(2)/data``, or a call that says nothing."""

CODE = re.compile("python:|comet")
"""In the names of rewards that run code of a file: COMET's library unpickles its models."""
WITHHELD = "of the checkpoint: "
"""Stands before such a reward that the user did not name."""


def refuse_code(path: str, state: Any, own: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint whose configuration holds Python other than plain values, before
    anything is built from it.

    Args:
        path: of the file, for the message.
        state: what the file holds, with ``cfg`` or, of old ones, ``args``.
        own: settings that the user gave in place of the file's (``--model-overrides``): they may
            hold what fairseq allows.

    Raises:
        EsrlError: naming the first such setting, and what it holds.
    """
    typed = {value for _, value in _settings(own or {}) if isinstance(value, str)}
    for part in ("cfg", "args"):
        for names, value in _settings(state.get(part)):
            if isinstance(value, str) and value in typed:
                continue
            why = _why_not(names, value, of_model=part == "args" or names[:1] == ("model",))
            if why:
                shown = textwrap.shorten(repr(value), 100, placeholder=" …")
                raise EsrlError(
                    f"{path} is refused, and nothing of it was run: its configuration has in "
                    f"{'.'.join(names)} the {why} {shown}; get the checkpoint from whom you trust, "
                    "or choose another"
                )


def withhold_reward(state: Any, own: Mapping[str, Any] | None = None) -> None:
    """Mark a reward that is code: ``fairseq-validate`` builds the criterion of the checkpoint.

    Training, which has its own criterion, and generation do not see the mark.

    Args:
        state, own: see :func:`refuse_code`.
    """
    typed = (own or {}).get("reward")
    sections: list[Any] = [getattr(state.get("cfg"), "criterion", None), state.get("args")]
    for section in sections:
        reward = getattr(section, "reward", None)
        if isinstance(reward, str) and CODE.search(reward) and reward != typed:
            section.reward = WITHHELD + reward


def refuse_withheld(reward: str) -> None:
    """Refuse what :func:`withhold_reward` marked.

    Raises:
        EsrlError: it says how to have the reward nevertheless.
    """
    if reward.startswith(WITHHELD):
        name = reward.removeprefix(WITHHELD)
        raise EsrlError(
            f"the reward {name} runs code, and it is the checkpoint that names it: if you trust "
            f"it, name it yourself, with --criterion esrl --reward {name}"
        )


def _settings(configuration: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each setting with its names, sections first, as it stands; whatever the sections are."""
    open_ones: list[tuple[tuple[str, ...], Any]] = [((), configuration)]
    seen = set()  # a pickle may hold circles
    kept = []  # so that no two sections have one id
    while open_ones:
        names, value = open_ones.pop()
        if isinstance(value, (DictConfig, ListConfig)):
            value = OmegaConf.to_container(value, resolve=False)
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, (Mapping, list, tuple, set)):
            if (id(value), names[-1:]) in seen:
                continue
            seen.add((id(value), names[-1:]))
            kept.append(value)
            if isinstance(value, Mapping):
                open_ones += [((*names, str(key)), item) for key, item in value.items()]
            else:
                open_ones += [(names, item) for item in value]
        else:
            yield names, value


def _why_not(names: tuple[str, ...], value: Any, of_model: bool) -> str:
    """What a setting holds that it may not, in words; empty where it may stand."""
    text = isinstance(value, str)
    if text and LOOKED_UP.search(value):
        return "look-up"
    if names and names[-1] in EVALUATED:
        if text and not is_plain(value):
            return "Python"
        if not isinstance(value, (str, int, float, type(None))):
            return "object"  # eval takes bytes, and whatever has a buffer
    return "Python" if text and of_model and calls(value) else ""


def is_plain(text: str) -> bool:
    """Whether an evaluated setting comes to a plain value: literals, and lists that are repeated or
    put together."""
    reference = REFERENCE.fullmatch(text)
    if reference:
        return reference[1] in EVALUATED  # and is looked at itself
    if not text.strip() or text == MISSING:
        return True
    if len(text) > LONGEST:
        return False
    try:
        _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _value(node: ast.expr) -> Any:
    """What an expression of literals comes to.

    Raises:
        ValueError: it has something else in it, or is too long.
    """
    if not isinstance(node, ast.BinOp):
        if isinstance(node, (ast.List, ast.Tuple)):
            return [_value(item) for item in node.elts]
        return ast.literal_eval(node)
    left, right = _value(node.left), _value(node.right)
    apply = ARITHMETIC.get(type(node.op))
    if apply is None:
        raise ValueError("no arithmetic of lists")
    if isinstance(node.op, ast.Mult):
        many, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(many, (list, str, bytes)) and len(many) * int(times) > LONGEST:
            raise ValueError("too long")
    return apply(left, right)


def calls(text: str) -> bool:
    """Whether a setting is Python that calls something: models outside of fairseq may evaluate
    it."""
    if "(" not in text:
        return False
    try:
        tree = ast.parse(COPY.sub("", text.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))
