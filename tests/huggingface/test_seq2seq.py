"""``--arch hf_seq2seq`` against transformers itself, family by family: both stages, searches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from helpers import SEED, chi_square_p, gradients, make_batch, make_rows
from tiny_seq2seq import (
    END,
    FAMILIES,
    PAD,
    SOURCES,
    build,
    load,
    make_dataset,
    own_logits,
    own_policy,
    own_scores,
    save,
    sources_of,
    transformers,
)

from esrl_fairseq.core.sequences import append_rows
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.families import by_steps, places_of_steps, scales_states
from esrl_fairseq.rescoring.agreement import stage_difference
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.rescoring.standard import sample_with_graph
from esrl_fairseq.sampling import branching, draws
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import DecoderSteps

ONES = np.ones(len(SOURCES), np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the families, made when they are asked for."""
    root, found = tmp_path_factory.mktemp("seq2seq"), {}

    def folder(name):
        if name not in found:
            found[name] = save(root / name.replace(" ", "_"), name)
        return found[name]

    return folder


def make_sampler(model, longest=7, min_len=0):
    dictionary = model.decoder.dictionary
    return RowSampler([model], dictionary, max_len_a=0, max_len_b=longest, min_len=min_len)


def random_rows(model, number, seed=1):
    """Rows of 0 to 6 tokens that have a probability, some of them truncated."""
    draw = np.random.default_rng(seed)
    dictionary = model.decoder.dictionary
    words = [i for i in range(dictionary.nspecial, len(dictionary)) if i not in model.never]
    rows = [[*draw.choice(words, draw.integers(0, 7)), dictionary.eos()] for _ in range(number)]
    inputs = np.sort(draw.integers(0, len(SOURCES), number))
    cut = [len(row) > 1 and bool(draw.integers(0, 4) == 0) for row in rows]
    return make_rows(rows, inputs, cut)


def score(model, batch, rows, min_len=0, **options):
    dictionary = model.decoder.dictionary
    return rescore(
        model, batch["net_input"], rows, dictionary.pad(), dictionary.eos(), min_len, **options
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_stage_two(folders, name):
    """200 random rows have the library's log-probabilities, token by token; and its gradient."""
    model, own = build(folders(name)), load(folders(name))
    batch, rows = make_batch(make_dataset(folders(name))), random_rows(model, 200)
    with torch.no_grad():
        expected = own_scores(own, sources_of(batch), rows)
        found = score(model, batch, rows, tokens=True).token_log_probs
    assert expected.min() < -3.5 and expected[expected < 0].max() > -1.9
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    few = rows[torch.arange(0, 200, 20)]
    if name.startswith(("fsmt", "marian", "pegasus")):  # their sinusoids are parameters
        for half in (own.get_encoder(), own.get_decoder()):
            half.embed_positions.requires_grad_(False)
    slope = gradients(own, own_scores(own, sources_of(batch), few).sum())
    assert slope.norm() > 1
    found = gradients(model, score(model, batch, few).log_probs.sum())
    assert torch.allclose(found, slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_stage_one(folders, name, monkeypatch):
    """Sampled rows have the library's log-probabilities; both ways to decode, and the general
    steps, draw the same rows."""
    model, own = build(folders(name)), load(folders(name))
    batch = make_batch(make_dataset(folders(name)))
    sampler, counts = make_sampler(model, min_len=1), [40, 0, 30, 25, 1, 60]
    temperatures = np.float32([1.0, 1.0, 0.7, 1.0, 1.0, 1.4])
    rows, known = sampler.sample(batch, counts, temperatures, SEED)
    expected = own_scores(own, sources_of(batch), rows, min_len=1)
    assert torch.allclose(known.token_log_probs, expected, rtol=0, atol=1e-5)
    assert 0 < rows.truncated.sum() < len(rows) and len(rows.lengths.unique()) > 2
    monkeypatch.setattr(draws, "COMPACT_AT", 0.0)
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)
    sampler.strategy = FIXED_ROWS
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)
    sampler.strategy = None
    monkeypatch.setattr(branching, "decoding_steps", DecoderSteps)
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)


@pytest.mark.parametrize("name", ["m2m_100", "t5", "fsmt"])
def test_the_source_is_read_once_an_input(folders, name):
    """Encoder and keys of cross-attention, in both stages and both ways to decode; the layers are
    left as they were."""
    model = build(folders(name)).eval()
    family, seen = model.decoder.family, []
    first = family.cross_attention[0]
    keys = first.k if hasattr(first, "k") else first.k_proj
    family.encoder.register_forward_hook(lambda *_: seen.append("encoder"))
    keys.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[:2])))
    batch = make_batch(make_dataset(folders(name)))
    lengths = batch["net_input"]["src_lengths"]
    shape = (len(lengths), batch["net_input"]["src_tokens"].size(1))
    for strategy in (None, FIXED_ROWS):
        sampler = make_sampler(model)
        sampler.strategy = strategy
        rows = sampler.sample_rows(batch, [30] * len(lengths), ONES, SEED)
        assert seen == ["encoder", shape[::-1] if family.time_first else shape]
        seen.clear()
    assert "forward" not in vars(first)
    score(model, batch, rows)
    assert seen.count("encoder") == 1


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["mbart50", "t5"])
def test_standard_sampling_equals_two_stages(folders, name, cached):
    """Rows, scores and gradients, through the cache's graph; with dropout's layers in place."""
    model, batch = build(folders(name)).train(), make_batch(make_dataset(folders(name)))
    counts, dictionary = [3, 1, 0, 2, 2, 4], model.decoder.dictionary
    sampler = make_sampler(model)
    drawn = sampler.sample_rows(batch, counts, ONES, SEED)
    given = append_rows(drawn, batch["target"], dictionary.pad())
    expected = score(model, batch, given).log_probs
    rows, scores, references = sample_with_graph(
        model, batch, sampler, counts, ONES, SEED, cached=cached, references=batch["target"]
    )
    assert torch.equal(rows.tokens, drawn.tokens)
    found = torch.cat([scores.log_probs, references.log_probs])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 2, len(found))
    slopes = [gradients(model, (weights * x).sum()) for x in (found, expected)]
    assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4) and slopes[0].norm() > 1


@pytest.mark.parametrize("name", ["mbart50", "t5"])
@torch.no_grad()
def test_attention(folders, name):
    """--hf-attention eager: other masks, the same numbers."""
    batch, found = make_batch(make_dataset(folders(name))), []
    for attention in ("sdpa", "eager"):
        model = build(folders(name), hf_attention=attention)
        assert model.decoder.model.config._attn_implementation == attention
        rows, known = make_sampler(model).sample(batch, [5] * len(SOURCES), ONES, SEED)
        found.append((rows.tokens, known.log_probs, score(model, batch, rows).log_probs))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][2], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_is_trained_is_saved(folders, name, tmp_path):
    """The library leaves some weights out of a folder, and computes them when it loads it."""
    model = build(folders(name)).decoder.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    model.save_pretrained(tmp_path)
    again = load(tmp_path).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("seen", [0, 3])
def test_positions_of_version_4(seen):
    """They are counted as those of version 5: padding has none, what follows it has its own."""
    kind = transformers.models.m2m_100.modeling_m2m_100.M2M100SinusoidalPositionalEmbedding
    old, new = kind(4, 6, PAD), kind(4, 6, PAD)
    new.create_position_ids_from_input_ids = places_of_steps
    ids = torch.tensor([[4, PAD, 5, PAD, 6], [5, 5, 5, 5, PAD]])
    assert torch.equal(by_steps(old.forward, PAD)(ids, None, seen), new(ids, None, seen))


def test_what_version_4_cannot_do(monkeypatch):
    version = SimpleNamespace(__version__="4.57.6")
    monkeypatch.setattr(library, "transformers", lambda: version)
    with pytest.raises(EsrlError, match="x is of the kind fsmt, which needs transformers 5, and"):
        library.refuse_other_kinds("fsmt", "x", library.SEQ2SEQ)
    library.refuse_other_kinds("m2m_100", "x", library.SEQ2SEQ)
    for kind in ("t5", "mt5", "umt5"):
        assert scales_states(SimpleNamespace(model_type=kind, tie_word_embeddings=True))
        assert not scales_states(SimpleNamespace(model_type=kind, tie_word_embeddings=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["m2m_100", "marian", "t5"])
def test_stages_agree(folders, name, dtype):
    """Also of a model in half precision, which samples and scores in it, too."""
    model, batch = build(folders(name)).to(dtype), make_batch(make_dataset(folders(name)))
    assert stage_difference(model, batch, make_sampler(model, 12)) < 1e-4
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    rows, known = make_sampler(model).sample(batch, [5] * len(SOURCES), ONES, SEED)
    found = score(model, batch, rows)
    assert torch.isfinite(found.entropy).all()
    assert torch.allclose(found.log_probs, known.log_probs, atol=1e-4 if dtype.itemsize > 2 else 1)


@torch.no_grad()
def test_frequencies(folders):
    """Chi-square of first two tokens over the whole vocabulary, at three temperatures; of a model
    with two end tokens and a forbidden one."""
    model, own = build(folders("ends")), load(folders("ends"))
    batch, number = make_batch(make_dataset(folders("ends")), [0, 3, 5]), 10_000
    temperatures = np.float32([0.7, 1.0, 1.6])
    rows = make_sampler(model, 2).sample_rows(batch, [number] * 3, temperatures, SEED)
    words = len(model.decoder.dictionary)
    for i, (source, temperature) in enumerate(zip(sources_of(batch), temperatures.tolist())):
        tokens = rows.tokens[rows.input_index == i]
        second = int(tokens[tokens[:, 0] > 3, 0].mode().values)
        logits = own_logits(own, [source], [[second - model.decoder.dictionary.nspecial]])
        expected = (own_policy(own, logits)[0] / temperature).softmax(-1)
        found = tokens[:, 0].bincount(minlength=words)
        assert chi_square_p(found, expected[0]) > 1e-3
        found = tokens[tokens[:, 0] == second, 1].bincount(minlength=words)
        assert chi_square_p(found, expected[1]) > 1e-3


def end_at(length):
    """Of `generate`: texts end there as fairseq's do, with the end token's own probability."""

    def only_end(ids, scores):
        if ids.size(1) == length - 1:
            scores[:, [i for i in range(scores.size(1)) if i != END]] = -np.inf
        return scores

    return transformers.LogitsProcessorList([only_end])


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("name", ["m2m_100", "mbart50", "marian", "t5", "bart", "fsmt"])
@torch.no_grad()
def test_search(folders, name, beam):
    """fairseq's greedy and beam search find what ``generate`` finds."""
    model, own = build(folders(name)), load(folders(name))
    batch, dictionary = make_batch(make_dataset(folders(name))), model.decoder.dictionary
    before = 1 + model.decoder.forced
    found = SequenceGenerator(
        [model], dictionary, beam_size=beam, max_len_b=12, min_len=0, normalize_scores=False
    )(batch)
    for setting in ("forced_eos_token_id", "encoder_no_repeat_ngram_size"):
        setattr(own.generation_config, setting, None)
    for i, source in enumerate(sources_of(batch)[:3]):
        expected = own.generate(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            num_beams=beam,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=beam > 1,
            max_length=before + 13,
            num_return_sequences=beam,
            logits_processor=end_at(before + 13),
        )
        for hypothesis, tokens in zip(found[i], expected[:, before:].tolist()):
            ids = [x - dictionary.nspecial for x in hypothesis["tokens"].tolist()[:-1]]
            assert ids == tokens[: tokens.index(END)]
