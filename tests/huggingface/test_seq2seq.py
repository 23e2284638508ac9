"""``--arch hf_seq2seq`` against transformers itself, family by family: both stages, searches."""

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
)

from esrl_fairseq.rescoring.rescoring import rescore
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
        expected = own_scores(own, SOURCES, rows)
        found = score(model, batch, rows, tokens=True).token_log_probs
    assert expected.exp().min() < 0.01 and expected.exp().max() > 0.5
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    few = rows[torch.arange(0, 200, 20)]
    slope = gradients(own, own_scores(own, SOURCES, few).sum())
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
    expected = own_scores(own, SOURCES, rows, min_len=1)
    assert torch.allclose(known.token_log_probs, expected, rtol=0, atol=1e-5)
    assert 0 < rows.truncated.sum() < len(rows) and len(rows.lengths.unique()) > 4
    monkeypatch.setattr(draws, "COMPACT_AT", 0.0)
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)
    sampler.strategy = FIXED_ROWS
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)
    sampler.strategy = None
    monkeypatch.setattr(branching, "decoding_steps", DecoderSteps)
    assert torch.equal(sampler.sample(batch, counts, temperatures, SEED)[0].tokens, rows.tokens)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_search(folders, name, beam):
    """fairseq's greedy and beam search find what ``generate`` finds."""
    model, own = build(folders(name)), load(folders(name))
    batch, dictionary = make_batch(make_dataset(folders(name))), model.decoder.dictionary
    forced = model.decoder.forced
    generator = SequenceGenerator(
        [model], dictionary, beam_size=beam, max_len_b=12, min_len=0, normalize_scores=False
    )
    found = generator(batch)
    for i, source in enumerate(SOURCES):
        expected = own.generate(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            num_beams=beam,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=beam > 1,
            max_length=forced + 14,
            min_length=0,
            forced_eos_token_id=END,
        )[0].tolist()
        tokens = [x - dictionary.nspecial for x in found[i][0]["tokens"].tolist()[:-1]]
        body = expected[1 + forced :]
        ends = {x - dictionary.nspecial for x in model.never} - {PAD} | {END}
        length = next((k for k, x in enumerate(body) if x in ends), len(body))
        assert tokens == body[:length]
