"""Stage one with a compiled step: the same rows, one graph a step, few compilations.

Most tests run the step as it is, one has torch make its graph; long ones do so of every variant,
and compile.
"""

import numpy as np
import pytest
import torch
from helpers import SEED, TARGET, make_batch, make_language_model, make_model, make_prompts
from test_steps import VARIANTS, make_variant, replaced

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling import compiled, fixed_rows
from esrl_fairseq.sampling.compiled import CompiledDecoding, check_compiled
from esrl_fairseq.sampling.generation import RowSampler

COUNTS = [5, 1, 0, 3, 2, 4]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 2.0])
ONES = np.ones(6, np.float32)


@pytest.fixture
def small(monkeypatch):
    """Shapes as small as the batches of tests, so that they change."""
    monkeypatch.setattr(fixed_rows, "ROOM", 4)
    monkeypatch.setattr(fixed_rows, "LOOK_EVERY", 2)
    for name, least in (("INPUTS", 2), ("SOURCE", 2), ("ROWS", 4)):
        monkeypatch.setattr(compiled, f"LEAST_{name}", least)


@pytest.fixture
def plain(small, monkeypatch):
    """The step as it is, without torch.compile."""
    monkeypatch.setattr(compiled, "compiled", lambda function, *_: function)


class Graphs:
    """A backend of torch.compile that counts graphs, and how often each runs."""

    def __init__(self):
        self.runs = []

    def __call__(self, graph, inputs):
        place = len(self.runs)
        self.runs.append(0)

        def run(*given):
            self.runs[place] += 1
            return graph(*given)

        return run


def both(model, decoding, batch=None, counts=COUNTS, temperatures=TEMPERATURES, **limits):
    """What is sampled as on a CPU, and by ``decoding``; the model is left as it was."""
    limits = {"max_len_a": 1, "max_len_b": 5, "min_len": 1, **limits}
    sampler = RowSampler([model], TARGET, **limits)
    given = make_batch() if batch is None else batch, counts, temperatures, SEED
    expected = sampler.sample(*given)
    sampler.strategy, before = decoding.strategy, replaced(model)
    found = sampler.sample(*given)
    assert replaced(model) == before
    return expected, found


def assert_same(expected, found, atol=1e-5):
    for name, value in vars(expected[0]).items():
        assert torch.equal(getattr(found[0], name), value), name
    for name, value in vars(expected[1]).items():
        assert torch.allclose(getattr(found[1], name), value, atol=atol), name


def test_one_graph_a_step(small):
    """What was compiled for a shape is used again."""
    model, graphs = make_model().eval(), Graphs()
    decoding = CompiledDecoding(graphs)
    for counts in (COUNTS, [6] * 6):
        expected, found = both(model, decoding, counts=counts, max_len_a=0)
        assert_same(expected, found)
    shapes = len(decoding.steps)
    assert shapes == len(graphs.runs) >= 3 and min(graphs.runs) >= 2
    before = sum(graphs.runs)
    _, (rows, _) = both(model, decoding, max_len_a=0)
    steps = sum(graphs.runs) - before
    assert len(graphs.runs) == shapes  # nothing was compiled again
    assert 0 <= steps - int(rows.lengths.max()) < fixed_rows.LOOK_EVERY


@pytest.mark.parametrize("temperatures", [TEMPERATURES, ONES], ids=["tempered", "at 1"])
def test_same_rows(plain, temperatures):
    """Batches of several sizes: few and many rows of an input, caches that grow, rows that end."""
    model, decoding, longest = make_model().eval(), CompiledDecoding(), 0
    for counts in (COUNTS, [20] * 6, [1] * 6, [0, 9, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], COUNTS):
        expected, found = both(model, decoding, counts=counts, temperatures=temperatures)
        assert_same(expected, found)
        longest = max(longest, int(expected[0].lengths.max()))
    assert longest > 8 and {shape.steps for shape in decoding.steps} >= {4, 8, 16}
    assert {shape.width for shape in decoding.steps} >= {1, 32}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_stock_transformer(name, plain):
    model = make_variant(**VARIANTS[name])
    check_compiled(model)
    assert_same(*both(model, CompiledDecoding()), atol=3e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_one_graph_of_every_kind(name, small):
    model = make_variant(**VARIANTS[name])
    assert_same(*both(model, CompiledDecoding("eager"), counts=[2] * 6), atol=3e-5)


def test_without_an_encoder(plain):
    """Prompts of different lengths are read by the same graphs."""
    model, batch = make_language_model().eval(), make_batch(make_prompts())
    counts = [3] * len(batch["id"])
    ones = np.ones(len(counts), np.float32)
    assert_same(*both(model, CompiledDecoding(), batch, counts, ones))


def test_new_weights_and_other_batches(plain):
    """Nothing that was cached of an earlier batch, or of earlier weights, is used again."""
    model, decoding = make_model().eval(), CompiledDecoding()
    for ids in ([0, 1, 2, 3, 4, 5], [5, 0, 1], [2, 3, 4, 5, 0, 1]):
        counts, batch = [4] * len(ids), make_batch(ids=ids)
        assert_same(*both(model, decoding, batch, counts, ONES[: len(ids)]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.1


def test_earlier_numbers_that_are_not_finite_are_gone(plain):
    """As an overflow leaves them in what steps share."""
    model, decoding = make_model().eval(), CompiledDecoding()
    both(model, decoding)
    for memory in decoding.memory.values():
        if memory.is_floating_point():
            memory.fill_(torch.nan)
    assert_same(*both(model, decoding))


@pytest.mark.parametrize("most", [1, 4, 7])
def test_a_few_at_once(most, plain):
    sampler, batch = RowSampler([make_model().eval()], TARGET, max_len_b=5), make_batch()
    expected = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    strategy = CompiledDecoding().strategy
    sampler.strategy = strategy._replace(most_rows=lambda *_: most)
    found = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    assert torch.equal(found.tokens, expected.tokens)


def test_half_precision_and_autocast(plain):
    """Caches are of the type that attention gives."""
    model = make_model(scale=0.3).eval()
    decoding = CompiledDecoding()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = both(model, decoding, temperatures=ONES)
    assert expected[0].tokens.shape == found[0].tokens.shape
    (kind,) = {shape.cache for shape in decoding.steps}
    assert kind == torch.bfloat16
    expected, found = both(model.bfloat16(), CompiledDecoding(), temperatures=ONES)
    same = (expected[0].tokens == found[0].tokens).float().mean()
    assert same > 0.8  # rounded otherwise, some numbers fall on another word


def test_shapes_are_few():
    """At most one for each power of two."""
    assert [compiled.rounded(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert compiled.rounded(3, 16) == 16
    model = make_model().eval()
    sampler = RowSampler([model], TARGET, max_len_a=0, max_len_b=60)
    batch, found = make_batch(), set()
    encoder_out = model.encoder.forward_torchscript(batch["net_input"])
    for seed in range(50):
        counts = np.random.default_rng(seed).integers(0, 9, 6)
        draws = sampler.draws(batch, counts, 1)
        shape, inputs, places = compiled.first_shape(sampler, draws, encoder_out, False)
        assert len(set(places.tolist())) == len(places) <= shape.rows
        assert torch.equal(inputs[places // shape.width], draws.input_index)
        found.add(shape)
    assert len(found) <= 4


@pytest.mark.parametrize("arch", ["lstm", "lightconv"])
def test_other_models_are_refused(arch):
    with pytest.raises(EsrlError, match="--compile-decoding is for fairseq's own Transformer"):
        check_compiled(make_model(arch))


def test_what_cannot_be_compiled_ends_in_a_sentence(small):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    with pytest.raises(EsrlError, match="cannot compile .*no compiler here.*: leave it out"):
        both(make_model().eval(), CompiledDecoding(fails))


@pytest.mark.long
@pytest.mark.parametrize("temperatures", [TEMPERATURES, ONES], ids=["tempered", "plain"])
def test_inductor(temperatures, small):
    """Compiled by inductor with the C++ compiler."""
    model, decoding = make_model().eval(), CompiledDecoding()
    for counts in (COUNTS, [8] * 6):
        assert_same(*both(model, decoding, counts=counts, temperatures=temperatures))
