"""Low-rank adapters (LoRA, Hu et al. 2022) in models of transformers, by peft (extra ``lora``).

The model's own weights are frozen, and beside a linear layer W there is α/r · B·A, of rank r, with
B = 0 at the beginning. Checkpoints hold adapters alone, and a fingerprint of the weights that they
are for. With its adapters off, the model is what it was before training.
"""

import contextlib
import importlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from torch import Tensor, nn

from esrl_fairseq.core.fingerprint import fingerprint
from esrl_fairseq.errors import EsrlError

ADAPTED = "adapted"
"""Name of the buffer with the fingerprint of what the adapters are for, 32 bytes."""
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
"""Of the names of their weights."""


@dataclass
class LoraConfig(FairseqDataclass):
    """Options of architectures of Hugging Face."""

    lora_rank: int = field(
        default=0,
        metadata={
            "help": "train adapters of this rank beside the model's linear layers, and nothing "
            "else of it (0: train the model itself)"
        },
    )
    lora_alpha: Optional[float] = field(
        default=None,
        metadata={"help": "adapters count alpha / rank times (default: twice --lora-rank)"},
    )
    lora_targets: str = field(
        default="all-linear",
        metadata={
            "help": "which layers get adapters: all-linear (all but the output projection), or "
            "ends of their names, separated by commas, such as q_proj,v_proj"
        },
    )


def peft() -> Any:
    """The library.

    Raises:
        EsrlError: it cannot be imported.
    """
    try:
        return importlib.import_module("peft")
    except Exception as error:  # libraries that do not fit together raise all kinds
        raise EsrlError(
            f"--lora-rank needs peft, which cannot be imported ({error}): "
            "pip install 'peft>=0.17' (the extra 'lora')"
        ) from error


def attach(model: Any, cfg: Any, where: str) -> Optional[Tensor]:
    """Give ``model`` adapters, if ``cfg`` asks for some, and freeze all else.

    It draws random numbers from where torch is, and leaves it there.

    Args:
        model: of transformers, in float32.
        cfg: see :class:`LoraConfig`.
        where: the model's name, for messages.

    Returns:
        The fingerprint of its weights, uint8 ``[32]``; None without adapters.

    Raises:
        EsrlError: peft is missing, or an option does not fit.
    """
    if not cfg.lora_rank:
        plain = LoraConfig()
        for name in ("lora_alpha", "lora_targets"):
            if getattr(cfg, name, None) not in (None, getattr(plain, name)):
                option = f"--{name.replace('_', '-')}"
                raise EsrlError(f"{option} is for adapters: give --lora-rank, too, or leave it out")
        return None
    found, shared = fingerprint(model.state_dict()), tied(model)
    with torch.random.fork_rng(devices=[]):
        inject(model, cfg, where)
    if any(is_adapter(model.get_submodule(name)) for name in shared):
        raise EsrlError(
            f"--lora-targets {cfg.lora_targets} has embeddings that {where} shares with its output "
            "projection, or with another part: leave them out"
        )
    return torch.frombuffer(bytearray.fromhex(found), dtype=torch.uint8)


def inject(model: Any, cfg: Any, where: str) -> None:
    """Put adapters into ``model``, whatever device it is on, and freeze all else.

    Args:
        model, cfg, where: see :func:`attach`.
    """
    library = peft()
    alpha = 2.0 * cfg.lora_rank if cfg.lora_alpha is None else cfg.lora_alpha
    if cfg.lora_rank < 0 or alpha <= 0:
        raise EsrlError("--lora-rank is 0 or more, and --lora-alpha above 0")
    names = [name.strip() for name in cfg.lora_targets.split(",") if name.strip()]
    targets: Any = names
    left_out = None
    if names in ([], ["all-linear"]):
        # peft leaves out what the library calls the output projection, which FSMT's is not.
        targets, left_out = "all-linear", tied(model) or None
    try:
        config = library.LoraConfig(
            r=cfg.lora_rank,
            lora_alpha=alpha,
            target_modules=targets,
            exclude_modules=left_out,
            lora_dropout=0.0,
        )
        library.inject_adapter_in_model(config, model)
    except Exception as error:
        why = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        raise EsrlError(f"--lora-targets {cfg.lora_targets} does not fit {where}: {why}") from error


def tied(model: nn.Module) -> list[str]:
    """Names of embeddings and linear layers whose weights are also those of another."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Embedding, nn.Linear)):
            names.setdefault(id(module.weight), []).append(name)
    return [name for same in names.values() if len(same) > 1 for name in same]


def is_adapter(module: Any) -> bool:
    """Whether peft has put itself in the place of a layer."""
    return hasattr(module, "base_layer") and hasattr(module, "enable_adapters")


def belongs(name: str) -> bool:
    """Whether a weight is an adapter's."""
    return any(part in name.split(".") for part in PARTS)


def keep_alone(model: nn.Module, base: Tensor, where: str) -> None:
    """Have checkpoints of ``model``, of fairseq, hold its adapters and ``base`` alone.

    Args:
        base: see :func:`attach`.
        where: what the adapters are for, for messages.
    """
    model.register_buffer(ADAPTED, base)
    whole = False

    def leave_out(_: Any, state: dict[str, Any], prefix: str, *__: Any) -> None:
        if whole:
            return
        for name in list(state):
            if name.startswith(prefix) and not belongs(name) and name != prefix + ADAPTED:
                del state[name]

    def fill_in(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        try:
            check_base(state.get(prefix + ADAPTED), base, "the checkpoint", where)
        except EsrlError as error:  # fairseq replaces any Exception in loading by its own
            raise SystemExit(str(error)) from None
        nonlocal whole
        whole = True
        for name, value in module.state_dict().items():
            if not belongs(name):
                state.setdefault(prefix + name, value)
        whole = False

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_pre_hook(fill_in)


def check_base(given: Optional[Tensor], own: Tensor, what: str, where: str) -> None:
    """Refuse adapters for another model.

    Raises:
        EsrlError: ``what``, as it is named, holds none, or these are not for ``where``.
    """
    if given is None:
        raise EsrlError(
            f"{what} holds no adapters, which this run trains (--lora-rank): write its model to a "
            "folder with python -m esrl_fairseq.huggingface export, and give that as --hf-model"
        )
    if not torch.equal(given.cpu(), own.cpu()):
        raise EsrlError(
            f"the adapters in {what} are for another model than {where}: give theirs as --hf-model"
        )


@contextlib.contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """``model`` without its adapters."""
    layers: list[Any] = [module for module in model.modules() if is_adapter(module)]
    required = [(x, x.requires_grad) for layer in layers for x in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, was in required:  # peft has them trained, also where a part is frozen
            parameter.requires_grad_(was)


def merge(model: Any, state: Mapping[str, Tensor], cfg: Any, what: str, where: str) -> None:
    """Give ``model``, of transformers, the adapters of ``state`` for good, as part of its weights.

    Args:
        state: names and weights of the adapters, as in the model, and :data:`ADAPTED`.
        cfg: options of their training.
        what, where: the checkpoint and the model, for messages.

    Raises:
        EsrlError: they are for another model.
    """
    base = attach(model, cfg, where)
    assert base is not None
    check_base(state.get(ADAPTED), base, what, where)
    adapters = {name: x for name, x in state.items() if belongs(name)}
    if model.load_state_dict(adapters, strict=False).unexpected_keys:
        raise EsrlError(f"the adapters in {what} do not fit {where}: give theirs as --hf-model")
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if is_adapter(module):
                module.merge(safe_merge=True)
                setattr(parent, name, module.get_base_layer())
    model.requires_grad_(True)
