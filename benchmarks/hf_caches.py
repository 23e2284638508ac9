"""Launches of a causal LM's step by the kind of its cache, on a pretended GPU.

See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import common
import torch

try:
    from pretended_device import PretendedDevice, move, move_module
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache
except ImportError as error:
    sys.exit(f"{error}: pip install -e '.[hf]'")
from pretended_rules import Cost, total

from esrl_fairseq.huggingface.library import cache_argument

COLUMNS = ("cache", "layers", "rows", "step", *Cost._fields)
ROOM = 64
"""Positions that the static cache has."""
CACHES: dict[str, Any] = {
    "dynamic": DynamicCache,
    "static": lambda config: StaticCache(config=config, max_cache_len=ROOM),
}


def main() -> None:
    """One row a kind: its last step."""
    parser = common.bare_parser(__doc__)
    add = parser.add_argument
    add("--layers", type=int, default=6, help="of a random model")
    add("--rows", type=int, default=512, help="that are decoded")
    add("--steps", type=int, default=30, help="that are taken, the last of which counts")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    parser.set_defaults(device="cpu", dtype="fp32", checkpoint=None, threads=1)
    options = parser.parse_args()
    if not 1 <= options.steps <= ROOM:
        parser.error(f"--steps must be from 1 to {ROOM}")
    head = common.header(options)
    common.print_header(head)
    rows = [{"cache": name, **last_step(options, name)} for name in CACHES]
    common.finish(rows, head, COLUMNS, options.json)


def last_step(options: argparse.Namespace, name: str) -> common.Row:
    """Counts of the last step."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_attention_heads=8,
        num_hidden_layers=options.layers,
    )  # fmt: skip
    model = move_module(LlamaForCausalLM(config).eval())
    ids = move(torch.zeros(options.rows, 1, dtype=torch.long))
    with PretendedDevice() as device, torch.no_grad():
        cache = CACHES[name](config=config)
        for _ in range(options.steps):
            device.events.clear()
            given = {cache_argument(model.base_model): cache, "use_cache": True}
            model.base_model(input_ids=ids, **given)
    counts = total(event.cost for event in device.events)
    return {
        "layers": options.layers,
        "rows": options.rows,
        "step": options.steps,
        **counts._asdict(),
    }


if __name__ == "__main__":
    main()
