"""Memory of one GPU by part, for pretrained translation models and what of them is trained.

Parameters are counted in models without weights, by the very code that freezes and adapts them.
With --measure, the model makes an update here, and what it leaves is counted. See
benchmarks/README.md.
"""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import common
import torch
from torch import nn

from esrl_fairseq.huggingface import adapters, library
from esrl_fairseq.monitoring.memory import Batch, Shape, stage_one, stage_two, training_state
from esrl_fairseq.start.freezing import freeze_parts

NLLB = dict(
    vocab_size=256206, d_model=1024, encoder_attention_heads=16, decoder_attention_heads=16,
    max_position_embeddings=1024, activation_function="relu", scale_embedding=True,
    encoder_layerdrop=0.0, decoder_layerdrop=0.0,
)  # fmt: skip
SIZES = {
    "nllb-600m": dict(NLLB, encoder_layers=12, decoder_layers=12, encoder_ffn_dim=4096,
                      decoder_ffn_dim=4096),
    "nllb-1.3b": dict(NLLB, encoder_layers=24, decoder_layers=24, encoder_ffn_dim=8192,
                      decoder_ffn_dim=8192),
    "small": dict(NLLB, vocab_size=8000, d_model=256, encoder_attention_heads=4,
                  decoder_attention_heads=4, encoder_layers=3, decoder_layers=3,
                  encoder_ffn_dim=1024, decoder_ffn_dim=1024),
}  # fmt: skip
"""Configurations of the family M2M100: the distilled NLLB-200 models, and one to measure."""

WAYS = ("all", "embeddings frozen", "encoder frozen", "lora")
PRECISIONS = {
    "fp32": ("fp32", 4),
    "bf16": ("half", 2),
    "memory-efficient-bf16": ("memory_efficient", 2),
}
"""fairseq's options: as monitoring/memory.py takes them, and bytes of a weight."""
COLUMNS = (
    "params", "trained", "precision", "million", "million_trained", "weights_gb", "training_gb",
    "kl_gb", "stage_one_gb", "stage_two_gb", "total_gb", "measured_gb", "reason",
)  # fmt: skip


class Whole(nn.Module):
    """A model with fairseq's interface, as far as freezing looks at it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.encoder = model, model.get_encoder()


def make(size: str, way: str, rank: int, device: str) -> Any:
    """A model of that size, of which that is trained."""
    config = library.transformers().AutoConfig.for_model("m2m_100", **SIZES[size])
    with torch.device(device):
        model = library.transformers().AutoModelForSeq2SeqLM.from_config(config)
        if way == "lora":
            cfg = adapters.LoraConfig(lora_rank=rank)
            adapters.inject(model, cfg, size)
        else:
            parts = SimpleNamespace(
                freeze_encoder=way == "encoder frozen", freeze_embeddings=way == "embeddings frozen"
            )
            freeze_parts(Whole(model), parts)
    return model


def count(model: Any, trained: bool) -> int:
    return sum(x.numel() for x in model.parameters() if x.requires_grad == trained)


def row_of(model: Any, size: str, way: str, precision: str, options: Any) -> common.Row:
    """What an update needs, in GB (10⁹ bytes)."""
    kind, width = PRECISIONS[precision]
    of, frozen = count(model, True), count(model, False)
    config = model.config
    shape = Shape(
        of, config.decoder_layers, config.encoder_layers, config.d_model, config.d_model,
        config.decoder_ffn_dim, config.vocab_size, width, way != "encoder frozen",
    )  # fmt: skip
    rows, length = options.inputs * options.k[0], options.length + 1
    piece = max(min(16384, 2**28 // config.vocab_size), length)
    batch = Batch(options.inputs, length, length, rows, rows, piece)
    parts = {
        "weights_gb": (of + frozen) * width,
        "training_gb": training_state(of, "adam", kind) - of * width,
        "kl_gb": 0 if way == "lora" else (of + frozen) * width,
        "stage_one_gb": stage_one(shape, batch),
        "stage_two_gb": stage_two(shape, batch),
    }
    total = sum(parts.values()) - min(parts["stage_one_gb"], parts["stage_two_gb"])
    row = {"params": size, "trained": way, "precision": precision}
    row["million"], row["million_trained"] = round((of + frozen) / 1e6, 1), round(of / 1e6, 1)
    return {**row, **{name: part / 1e9 for name, part in parts.items()}, "total_gb": total / 1e9}


def measure(size: str, way: str, rank: int) -> float:
    """GB of all tensors that an update in float32 leaves: weights and buffers, gradients, Adam, and
    the frozen model of the KL where there is a second one."""
    model = make(size, way, rank, "cpu")
    models = [model] if way == "lora" else [model, copy.deepcopy(model)]
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad])
    ids = torch.arange(8).view(1, 8) + 4
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [x for model in models for x in (*model.parameters(), *model.buffers())]
    tensors += [x.grad for x in tensors if x.grad is not None]
    tensors += [x for state in optimizer.state.values() for x in state.values()]
    storages = [x.untyped_storage() for x in tensors]
    return sum({x.data_ptr(): x.nbytes() for x in storages}.values()) / 1e9


def main() -> None:
    parser = common.make_parser(__doc__, k=(8,))
    parser.set_defaults(params=["nllb-600m", "nllb-1.3b"], inputs=32, length=40)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--measure", action="store_true", help="an update here, in float32")
    options = parser.parse_args()
    common.check_options(options)
    if unknown := set(options.params) - set(SIZES):
        sys.exit(f"--params has {' '.join(sorted(unknown))}, and not of {' '.join(SIZES)}")
    head, rows = common.header(options), []
    common.print_header(head)
    for size in options.params:
        for way in WAYS:
            model = make(size, way, options.rank, "meta")
            for precision in ["fp32"] if options.measure else PRECISIONS:
                rows.append(row_of(model, size, way, precision, options))
                if options.measure:
                    rows[-1]["measured_gb"] = measure(size, way, options.rank)
    common.finish(rows, head, COLUMNS, options.json)


if __name__ == "__main__":
    main()
