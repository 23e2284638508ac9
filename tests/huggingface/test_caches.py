"""The caches of causal LMs in stage one, against transformers' own."""

from types import SimpleNamespace

import pytest
import torch
from tiny_causal_lm import save, transformers

from esrl_fairseq.huggingface.caches import RowCache, RowLayer, position_bytes
from esrl_fairseq.huggingface.library import cache_argument, load_model
from esrl_fairseq.sampling.branching import POSITION_BYTES, ROWS_AT_ONCE, rows_at_once

ROWS, WINDOW = 7, 3
ORDERS = ([0, 0, 1, 1, 1, 2], [5, 1, 2, 0], [0, 1, 2, 3], [3, 3, 0, 2, 2, 1, 1], [6, 0], [1])
"""Rows that go on after each step, of those of the step before; at first there are three."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    special = {"llama": {}, "mistral": {"sliding_window": WINDOW}}
    return {
        kind: load_model(str(save(root / kind, kind, **more))) for kind, more in special.items()
    }


def steps(config):
    """Keys and values of each step's rows in all layers, at random."""
    draw, rows = torch.Generator().manual_seed(1), 3
    width = config.hidden_size // config.num_attention_heads
    for order in (None, *ORDERS):
        rows = rows if order is None else len(order)
        shape = rows, config.num_key_value_heads, 1, width
        pairs = [
            (torch.randn(shape, generator=draw), torch.randn(shape, generator=draw))
            for _ in range(config.num_hidden_layers)
        ]
        yield order, pairs


@pytest.mark.parametrize("room", [1, 4, 20])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_that_branch_end_and_move(models, kind, room):
    """The same numbers as in transformers' cache, whatever room there is at first."""
    config = models[kind].config
    cache, theirs = RowCache(config, ROWS, room), transformers.DynamicCache(config=config)
    for order, pairs in steps(config):
        if order is not None:
            cache.keep(torch.tensor(order), torch.device("cpu"))
            theirs.batch_select_indices(torch.tensor(order))
        for layer, pair in enumerate(pairs):
            found, expected = cache.inner.update(*pair, layer), theirs.update(*pair, layer)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one, other)
        assert cache.inner.get_seq_length() == theirs.get_seq_length()


def test_a_step_copies_nothing(models):
    """Layers with a window, which forget, are transformers' own."""
    cache = RowCache(models["llama"].config, ROWS, len(ORDERS) + 1)
    places = set()
    for order, pairs in steps(models["llama"].config):
        if order is not None:
            cache.keep(torch.tensor(order), torch.device("cpu"))
        for layer, pair in enumerate(pairs):
            cache.inner.update(*pair, layer)
        places.add(tuple(layer.cache.data_ptr() for layer in cache.inner.layers))
    assert len(places) == 1
    windows = RowCache(models["mistral"].config, ROWS, 4).inner.layers
    assert not any(isinstance(layer, RowLayer) for layer in windows)


def test_bytes_of_a_position(models):
    model = models["llama"]
    cache = transformers.DynamicCache(config=model.config)
    name = cache_argument(model.base_model)
    model(input_ids=torch.ones(1, 5, dtype=torch.long), **{name: cache})
    found = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert position_bytes(model) * 5 == found


@pytest.mark.parametrize(
    ("bytes_a_position", "rows"),
    [
        (0, ROWS_AT_ONCE[1]),  # not known
        (64, ROWS_AT_ONCE[1]),
        (POSITION_BYTES // 500, 500),
        (POSITION_BYTES, ROWS_AT_ONCE[0]),
    ],
)
def test_wide_models_decode_fewer_rows_at_once(bytes_a_position, rows):
    decoder = SimpleNamespace(cache_bytes=lambda length: 2 * length * bytes_a_position)
    assert rows_at_once(decoder) == rows
