"""What holds for every case of the mathematics, tried on made-up ones."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import EOS, PAD, coefficients, make_rows, without_duplicates
from hypothesis import given
from hypothesis import strategies as st

from esrl_fairseq.core import losses, schedules
from esrl_fairseq.core.baselines import KINDS, build_baseline
from esrl_fairseq.core.controls import control_rewards, perturb_capability
from esrl_fairseq.core.expectations import known_inputs, offsets
from esrl_fairseq.core.kl import adapted_weight
from esrl_fairseq.core.sampling import inverse_cdf_sample, row_uniforms
from esrl_fairseq.core.sequences import (
    Prefix,
    Rows,
    append_rows,
    decoder_inputs,
    moved,
)

number = st.floats(-1e6, 1e6, width=32)
share = st.floats(0, 1, width=32)
unknown = st.one_of(share, st.just(np.nan))
seeds = st.integers(0, 2**31)


# --- schedules --------------------------------------------------------------------------------


@given(st.lists(unknown, max_size=40), st.lists(unknown, max_size=20), st.integers(1, 12))
def test_quantiles(known, asked, points):
    """In [0, 1], ordered as the capabilities, unknown where nothing is known."""
    reference = schedules.cdf_reference(known, points)
    values = [np.float32(value) for value in known if not np.isnan(value)]
    assert len(reference) == min(len(values), points) and set(reference) <= set(values)
    assert (np.diff(reference) >= 0).all()
    u = schedules.quantile(asked, reference)
    nan = np.isnan(np.array(asked, np.float32)) | (len(values) == 0)
    assert (np.isnan(u) == nan).all() and ((u >= 0) & (u <= 1) | nan).all()
    order = np.argsort(np.array(asked, np.float32)[~nan], kind="stable")
    assert (np.diff(u[~nan][order]) >= 0).all()


@given(st.lists(unknown, min_size=1, max_size=30), share, st.integers(1, 40), st.integers(0, 40))
def test_counts_of_samples(u, beta, most, fewest):
    """From k_min to K, fewer for the more capable; K for the unknown; on average what β says."""
    fewest = min(fewest, most)
    counts = schedules.sample_counts(u, most, fewest, beta)
    u = np.array(u)
    assert ((fewest <= counts) & (counts <= most)).all() and (counts[np.isnan(u)] == most).all()
    known = ~np.isnan(u)
    assert (np.diff(counts[known][np.argsort(u[known])]) <= 0).all()
    middle = (np.arange(4000) + 0.5) / 4000
    assert schedules.kept_share(middle, beta).mean() == pytest.approx(1 - beta, abs=1e-3)


spread = st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 50)), min_size=1, max_size=30)


@given(spread, st.integers(1, 40), st.integers(1, 40), st.integers(-20, 20))
def test_counts_by_the_spread(spread, most, fewest, power):
    """From k_min to K, more where rewards spread more; the rewards' unit does not matter."""
    fewest = min(fewest, most)
    std, samples = map(np.array, zip(*spread))

    def counts(unit):
        mean = schedules.mean_variance(unit * std, samples)
        variance = schedules.shrunk_variance(unit * std, samples, mean)
        return variance, schedules.neyman_counts(variance, mean, most, fewest)

    variance, found = counts(1.0)
    assert ((fewest <= found) & (found <= most)).all()
    known = samples > 0
    assert (found[~known] == most).all()
    order = np.argsort(variance[known])
    assert np.isnan(variance[known]).any() or (np.diff(found[known][order]) >= 0).all()
    assert (counts(2.0**power)[1] == found).all()


@given(st.lists(unknown, max_size=20), st.floats(0.1, 5), st.floats(0, 5), st.floats(0.1, 5))
def test_temperatures(u, low, more, base):
    found = schedules.temperatures(u, low, low + more, base)
    known = ~np.isnan(np.array(u))
    bounds = np.float32(low) * (1 - 1e-6), np.float32(low + more) * (1 + 1e-6)
    assert ((bounds[0] <= found[known]) & (found[known] <= bounds[1])).all()
    assert (found[~known] == np.float32(base)).all()


# --- rows -------------------------------------------------------------------------------------

words = st.lists(st.integers(5, 8), max_size=4)


@st.composite
def batches(draw, inputs=4):
    """Rows of a few words, so that some are equal."""
    index = sorted(draw(st.lists(st.integers(0, inputs - 1), min_size=1, max_size=12)))
    sequences = [[*draw(words), EOS] for _ in index]
    drawn = st.lists(st.integers(1, 5), min_size=len(index), max_size=len(index))
    return make_rows(sequences, index, multiplicity=draw(drawn))


def counted(rows):
    """How often each sequence of each input was drawn."""
    result = Counter()
    for index, tokens, length, times in zip(
        *(getattr(rows, name).tolist() for name in ("input_index", "tokens", "lengths")),
        rows.multiplicity.tolist(),
    ):
        result[index, tuple(tokens[:length])] += times
    return result


@given(batches())
def test_collapsing(rows):
    """No draw is lost, no sequence stays twice, the order stays; once is enough."""
    once = without_duplicates(rows)
    assert counted(once) == counted(rows) and len(once) == len(counted(rows))
    assert list(counted(once)) == list(counted(rows))
    assert equal(without_duplicates(once), once)


@given(batches(), batches())
def test_batches_collapse_apart_as_together(one, two):
    both = together(one, two)
    apart = together(without_duplicates(one), without_duplicates(two))
    assert equal(without_duplicates(both), apart)


@given(batches(), st.data())
def test_appended_rows_leave_the_others_as_they_are(rows, data):
    given_ = make_rows([[*data.draw(words), EOS] for _ in range(4)], range(4)).tokens
    both = append_rows(rows, given_, PAD)
    n = len(rows)
    assert len(both) == n + 4 and both.tokens.size(1) == max(rows.tokens.size(1), given_.size(1))
    assert counted(both[torch.arange(n)]) == counted(rows)
    assert counted(both[torch.arange(n, n + 4)]) == {
        (i, tuple(row[row != PAD].tolist())): 1 for i, row in enumerate(given_)
    }


@given(batches(), st.data())
def test_decoder_inputs(rows, data):
    """Of each row its prefix and all but its last token, whatever the others are."""
    prompts = [[EOS, *data.draw(words)] for _ in range(len(rows))]
    prefix = make_rows(prompts, range(len(rows)))
    found = decoder_inputs(rows.tokens, rows.lengths, Prefix(prefix.tokens, prefix.lengths), PAD)
    for row, prompt, tokens, length in zip(
        found.tolist(), prompts, rows.tokens.tolist(), rows.lengths.tolist()
    ):
        expected = [*prompt, *tokens[: length - 1]]
        assert row == expected + [PAD] * (len(row) - len(expected))


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 8))
def test_moved(by, columns, width):
    values = torch.arange(1, len(by) * columns + 1).view(len(by), columns)
    expected = [
        [int(values[r, t - b]) if 0 <= t - b < columns else 0 for t in range(width)]
        for r, b in enumerate(by)
    ]
    assert moved(values, torch.tensor(by), width, 0).tolist() == expected


def together(one, two):
    """Two batches as one, the second one's inputs behind the first one's."""
    width = max(one.tokens.size(1), two.tokens.size(1))
    tokens = [
        torch.nn.functional.pad(rows.tokens, (0, width - rows.tokens.size(1)), value=PAD)
        for rows in (one, two)
    ]
    return Rows(
        tokens=torch.cat(tokens),
        lengths=torch.cat([one.lengths, two.lengths]),
        input_index=torch.cat([one.input_index, two.input_index + 4]),
        truncated=torch.cat([one.truncated, two.truncated]),
        multiplicity=torch.cat([one.multiplicity, two.multiplicity]),
    )


def equal(one, two):
    return all(torch.equal(value, vars(two)[name]) for name, value in vars(one).items())


# --- sampling ---------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 8), seeds, st.floats(0.05, 20), st.floats(0, 0.95))
def test_a_draw_is_where_the_distribution_says(vocabulary, rows, seed, temperature, forbidden):
    """The word whose share of [0, 1) holds the uniform number; none that is forbidden."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(rows, vocabulary, generator=generator)
    never = torch.rand(rows, vocabulary, generator=generator) < forbidden
    never[torch.arange(rows), torch.randint(vocabulary, (rows,), generator=generator)] = False
    logits = logits.masked_fill(never, -torch.inf)
    uniforms = torch.rand(rows, generator=generator)
    uniforms[0] = 0 if seed % 2 else 1 - 2**-24
    cdf = (logits.double() / temperature).softmax(1).cumsum(1)
    found = inverse_cdf_sample(logits.clone(), torch.full((rows,), temperature), uniforms)
    assert not never[torch.arange(rows), found].any()
    end = cdf[torch.arange(rows), found]
    begin = end - (cdf.diff(dim=1, prepend=torch.zeros(rows, 1)))[torch.arange(rows), found]
    assert ((begin <= uniforms + 1e-5) & (uniforms <= end + 1e-5)).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 2**60), st.integers(0, 4), st.integers(0, 6)),
        max_size=5,
        unique_by=lambda one: one[0],
    ),
    st.integers(0, 2**63),
    st.randoms(use_true_random=False),
)
def test_random_numbers_do_not_depend_on_the_batch(inputs, seed, shuffler):
    """Other inputs, in whatever order, change nothing; each has its own."""

    def numbers(chosen):
        ids, counts, steps = zip(*chosen) if chosen else ((), (), ())
        found = row_uniforms(seed, ids, counts, steps)
        assert ((found >= 0) & (found < 1)).all()
        own = found.split(list(counts)) if chosen else []
        return {i: part[:, :width].tolist() for i, part, width in zip(ids, own, steps)}

    whole, mixed = numbers(inputs), shuffler.sample(inputs, len(inputs))
    assert numbers(mixed) == whole
    half = mixed[::2]
    assert numbers(half) == {i: whole[i] for i, *_ in half}
    firsts = {tuple(row_uniforms(seed, [i], [1], [4])[0].tolist()) for i, *_ in inputs}
    assert len(firsts) == len(inputs)


# --- losses -----------------------------------------------------------------------------------


@st.composite
def scored(draw, inputs=3):
    """Arguments of losses: log-probabilities, rewards, input of each row, multiplicities."""
    index = draw(st.lists(st.integers(0, inputs - 1), min_size=1, max_size=9))
    n = len(index)
    column = lambda values: torch.tensor(  # noqa: E731
        draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64
    )
    return (
        column(st.floats(-300, 0)),
        column(st.floats(-50, 50)),
        torch.tensor(index),
        column(st.integers(1, 4)),
    )


def ppo(log_probs, rewards, index, inputs, multiplicity, counts):
    """In a later pass, after which probabilities have moved."""
    given = coefficients(rewards, index, inputs, 0.5, 0.3, multiplicity)
    old = 0.9 * log_probs
    return losses.ppo_loss(log_probs, old, given, index, inputs, (0.2, 0.3), counts)


LOSSES = {
    "mrt": lambda lp, r, i, n, m: losses.mrt_loss(lp, r, i, n, 0.5),
    "reinforce": lambda lp, r, i, n, m: losses.reinforce_loss(lp, r, i, n, 0.5, 0.3, m),
    "rloo": lambda lp, r, i, n, m: losses.rloo_loss(lp, r, i, n, 0.5, m),
    "fused": lambda lp, r, i, n, m: losses.fused_loss(lp, r, i, n, 0.5, 0.3, m),
    "ppo": lambda lp, r, i, n, m: ppo(lp[:, None], r, i, n, m, torch.ones(len(lp), 1)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def values_and_gradient(loss, log_probs, rewards, index, multiplicity, inputs):
    log_probs = log_probs.clone().requires_grad_()
    values = loss(log_probs, rewards, index, inputs, multiplicity)
    return values.detach(), torch.autograd.grad(values.sum(), log_probs)[0]


@every_loss
@given(rows=scored(), others=scored())
def test_losses_of_inputs_do_not_depend_on_the_batch(loss, rows, others):
    """Two batches together have the losses and gradients that they have apart, all finite."""
    one, two = (values_and_gradient(loss, *part, 3) for part in (rows, others))
    both = [torch.cat(pair) for pair in zip(rows, others)]
    both[2][len(rows[2]) :] += 3
    values, gradient = values_and_gradient(loss, *both, 6)
    assert torch.allclose(values, torch.cat([one[0], two[0]]), rtol=1e-9, atol=1e-12)
    assert torch.allclose(gradient, torch.cat([one[1], two[1]]), rtol=1e-9, atol=1e-12)
    assert values.isfinite().all() and gradient.isfinite().all()


@every_loss
@given(rows=scored(), shuffler=st.randoms(use_true_random=False))
def test_losses_do_not_depend_on_the_order_of_rows(loss, rows, shuffler):
    order = torch.tensor(shuffler.sample(range(len(rows[0])), len(rows[0])))
    values, gradient = values_and_gradient(loss, *rows, 3)
    mixed = values_and_gradient(loss, *(column[order] for column in rows), 3)
    assert torch.allclose(mixed[0], values, rtol=1e-9, atol=1e-12)
    assert torch.allclose(mixed[1], gradient[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [LOSSES[name] for name in ("reinforce", "rloo", "ppo")])
@given(rows=scored())
def test_rows_drawn_several_times_are_several_rows(loss, rows):
    apart = torch.arange(len(rows[0])).repeat_interleave(rows[3].long())
    single = [column[apart] for column in rows[:3]]
    ones = torch.ones(len(apart), dtype=torch.float64)
    assert torch.allclose(
        loss(rows[0], rows[1], rows[2], 3, rows[3]), loss(*single, 3, ones), rtol=1e-9, atol=1e-9
    )


@given(scored())
def test_risk_lies_between_the_rewards(rows):
    log_probs, rewards, index, _ = rows
    risk = losses.mrt_loss(log_probs, rewards, index, 3, 0.5)
    for i in set(index.tolist()):
        own = -rewards[index == i]
        assert own.min() - 1e-9 <= risk[i] <= own.max() + 1e-9


@given(scored(), st.integers(1, 3))
def test_padding_does_not_change_ppo(rows, columns):
    log_probs, rewards, index, multiplicity = rows

    def loss(width):
        padded = torch.nn.functional.pad(log_probs[:, None], (0, width))
        counts = torch.nn.functional.pad(torch.ones(len(rewards), 1), (0, width))
        return ppo(padded, rewards, index, 3, multiplicity, counts)

    assert torch.allclose(loss(columns), loss(0), rtol=1e-12)


# --- baselines, expectations, penalties and controls ------------------------------------------

updates = st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=6), max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(before=updates, after=updates, size=st.integers(1, 9), decay=st.floats(0, 0.99))
def test_baselines_go_on_from_their_state(kind, before, after, size, decay):
    """Bit by bit; and they lie among the rewards."""
    one, two = (build_baseline(kind, size, decay, size) for _ in range(2))
    for rewards in before:
        one.push(rewards)
    two.restore(one.state())
    for rewards in after:
        one.push(rewards)
        two.push(rewards)
        assert one.value([0.5]) == two.value([0.5])
    seen = [*sum(before + after, []), 0.0, 0.5]
    assert min(seen) - 1e-3 <= one.value([0.5]) <= max(seen) + 1e-3


arrays = st.builds(
    lambda values, kind: np.array(values, dtype=kind),
    st.one_of(number, st.lists(st.floats(-5, 5, width=32), max_size=3)),
    st.sampled_from(["float32", "float64", "int64"]),
)


@pytest.mark.parametrize("kind", KINDS)
@given(
    state=st.dictionaries(st.sampled_from(["rewards", "sum", "weight", "sums", "counts"]), arrays)
)
def test_states_that_are_not_a_baselines_are_refused(kind, state):
    """Or give numbers: never anything else, at whatever time."""
    baseline = build_baseline(kind, 3, 0.5, 3)
    try:
        baseline.restore(state)
    except ValueError:
        return
    baseline.push([0.5, 1.0])
    assert np.isfinite(baseline.value([0.5]))


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 20)), max_size=20), unknown)
def test_expectations_are_drawn_to_the_mean(inputs, within):
    means, samples = map(np.array, zip(*inputs)) if inputs else (np.zeros(0), np.zeros(0, int))
    known = known_inputs(means, samples, within)
    found = offsets(means, samples, known)
    own = np.where(samples > 0, means - known.mean, 0)
    assert (found[samples == 0] == 0).all() and np.isfinite(found).all()
    assert (np.abs(found) <= np.abs(own) * (1 + 1e-5) + 1e-6).all()
    assert (found * own >= -1e-6).all()


@given(st.floats(1e-6, 1e3), st.floats(-1e9, 1e9), st.floats(1e-3, 1e3))
def test_the_weight_of_the_penalty_changes_little(weight, kl, target):
    found = adapted_weight(weight, kl, target)
    assert 0.98 * weight * (1 - 1e-9) <= found <= 1.02 * weight * (1 + 1e-9)
    assert (found - weight) * (kl - target) >= 0


@given(st.lists(number, min_size=1, max_size=9), seeds, st.lists(seeds, min_size=1, max_size=5))
def test_controls_are_functions_of_seed_and_ids(rewards, seed, ids):
    rewards = np.array(rewards, np.float32)
    mixed = control_rewards(rewards, "shuffled", seed, ids)
    assert sorted(mixed) == sorted(rewards)
    assert (control_rewards(rewards, "shuffled", seed, ids) == mixed).all()
    capability = np.linspace(0, 1, len(ids))
    noisy = perturb_capability(capability, "0.3", seed, np.array(ids))
    assert ((noisy >= 0) & (noisy <= 1)).all()
    alone = perturb_capability(capability[:1], "0.3", seed, np.array(ids[:1]))
    assert noisy[0] == alone[0]
