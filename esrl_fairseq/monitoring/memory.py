"""How much memory a run will take, from the model's shape and the batches' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esrl_fairseq.rescoring.row_scorer import default_max_tokens, positions_at_once
from esrl_fairseq.sampling import branching, fixed_rows
from esrl_fairseq.sampling.conditioning import is_decoder_only

STATES = {"adafactor": 0, "sgd": 0, "nag": 1, "adagrad": 1}
"""Numbers that an optimizer keeps for each parameter, where it is not Adam's two."""
LOOKED_AT = 1000
"""Batches of an epoch that are looked at, evenly spread: the largest is among or near them."""


@dataclass(frozen=True)
class Shape:
    """Of a Transformer.

    Attributes:
        layers, encoder_layers: of the decoder, and of the encoder, 0 without one.
        width, cached, ffn: numbers a position has between layers, as a key, and inside the
            feed-forward network.
        size: bytes of a weight or an activation.
        parameters: those that are trained.
    """

    parameters: int
    layers: int
    encoder_layers: int
    width: int
    cached: int
    ffn: int
    words: int
    size: int = 4
    encoder_trained: bool = True


@dataclass(frozen=True)
class Batch:
    """What an update has at once.

    Attributes:
        source: tokens of the longest input.
        length: positions of the longest sample, those of its prompt and its EOS included.
        rows: decoded at once.
        scored: of these, projected to the vocabulary at once.
        piece: positions of which stage two computes the gradient at once.
    """

    inputs: int
    source: int
    length: int
    rows: int
    scored: int
    piece: int


def stage_one(shape: Shape, batch: Batch) -> int:
    """Bytes of stage one, where all samples reach their limit.

    layers · 2 · cached · (rows · length + inputs · source): keys and values of self-attention, and
    of cross-attention (none without an encoder); scored · words · 3 · 4 bytes: scores, their
    softmax and its sums.
    """
    positions = batch.rows * batch.length
    if shape.encoder_layers:
        positions += batch.inputs * batch.source
    cache = shape.layers * 2 * shape.cached * positions * shape.size
    return cache + batch.scored * shape.words * 3 * 4


def stage_two(shape: Shape, batch: Batch) -> int:
    """Bytes of stage two and backward, beside parameters, gradients and optimizer.

    What autograd keeps of a position in a layer: 8 · width + 4 · cached + 2 · ffn with
    self-attention, and 4 · width more with cross-attention; of piece positions in the decoder and
    of inputs · source in the encoder, if it is trained. piece · words · 3 numbers of at least 4
    bytes are scores, their softmax and its gradient. The sum of the pieces' gradients stands beside
    the newest one.
    """
    own = 8 * shape.width + 4 * shape.cached + 2 * shape.ffn
    cross = 4 * shape.width if shape.encoder_layers else 0
    decoder = shape.layers * batch.piece * (own + cross)
    encoder = shape.encoder_layers * batch.inputs * batch.source * own * shape.encoder_trained
    head = batch.piece * shape.words * 3 * max(shape.size, 4)
    return (decoder + encoder + shape.parameters) * shape.size + head


def training_state(parameters: int, optimizer: str, precision: str) -> int:
    """Bytes of parameters, their gradients and the optimizer.

    A weight has 2 bytes in half precision, 4 otherwise, and a gradient of as many; fairseq's
    ``fp16`` and ``bf16`` keep both in 4 bytes beside, the memory-efficient forms do not. The
    optimizer's numbers have 4.

    Args:
        precision: ``fp32`` (``--amp`` is that, too), ``half`` or ``memory_efficient``.
    """
    weights = {"fp32": 8, "half": 12, "memory_efficient": 4}[precision]
    return parameters * (weights + 4 * STATES.get(optimizer, 2))


def shape_of(model: Any, words: int) -> Shape | None:
    """Of a fairseq model (not wrapped) or one of Hugging Face; None if it is of another kind."""
    first = next(model.parameters())
    parameters = sum(x.numel() for x in model.parameters() if x.requires_grad)
    size = first.element_size()
    config = getattr(getattr(model.decoder, "model", None), "config", None)
    try:
        if config is not None:
            heads = config.num_attention_heads
            keys = getattr(config, "num_key_value_heads", None) or heads
            width, ffn = config.hidden_size, config.intermediate_size
            layers = config.num_hidden_layers
            return Shape(parameters, layers, 0, width, width * keys // heads, ffn, words, size)
        layer = model.decoder.layers[0]
        width = layer.self_attn.embed_dim
        encoder = 0 if is_decoder_only(model) else len(model.encoder.layers)
        layers, ffn = len(model.decoder.layers), layer.fc1.out_features
        trained = bool(encoder) and any(x.requires_grad for x in model.encoder.parameters())
        return Shape(parameters, layers, encoder, width, width, ffn, words, size, trained)
    except (AttributeError, TypeError, IndexError):
        return None


def precision_of(common: Any) -> str:
    """As :func:`training_state` takes it, from fairseq's options."""
    if common.memory_efficient_fp16 or common.memory_efficient_bf16:
        return "memory_efficient"
    return "half" if common.fp16 or common.bf16 else "fp32"


def batches_of(trainer: Any, model: Any, batches: Sequence[Sequence[int]]) -> list[Batch]:
    """Sizes of some of an epoch's batches.

    Args:
        model: the trainer's, not wrapped.
        batches: ids of each batch's inputs.
    """
    task, cfg = trainer.task, trainer.cfg
    on_device = trainer.device.type != "cpu"
    dataset, options = task.datasets[cfg.dataset.train_subset], task.options
    most = fixed_rows.ROWS_AT_ONCE if on_device else branching.rows_at_once(model.decoder)
    most_tokens = trainer.get_criterion().cfg.max_sampled_tokens
    most_tokens = most_tokens or default_max_tokens(trainer.device)
    words = len(task.target_dictionary)
    piece = positions_at_once(trainer.device, words, True, most_tokens)
    found = []
    step = max(len(batches) // LOOKED_AT, 1)
    for ids in [batches[-1], *batches[::step]]:
        sizes = (dataset.size(int(i)) for i in ids)
        source = max(int(size[0] if isinstance(size, tuple) else size) for size in sizes)
        length = int(options.sample_max_len_a * source + options.sample_max_len_b) + 1
        if is_decoder_only(model):
            length += source
        rows = min(len(ids) * options.num_samples, most)
        scored = rows if on_device else min(rows, branching.SCORED_AT_ONCE)
        found.append(Batch(len(ids), source, length, rows, scored, max(piece, length)))
    return found


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes at least, and in words.

    Attributes:
        least: what is known; of models of other kinds the stages' is not.
    """

    least: int
    words: str


def memory_line(trainer: Any, model: Any, batches: Sequence[Sequence[int]]) -> str:
    """See :func:`estimate`, in a sentence."""
    return estimate(trainer, model, batches).words


def estimate(trainer: Any, model: Any, batches: Sequence[Sequence[int]]) -> Estimate:
    """The memory that a run takes.

    Args:
        model: the trainer's, not wrapped.
        batches: see :func:`batches_of`.
    """
    cfg, task = trainer.cfg, trainer.task
    parameters = sum(x.numel() for x in model.parameters() if x.requires_grad)
    frozen = sum(x.numel() * x.element_size() for x in model.parameters() if not x.requires_grad)
    name = getattr(cfg.optimizer, "_name", None) or "adam"
    state = training_state(parameters, name, precision_of(cfg.common)) + frozen
    text = f"memory, estimated: {state / 1e9:.2g} GB for parameters, gradients and optimizer"
    shape = shape_of(model, len(task.target_dictionary))
    if shape is None or not len(batches):
        return Estimate(state, f"{text}; the stages' is not known for this model")
    sizes = batches_of(trainer, model, batches)
    largest = max(sizes, key=lambda batch: stage_one(shape, batch))
    first, second = stage_one(shape, largest), max(stage_two(shape, batch) for batch in sizes)
    return Estimate(
        state + max(first, second),
        f"{text}; beside it up to {first / 1e9:.2g} GB in stage one "
        f"({largest.rows:,} rows of {largest.length:,} tokens at once) and {second / 1e9:.2g} GB "
        f"in stage two ({largest.piece:,} tokens at once)",
    )
