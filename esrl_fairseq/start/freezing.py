"""Parts of a model that a run does not train: ``--freeze-encoder``, ``--freeze-embeddings``.

A frozen parameter requires no gradient. So fairseq gives it to no optimizer, distributed wrappers
do not wait for it, and autograd keeps nothing of an encoder that has no other ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

OPTIONS = ("freeze_encoder", "freeze_embeddings")


def freeze_parts(model: Any, cfg: Any) -> None:
    """Freeze what ``cfg``, options of the criterion, says; say how much that is.

    Args:
        model: not wrapped, and not in an optimizer yet.

    Raises:
        EsrlError: there is no such part, or nothing is left to train.
    """
    encoder, embeddings = (bool(getattr(cfg, option, False)) for option in OPTIONS)
    if not (encoder or embeddings):
        return
    total, others = trained(model), []
    if encoder:
        part = encoder_of(model)
        if part is None:
            raise EsrlError(f"--freeze-encoder: {type(model).__name__} has no encoder")
        if shared := held_outside(model, part):
            others.append(
                f"--freeze-encoder freezes {', '.join(shared)}, too: the encoder shares it"
            )
        part.requires_grad_(False)
    if embeddings:
        found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        if not found:
            raise EsrlError(f"--freeze-embeddings: {type(model).__name__} has no embeddings")
        if tied_to_output(model, found):
            others.append(
                "--freeze-embeddings freezes the output projection, too: it is tied to them"
            )
        for module in found:
            module.requires_grad_(False)
    left = trained(model)
    if not left:
        raise EsrlError("nothing is left to train: leave out --freeze-encoder or the like")
    logger.info("frozen: %s of %s parameters", f"{total - left:,}", f"{total:,}")
    for sentence in others:
        logger.info(sentence)


def encoder_of(model: Any) -> Any:
    """The module with the encoder's weights; None without an encoder."""
    own = getattr(model, "encoder", None)
    if own is None or any(True for _ in own.parameters()):
        return own
    # Of Hugging Face: the decoder holds the whole model.
    inner = (module for module in model.modules() if hasattr(module, "get_encoder"))
    return next((module.get_encoder() for module in inner), None)


def trained(model: nn.Module) -> int:
    """Numbers in the model that are trained."""
    return sum(x.numel() for x in model.parameters() if x.requires_grad)


def held_outside(model: nn.Module, part: nn.Module) -> list[str]:
    """Names that parameters of ``part`` have in other parts of the model."""
    own = {id(x) for x in part.parameters()}
    inside = {name for name, module in model.named_modules() if module is part}
    return [
        name
        for name, x in model.named_parameters(remove_duplicate=False)
        if id(x) in own and not any(name.startswith(f"{place}.") for place in inside)
    ]


def tied_to_output(model: Any, embeddings: Iterable[nn.Module]) -> bool:
    """Whether the projection to the vocabulary is one of the embeddings."""
    own = {id(x) for module in embeddings for x in module.parameters()}
    if getattr(getattr(model, "decoder", None), "share_input_output_embed", False):
        return True
    return any(
        id(x) in own
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for x in module.parameters(recurse=False)
    )


def refuse_other_parts(here: Any, there: Any, what: str) -> None:
    """Refuse an optimizer's state of a run that trained other parts.

    Args:
        here, there: options of the criterion, of the run and of the checkpoint.
        what: the checkpoint, in words.

    Raises:
        EsrlError: naming the option that differs.
    """
    for option in OPTIONS:
        own, other = (bool(getattr(cfg, option, False)) for cfg in (here, there))
        if own != other:
            name = f"--{option.replace('_', '-')}"
            words = ("with", "without") if other else ("without", "with")
            raise EsrlError(
                f"{what} was trained {words[0]} {name}, and this run is {words[1]} it, so that its "
                "optimizer's state is of other parameters: start from its parameters alone, with "
                "--finetune-from-model and another --save-dir"
            )
