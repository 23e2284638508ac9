"""Stage one's decoder: the fast path equals the general path, equal prefixes are shared."""

import functools

import numpy as np
import pytest
import torch
from fairseq.models.transformer import TransformerDecoder
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from helpers import (
    ARCHS,
    DRAWN,
    EOS,
    PAD,
    SEED,
    TARGET,
    add_padding,
    make_batch,
    make_model,
    plain_step,
)

from esrl_fairseq.sampling import branching, draws
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import DecoderSteps, TransformerSteps, decoding_steps

COUNTS = [9, 1, 0, 6, 3, 12]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 2.0])
LONG = 20  # steps, several times the room that a growing cache begins with

VARIANTS = {
    "stock": {},
    "pre-norm": dict(encoder_normalize_before=True, decoder_normalize_before=True),
    "no final norm": dict(decoder_normalize_before=True, no_decoder_final_norm=True, seed=2),
    "learned positions": dict(encoder_learned_pos=True, decoder_learned_pos=True),
    "normalised embeddings": dict(layernorm_embedding=True),
    "embeddings not scaled": dict(no_scale_embedding=True),
    "no positions": dict(no_token_positional_embeddings=True),
    "narrow encoder": dict(encoder_embed_dim=6, encoder_ffn_embed_dim=10),
    "wide encoder": dict(encoder_embed_dim=12, encoder_attention_heads=3),
    "projections": dict(decoder_output_dim=10, share_decoder_input_output_embed=False),
    "own output matrix": dict(share_decoder_input_output_embed=False),
    "one head": dict(decoder_attention_heads=1),
    "four heads": dict(decoder_attention_heads=4),
    "three layers": dict(decoder_layers=3, activation_fn="gelu"),
    "scales": dict(scale_attn=True, scale_heads=True, scale_fc=True, scale_resids=True),
    "layer drop": dict(decoder_layerdrop=0.5),
    "checkpointed": dict(checkpoint_activations=True),
    "quantisation noise": dict(quant_noise_pq=0.5, quant_noise_pq_block_size=2),
    "no cross-attention": dict(no_cross_attention=True, seed=2),
}


def make_variant(**options):
    """make_model with every vector off its initial value too, such as zero biases; in eval mode."""
    model = make_model(**options)
    if options.get("decoder_output_dim"):  # fairseq has no option for another width of the input
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model.decoder.embed_tokens = torch.nn.Embedding(len(TARGET), 6, PAD)
            model.decoder.project_in_dim = torch.nn.Linear(6, 8, bias=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make_sampler(model, max_len_a=0, max_len_b=8, min_len=1):
    return RowSampler([model], TARGET, max_len_a=max_len_a, max_len_b=max_len_b, min_len=min_len)


def sample(model, batch=None, counts=COUNTS, temperatures=TEMPERATURES, **options):
    batch = make_batch() if batch is None else batch
    return make_sampler(model, **options).sample_rows(batch, counts, temperatures, SEED)


def same(rows, others):
    return all(
        torch.equal(getattr(rows, name), getattr(others, name))
        for name in ("tokens", "lengths", "input_index", "truncated")
    )


def replaced(model):
    """Modules with a forward of their own instead of their class's."""
    return [module for module in model.modules() if "forward" in vars(module)]


def general_only(monkeypatch):
    monkeypatch.setattr(TransformerSteps, "fits", lambda decoder: False)


def random_plan(steps, inputs, most_rows, seed=1):
    """Words to feed after each step, and now and then the rows to go on from before that."""
    draw = np.random.default_rng(seed)
    rows, plan = len(inputs), []
    for step in range(steps):
        keep = None
        if step % 3 == 2:  # fewer, more, out of order and repeated; some inputs lose all rows
            keep = torch.from_numpy(draw.integers(rows, size=draw.integers(1, most_rows + 1)))
            rows = len(keep)
        plan.append((keep, torch.from_numpy(draw.choice([*DRAWN, EOS], (rows, 1)))))
    return plan


@torch.no_grad()
def follow(kind, model, encoder_out, inputs, most_rows, plan, room=0):
    """Logits of every step."""
    found = []
    steps = kind(model, encoder_out, inputs, most_rows, room)
    previous = torch.full((len(inputs), 1), EOS)
    with steps.running():
        for keep, words in plan:
            output = steps(previous)
            found.append(steps.scores(output))
            if keep is not None:
                steps.keep(keep)
                previous = previous[keep]
            previous = torch.cat([previous, words], dim=1)
    return [x.clone() for x in found]  # fit for use outside


def both_ways(model, inputs, encoder_out=None, batch=None, steps=LONG, room=0):
    """Logits of the fast and of the general path."""
    if encoder_out is None:
        batch = make_batch() if batch is None else batch
        with torch.no_grad():
            encoder_out = model.encoder.forward_torchscript(batch["net_input"])
    most = len(inputs) + 4
    plan = random_plan(steps, inputs, most)
    return [
        torch.cat(follow(kind, model, encoder_out, inputs, most, plan, room))
        for kind in (TransformerSteps, DecoderSteps)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_fast_path_equals_the_general_path(name, monkeypatch):
    """Logits of every step, rows coming and going, and the sampled rows, for stock Transformers."""
    model = make_variant(**VARIANTS[name])
    assert TransformerSteps.fits(model.decoder)
    inputs = torch.tensor([0, 0, 0, 1, 3, 5, 5])  # none of 2 and 4
    fast, general = both_ways(model, inputs)
    assert torch.allclose(fast, general, rtol=1e-5, atol=2e-5)
    assert general.std() > 0.3
    fast = sample(model)
    general_only(monkeypatch)
    assert same(fast, sample(model)) and len(fast.lengths.unique()) > 2


@pytest.mark.parametrize("room", [1, LONG - 5, LONG - 1, LONG, LONG + 9])
def test_room_for_some_or_all_steps(room):
    """Caches that grow later or never."""
    inputs = torch.tensor([0, 3, 3, 5])
    fast, general = both_ways(make_variant(), inputs, room=room)
    assert torch.allclose(fast, general, rtol=1e-5, atol=2e-5)


def test_long_rows(monkeypatch):
    """Longer than the first cache, of sources with needless padding."""
    model, batch = make_variant(max_target_positions=64), add_padding(make_batch())
    options = dict(max_len_b=35, min_len=17)
    fast = sample(model, batch, **options)
    general_only(monkeypatch)
    assert same(fast, sample(model, batch, **options)) and fast.lengths.max() > LONG


@pytest.mark.parametrize("arch", ["fast", *ARCHS])
@torch.no_grad()
def test_steps_go_on_from_any_rows(arch):
    """In any order and number, as a pass without cache, padding or batch."""
    model, batch = make_variant(arch=arch), make_batch()
    kind = TransformerSteps if arch == "fast" else DecoderSteps
    encoder_out = model.encoder.forward_torchscript(batch["net_input"])
    inputs = torch.tensor([0, 0, 1, 3, 5])
    orders = [None, [4, 2, 0, 3, 1], [1, 1, 4], [2, 0, 1], [2, 2, 1, 0, 0, 0], [3]]
    plan, n = [], len(inputs)
    for order in orders:
        n = len(order or inputs)
        words = torch.tensor([[DRAWN[(len(plan) + r) % len(DRAWN)]] for r in range(n)])
        plan.append((None if order is None else torch.tensor(order), words))
    found = follow(kind, model, encoder_out, inputs, 6, plan)
    places, prefixes = inputs.tolist(), [[] for _ in inputs]
    for logits, (order, (_, words)) in zip(found, zip(orders, plan)):
        assert len(logits) == len(places)
        for i, prefix, own in zip(places, prefixes, logits):
            source = batch["net_input"]["src_tokens"][i]
            expected = plain_step(model, source[source.ne(PAD)][None], prefix)
            own[PAD] = -torch.inf
            assert torch.allclose(own.log_softmax(-1), expected, atol=2e-5)
        order = range(len(places)) if order is None else order
        places = [places[r] for r in order]
        prefixes = [[*prefixes[r], int(word)] for r, word in zip(order, words)]


def test_variants_are_what_they_say():
    """The options above reach the decoder."""
    decoders = {name: make_variant(**options).decoder for name, options in VARIANTS.items()}
    layer = decoders["scales"].layers[0]
    for part in (layer.c_attn, layer.attn_ln, layer.ffn_layernorm, layer.w_resid):
        assert part is not None
    assert decoders["pre-norm"].layer_norm is not None
    assert decoders["no final norm"].layer_norm is None
    assert decoders["no final norm"].layers[0].normalize_before
    assert decoders["no positions"].embed_positions is None
    assert decoders["learned positions"].embed_positions.weight.requires_grad
    assert decoders["normalised embeddings"].layernorm_embedding is not None
    assert decoders["projections"].project_in_dim is not None
    assert decoders["projections"].project_out_dim is not None
    assert decoders["wide encoder"].layers[0].encoder_attn.kdim == 12
    assert type(decoders["layer drop"].layers).__name__ == "LayerDropModuleList"
    assert "forward" in vars(decoders["checkpointed"].layers[0])
    assert decoders["quantisation noise"].layers[0].self_attn.q_proj._forward_pre_hooks


@pytest.mark.parametrize("inputs", [[4], [5, 0, 5, 2, 0, 1], [3, 3, 3], list(range(6))])
def test_any_rows_of_any_inputs(inputs):
    """One row, unsorted rows, rows of one input only, one row of each."""
    fast, general = both_ways(make_variant(), torch.tensor(inputs))
    assert torch.allclose(fast, general, rtol=1e-5, atol=2e-5)


def test_encoder_output_without_a_mask():
    """An encoder may leave out the padding mask where there is no padding."""
    model = make_variant()
    source = torch.tensor([[4, 5, EOS], [6, 4, EOS]])
    with torch.no_grad():
        encoder_out = model.encoder(source, torch.tensor([3, 3]))
    inputs = torch.tensor([0, 0, 1])
    masked, _ = both_ways(model, inputs, encoder_out)
    encoder_out["encoder_padding_mask"] = []
    fast, general = both_ways(model, inputs, encoder_out)
    assert torch.allclose(fast, general, rtol=1e-5, atol=2e-5) and torch.allclose(fast, masked)


def test_attention_without_biases():
    """Neither projection has one."""
    model = make_variant()
    for layer in model.decoder.layers:
        for attention in (layer.self_attn, layer.encoder_attn):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                getattr(attention, part).bias = None
    assert TransformerSteps.fits(model.decoder)
    fast, general = both_ways(model, torch.tensor([0, 0, 1, 4]))
    assert torch.allclose(fast, general, rtol=1e-5, atol=2e-5)


def test_the_next_batch_uses_the_new_weights(monkeypatch):
    """Nothing of the weights is kept between two batches."""
    model = make_variant()
    before = sample(model)
    with torch.no_grad():
        for parameter in model.decoder.layers.parameters():
            parameter *= 1.5
    fast = sample(model)
    general_only(monkeypatch)
    assert same(fast, sample(model)) and not same(fast, before)


def test_attention_is_replaced_only_while_sampling():
    """All attention of the decoder during the steps, no module before and after."""
    model, during = make_variant(), []
    model.decoder.register_forward_pre_hook(lambda *_: during.append(set(replaced(model))))
    sample(model)
    attention = {x for layer in model.decoder.layers for x in (layer.self_attn, layer.encoder_attn)}
    assert len(attention) == 4 and during and all(found == attention for found in during)
    assert not replaced(model)


@pytest.mark.parametrize("call", [1, 3])
def test_attention_is_restored_after_an_error(call):
    """Raised at the first step or later; sampling then goes on as before."""
    model, calls = make_variant(), []
    expected = sample(model)

    def fail(*_):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("on purpose")

    hook = model.decoder.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        sample(model)
    assert not replaced(model)
    hook.remove()
    assert same(sample(model), expected)


class OwnDecoder(TransformerDecoder):
    """Could override anything."""


class OwnLayer(TransformerDecoderLayerBase):
    """Could override anything."""


class OwnAttention(MultiheadAttention):
    """Could override anything."""


class OwnLinear(torch.nn.Linear):
    """Could override anything, as LoRA's does."""


def wrap(attention):
    attention.forward = functools.partial(attention.forward)


def set_class(module, kind):
    module.__class__ = kind


EQUAL = {  # not stock any more, but of the same numbers
    "decoder's class": lambda decoder: set_class(decoder, OwnDecoder),
    "layer's class": lambda decoder: set_class(decoder.layers[1], OwnLayer),
    "attention's class": lambda decoder: set_class(decoder.layers[1].self_attn, OwnAttention),
    "projection's class": lambda decoder: set_class(decoder.layers[0].self_attn.v_proj, OwnLinear),
    "self-attention's forward": lambda decoder: wrap(decoder.layers[1].self_attn),
    "cross-attention's forward": lambda decoder: wrap(decoder.layers[0].encoder_attn),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_changed_parts_take_the_general_path(name):
    """Whatever has been changed is used, and left as it was."""
    model = make_variant()
    fast = sample(model)
    EQUAL[name](model.decoder)
    assert not TransformerSteps.fits(model.decoder)
    own = {module: vars(module)["forward"] for module in replaced(model)}
    assert len(own) == ("forward" in name)
    assert same(sample(model), fast)
    assert own == {module: vars(module)["forward"] for module in replaced(model)}


OTHER = {
    "lstm": dict(arch="lstm"),
    "lightconv": dict(arch="lightconv"),
    "cross+self-attention": dict(cross_self_attention=True),
    "cross+self-attention only": dict(cross_self_attention=True, no_cross_attention=True),
}


@pytest.mark.parametrize("name", [*OTHER, "zero attention"])
def test_other_decoders_take_the_general_path(name):
    """They give well-formed rows."""
    model = make_variant(**OTHER.get(name, {}))
    if name == "zero attention":
        model.decoder.layers[1].encoder_attn.add_zero_attn = True
    encoder_out = model.encoder.forward_torchscript(make_batch()["net_input"])
    steps = decoding_steps(model, encoder_out, torch.arange(6), 6, 0)
    assert not TransformerSteps.fits(model.decoder) and type(steps) is DecoderSteps
    check_rows(sample(model))
    assert not replaced(model)


def check_rows(rows):
    assert torch.bincount(rows.input_index, minlength=6).tolist() == COUNTS
    for tokens, length in zip(rows.tokens.tolist(), rows.lengths.tolist()):
        assert tokens[length - 1] == EOS and set(tokens[: length - 1]) <= set(DRAWN)
        assert 2 <= length and set(tokens[length:]) <= {PAD}


def test_attention_with_more_keys_does_not_fit():
    """bias_k and add_zero_attn, in either attention of any layer."""
    for part in ("self_attn", "encoder_attn"):
        for option in ("add_bias_kv", "add_zero_attn"):
            decoder = make_model(decoder_layers=3).decoder
            assert TransformerSteps.fits(decoder)
            setattr(decoder.layers[2], part, MultiheadAttention(8, 2, **{option: True}))
            assert not TransformerSteps.fits(decoder)


def test_branches_lead_back_to_their_parents():
    """Every row goes on from its own place; two rows share a place iff they did and still agree."""
    draw = np.random.default_rng(0)
    seen = []
    for _ in range(300):
        size, words = int(draw.integers(1, 80)), int(draw.integers(1, 5))
        # Each place has a row, none or several.
        rows = int(draw.integers(1, 120))
        branch = draw.integers(size, size=rows)
        if draw.random() < 0.5:  # few have ended
            branch = np.concatenate([np.arange(size)[: -int(draw.integers(1, 5))], branch])
            branch = branch if len(branch) and draw.random() < 0.5 else np.arange(size)
        branch = torch.from_numpy(draw.permutation(branch))
        chosen = torch.from_numpy(draw.integers(words, size=len(branch)))
        parents, new = draws.branches(branch, chosen, size)
        used = len(branch.unique())
        pairs = set(zip(branch.tolist(), chosen.tolist()))
        unsplit = len(pairs) == used
        seen.append(parents is None)
        assert seen[-1] == (unsplit and used > (1 - draws.COMPACT_AT) * size)
        if parents is None:
            assert torch.equal(new, branch)
        else:
            assert torch.equal(parents[new], branch)
            assert sorted(new.unique().tolist()) == list(range(len(parents)))
            stay = [p for p in branch.unique().tolist() if p < len(parents)]
            assert parents[stay].tolist() == stay  # so that little is copied
            assert len(parents) == len(pairs)
        assert len(set(zip(branch.tolist(), chosen.tolist(), new.tolist()))) == len(pairs)
    assert 30 < sum(seen) < 270


@pytest.mark.parametrize("share", [0.0, draws.COMPACT_AT])
@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_equal_prefixes_are_decoded_once(arch, share, monkeypatch):
    """The decoder's batch has one place for each prefix of live rows, and few others."""
    monkeypatch.setattr(draws, "COMPACT_AT", share)
    counts, temperatures = [40] * 6, np.float32([0.2, 0.4, 0.6, 0.2, 1, 1])
    model, fed = make_variant(arch=arch), []
    model.decoder.register_forward_pre_hook(lambda _, args: fed.append(args[0].tolist()))
    rows = sample(model, counts=counts, temperatures=temperatures, max_len_b=8)
    assert len(fed) == int((rows.lengths - rows.truncated.long()).max()) + bool(
        rows.truncated.any()
    )
    sizes, live = [], []
    for step, places in enumerate(fed):
        prefixes = [
            (i, EOS, *tokens[:step])
            for i, tokens, length in zip(
                rows.input_index.tolist(), rows.tokens.tolist(), rows.lengths.tolist()
            )
            if length > step
        ]
        live.append(len(prefixes))
        sizes.append(len(set(prefixes)))
        expected, found = sorted(p[1:] for p in set(prefixes)), sorted(map(tuple, places))
        assert (1 - share) * len(found) <= len(expected) <= len(found)
        if not share:
            assert found == expected
    assert sizes[0] == 6 and live[0] == 240 and 6 < max(sizes) < 120


@pytest.mark.parametrize("arch", ["transformer", "lstm", "lightconv"])
def test_sharing_changes_nothing(arch, monkeypatch):
    """Each row in a place of its own gives identical rows."""
    model = make_variant(arch=arch)
    counts, temperatures = [20] * 6, np.float32([0.2, 0.4, 0.6, 0.2, 1, 1])
    options = dict(counts=counts, temperatures=temperatures, max_len_b=10)
    shared, fed = sample(model, **options), []
    model.decoder.register_forward_pre_hook(lambda _, args: fed.append(len(args[0])))
    monkeypatch.setattr(
        branching, "branches", lambda branch, chosen, size: (branch, torch.arange(len(branch)))
    )
    assert same(sample(model, **options), shared)
    assert fed == [6, *(int((shared.lengths > step).sum()) for step in range(1, len(fed)))]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_a_few_at_once_change_nothing(size, monkeypatch):
    """Inputs may take turns, and places may be projected to the vocabulary in parts."""
    model = make_variant()
    expected = sample(model)
    with monkeypatch.context() as patch:
        patch.setattr(branching, "SCORED_AT_ONCE", size)
        assert same(sample(model), expected)
    monkeypatch.setattr(branching, "ROWS_AT_ONCE", (size, size))
    assert same(sample(model), expected)


def test_half_precision():
    """bfloat16 takes the fast path, near the general path's logits."""
    model = make_variant().to(torch.bfloat16)
    inputs = torch.tensor([0, 0, 1, 3, 5, 5])
    fast, general = both_ways(model, inputs)
    assert TransformerSteps.fits(model.decoder) and fast.dtype == torch.bfloat16
    assert (fast - general).abs().mean() < 0.02 and (fast - general).abs().max() < 0.2
    check_rows(sample(model))
