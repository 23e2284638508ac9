"""Stage one: rows drawn from exactly the model's softmax, however the batch is composed."""

import numpy as np
import pytest
import torch
from helpers import (
    ARCHS,
    DRAWN,
    EOS,
    PAD,
    SEED,
    TARGET,
    A,
    add_padding,
    chi_square_p,
    every_row,
    make_batch,
    make_model,
    plain_scores,
    plain_step,
    take,
)

from esrl_fairseq.core.sampling import row_uniforms
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling import draws, fixed_rows
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS
from esrl_fairseq.sampling.generation import RowSampler

COUNTS = [5, 1, 0, 3, 2, 4]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 2.0])


def make_sampler(model, max_len_a=0.5, max_len_b=2, min_len=1, **options):
    return RowSampler(
        [model], TARGET, max_len_a=max_len_a, max_len_b=max_len_b, min_len=min_len, **options
    )


def by_input(rows, batch):
    """{id: [(tokens, truncated), …]} in the order of the draws."""
    result = {}
    for i, tokens, length, cut in zip(
        rows.input_index.tolist(), rows.tokens.tolist(), rows.lengths.tolist(), rows.truncated
    ):
        result.setdefault(int(batch["id"][i]), []).append((tuple(tokens[:length]), bool(cut)))
    return result


def test_plain_policy_sums_to_one():
    """The enumerated probabilities sum to 1: without padding, without EOS before min_len, and
    without a factor for the EOS that the length limit forces."""
    model, batch = make_model().eval(), make_batch(ids=[0, 1])
    for limit, min_len in ((1, 0), (2, 0), (2, 1), (2, 2)):
        rows = every_row(limit, min_len, inputs=2)
        for temperature in (0.5, 1.0):
            log_probs, _ = plain_scores(model, batch, rows, min_len, temperature)
            assert torch.allclose(log_probs.exp().view(2, -1).sum(1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("min_len", [0, 1])
def test_frequencies_of_whole_sequences(min_len):
    """(h) Chi-square of first tokens and of sequences, for three temperatures in one batch."""
    draws, limit = 20_000, 2
    model, batch = make_model(scale=0.4).eval(), make_batch(ids=[0, 1, 2])
    temperatures = [0.6, 1.0, 2.0]
    rows = make_sampler(model, 0, limit, min_len).sample_rows(
        batch, [draws] * 3, np.float32(temperatures), SEED
    )
    space = every_row(limit, min_len)
    places = {tuple(t): k for k, t in enumerate(space.tokens.tolist())}
    tokens = torch.nn.functional.pad(rows.tokens, (0, limit + 1 - rows.tokens.size(1)), value=PAD)
    for i, temperature in enumerate(temperatures):
        own = tokens[rows.input_index == i]
        assert len(own) == draws
        first = torch.bincount(own[:, 0], minlength=len(TARGET))
        source = batch["net_input"]["src_tokens"][i]
        step = plain_step(model, source[source.ne(PAD)][None], [], min_len, temperature).exp()
        assert chi_square_p(first, step) > 1e-3
        found = torch.bincount(
            torch.tensor([places[tuple(t)] for t in own.tolist()]), minlength=len(space)
        )
        space.input_index[:] = i
        log_probs, _ = plain_scores(model, batch, space, min_len, temperature)
        assert chi_square_p(found, log_probs.exp()) > 1e-3


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_rows_equal_a_plain_replay(arch):
    """With the same uniform numbers, a pass without cache, padding or batch draws the same rows."""
    model, batch = make_model(arch).eval(), make_batch()
    sampler = make_sampler(model)
    rows = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    limits = [int(0.5 * n) + 2 for n in batch["net_input"]["src_lengths"]]
    found, expected = by_input(rows, batch), {}
    for i, (count, limit) in enumerate(zip(COUNTS, limits)):
        sample_id = int(batch["id"][i])
        source = batch["net_input"]["src_tokens"][i]
        source = source[source.ne(PAD)][None]
        for uniforms in row_uniforms(SEED, [sample_id], [count], [limit + 1]).double():
            tokens = []
            while len(tokens) < limit and tokens[-1:] != [EOS]:
                log_probs = plain_step(model, source, tokens, 1, float(TEMPERATURES[i]))
                cdf = log_probs.double().exp().cumsum(0)
                tokens.append(int((cdf <= uniforms[len(tokens)] * cdf[-1]).sum()))
            cut = tokens[-1] != EOS
            expected.setdefault(sample_id, []).append((tuple(tokens + [EOS] * cut), cut))
    assert found == expected
    assert any(cut for draws in found.values() for _, cut in draws)
    assert not all(cut for draws in found.values() for _, cut in draws)


def test_rows_are_well_formed():
    """Ascending inputs with their counts, one EOS at the end, padding behind it, limits kept."""
    model, batch = make_model().eval(), make_batch()
    rows = make_sampler(model, min_len=2).sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    assert torch.bincount(rows.input_index, minlength=6).tolist() == COUNTS
    assert (rows.input_index.diff() >= 0).all() and (rows.multiplicity == 1).all()
    assert rows.tokens.size(1) == rows.lengths.max()
    limits = (0.5 * batch["net_input"]["src_lengths"] + 2).long()[rows.input_index]
    assert torch.equal(rows.truncated, rows.lengths == limits + 1)
    for tokens, length in zip(rows.tokens.tolist(), rows.lengths.tolist()):
        assert 3 <= length
        assert tokens[length - 1] == EOS and set(tokens[length:]) <= {PAD}
        assert set(tokens[: length - 1]) <= set(DRAWN)


def test_the_length_limit_is_the_inputs_own():
    """It follows the source's length without padding; at least 1, below the model's maximum."""
    sampler = make_sampler(make_model(), max_len_a=1.2, max_len_b=1)
    assert sampler.length_limits(torch.tensor([1, 5, 10, 100])).tolist() == [2, 7, 13, 31]
    sampler = make_sampler(make_model(), max_len_a=0, max_len_b=0, min_len=0)
    assert sampler.length_limits(torch.tensor([4])).tolist() == [1]
    sampler = make_sampler(make_model(), max_len_a=0, max_len_b=1, min_len=5)
    assert sampler.length_limits(torch.tensor([4])).tolist() == [5]


@pytest.mark.parametrize("look", [1, 3, 100])
@pytest.mark.parametrize("arch", ARCHS)
def test_fixed_rows_draw_the_same(arch, look, monkeypatch):
    """The strategy of GPUs: rows and what is known of them, however often it compacts; caches
    begin small and grow."""
    monkeypatch.setattr(fixed_rows, "LOOK_EVERY", look)
    monkeypatch.setattr(fixed_rows, "ROOM", 2)
    model, batch = make_model(arch).eval(), make_batch()
    for counts, temperatures in (([20] * 6, TEMPERATURES), (COUNTS, np.ones(6, np.float32))):
        sampler = make_sampler(model, 1, 5, 1)
        rows, known = sampler.sample(batch, counts, temperatures, SEED)
        sampler.strategy = FIXED_ROWS
        found, found_known = sampler.sample(batch, counts, temperatures, SEED)
        for name, expected in vars(rows).items():
            assert torch.equal(getattr(found, name), expected), name
        for name, expected in vars(known).items():
            assert torch.allclose(getattr(found_known, name), expected, atol=1e-5), name
    assert rows.truncated.any() and len(rows.lengths.unique()) > 3


@pytest.mark.parametrize("most", [1, 4, 7])
def test_fixed_rows_a_few_at_once(most):
    """Inputs take turns where memory is small."""
    sampler, batch = make_sampler(make_model().eval()), make_batch()
    expected = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    sampler.strategy = FIXED_ROWS._replace(most_rows=lambda *_: most)
    assert torch.equal(
        sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED).tokens, expected.tokens
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_compaction_changes_nothing(arch, monkeypatch):
    """Dropping ended rows at every step, sometimes or never gives identical rows."""
    model, batch = make_model(arch).eval(), make_batch()
    found = []
    for share in (0.0, 0.2, 0.5, 1.1):
        monkeypatch.setattr(draws, "COMPACT_AT", share)
        rows = make_sampler(model, 1, 5, 0).sample_rows(batch, [20] * 6, TEMPERATURES, SEED)
        found.append(rows)
    assert len(found[0].lengths.unique()) > 3
    for rows in found[1:]:
        assert torch.equal(rows.tokens, found[0].tokens)
        assert torch.equal(rows.lengths, found[0].lengths)
        assert torch.equal(rows.truncated, found[0].truncated)


@pytest.mark.parametrize("arch", ARCHS)
def test_batch_and_padding_do_not_matter(arch):
    """(d) Padding, splitting, permuting and other inputs' counts leave an input's rows alone."""
    sampler, batch = make_sampler(make_model(arch)), make_batch()
    counts, temperatures = np.array(COUNTS), TEMPERATURES
    alone = by_input(sampler.sample_rows(batch, counts, temperatures, SEED), batch)
    orders = [[0, 2, 4], [0, 3, 5]]
    if arch != "lstm":  # fairseq's LSTM wants sources sorted by length and no needless padding
        orders += [[5, 1, 3], [4, 0, 2]]
        padded = add_padding(batch)
        assert by_input(sampler.sample_rows(padded, counts, temperatures, SEED), padded) == alone
    for order in orders:
        part = take(batch, order)
        rows = sampler.sample_rows(part, counts[order], temperatures[order], SEED)
        for sample_id, tokens in by_input(rows, part).items():
            assert tokens == alone[sample_id]
    other = by_input(sampler.sample_rows(batch, counts, temperatures, SEED + 1), batch)
    assert other != alone


def test_sampling_builds_no_graph_and_runs_the_encoder_once(monkeypatch):
    """No gradient, one encoder pass over the inputs, dropout off."""
    model, batch = make_model(), make_batch()
    sizes, encode = [], model.encoder.forward

    def counted(**arguments):
        result = encode(**arguments)
        sizes.append(result["encoder_out"][0])
        return result

    monkeypatch.setattr(model.encoder, "forward", counted)
    sampler = make_sampler(model)
    model.train()
    first = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    assert [tuple(x.shape[:2]) for x in sizes] == [(5, 6)] and not sizes[0].requires_grad
    model.train()
    assert torch.equal(sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED).tokens, first.tokens)


def test_sampling_restores_the_mode():
    """A model in training is in training afterwards, one part in evaluation stays there."""
    model = make_model()
    sampler = make_sampler(model)
    model.train()
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    sampler.sample_rows(make_batch(), COUNTS, TEMPERATURES, SEED)
    assert [module.training for module in model.modules()] == before


def test_skipped_batch_gives_no_rows():
    """All counts 0."""
    rows = make_sampler(make_model()).sample_rows(make_batch(), [0] * 6, TEMPERATURES, SEED)
    assert len(rows) == 0


def test_generator_interface():
    """As fairseq's generators: beam_size samples an input, at the seed of torch."""
    model, batch = make_model().eval(), make_batch()
    sampler = make_sampler(model, beam_size=3, temperature=0.8)
    torch.manual_seed(SEED)
    hypotheses = sampler.generate([model], batch)
    rows = sampler.sample_rows(batch, [3] * 6, np.full(6, 0.8, np.float32), SEED)
    assert [len(h) for h in hypotheses] == [3] * 6
    found = [tuple(one["tokens"].tolist()) for h in hypotheses for one in h]
    assert found == [tokens for draws in by_input(rows, batch).values() for tokens, _ in draws]
    with pytest.raises(ValueError, match="no prefix"):
        sampler.generate([model], batch, prefix_tokens=torch.tensor([[A]] * 6))


def test_adaptive_softmax_is_refused():
    """fairseq computes it in place, so that stage two could not differentiate it."""
    model = make_model(adaptive_softmax_cutoff="3", share_decoder_input_output_embed=False)
    with pytest.raises(EsrlError, match="adaptive-softmax"):
        make_sampler(model)
