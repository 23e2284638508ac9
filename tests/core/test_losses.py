"""The fused loss and its parts against hand-written formulas and enumerated expectations."""

import itertools
import math
from collections import Counter

import pytest
import torch
from helpers import (
    EOS,
    PAD,
    TARGET,
    add_padding,
    every_row,
    gradients,
    make_batch,
    make_model,
    plain_scores,
    without_duplicates,
)

from esrl_fairseq.core import losses
from esrl_fairseq.core.token_scores import token_scores
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.sampling.generation import RowSampler

ALPHA = 0.3
INDEX = torch.tensor([0, 0, 0, 1, 2, 2])  # input 3 has no row
REWARDS = torch.tensor([0.9, 0.1, 0.4, 0.7, 0.2, 0.6], dtype=torch.float64)
DRAWN = torch.tensor([2, 1, 1, 3, 1, 4])


def log_probs():
    values = torch.tensor([-3.0, -5.5, -4.0, -7.0, -2.0, -9.0], dtype=torch.float64)
    return values.requires_grad_()


def written_mrt(log_p, rewards, alpha):
    """-sum_j Q_j r_j with Q_j = p_j^alpha / sum_k p_k^alpha, for one input."""
    powers = torch.exp(log_p) ** alpha
    return -(powers / powers.sum() * rewards).sum()


def row_gradient(loss_of_rows):
    log_p = log_probs()
    return torch.autograd.grad(loss_of_rows(log_p).sum(), log_p)[0]


def test_segment_functions():
    """Sums, weighted means and softmax per input, by hand; an empty input gives 0."""
    values, index = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])
    weights = torch.tensor([3, 1, 2])
    assert losses.segment_sum(values, index, 3).tolist() == [4.0, 0.0, 5.0]
    assert losses.segment_mean(values, weights, index, 3).tolist() == [1.5, 0.0, 5.0]
    softmax = losses.segment_softmax(values + 1000, index, 3)
    assert torch.allclose(softmax, torch.tensor([0.11920292, 0.88079708, 1.0]))


def test_mrt_value_and_gradient_equal_the_written_formula():
    """Autograd of the formula, input by input, and the gradient derived by hand."""
    value = losses.mrt_loss(log_probs(), REWARDS, INDEX, 4, ALPHA)
    written = [written_mrt(log_probs()[INDEX == i], REWARDS[INDEX == i], ALPHA) for i in range(4)]
    assert torch.allclose(value, torch.stack(written))
    gradient = row_gradient(lambda lp: losses.mrt_loss(lp, REWARDS, INDEX, 4, ALPHA))
    expected = row_gradient(
        lambda lp: torch.stack(
            [written_mrt(lp[INDEX == i], REWARDS[INDEX == i], ALPHA) for i in range(4)]
        )
    )
    assert torch.allclose(gradient, expected)
    q = torch.softmax(ALPHA * log_probs().detach()[:3], 0)
    by_hand = -ALPHA * q * (REWARDS[:3] - (q * REWARDS[:3]).sum())
    assert torch.allclose(gradient[:3], by_hand)
    assert gradient[3] == 0  # one candidate alone


def test_mrt_takes_long_sentences():
    """Log-probabilities far below any exponential still give finite, right values."""
    log_p = torch.tensor([-5000.0, -5010.0], requires_grad=True)
    loss = losses.mrt_loss(log_p, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 1, 0.1)
    loss.sum().backward()
    assert torch.allclose(loss.detach(), -torch.sigmoid(torch.tensor([1.0])))
    assert torch.isfinite(log_p.grad).all()


def test_reinforce_by_hand():
    """-alpha times the mean over draws of (r - b) log p."""
    loss = losses.reinforce_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, 0.5, DRAWN)
    first = (2 * 0.4 * -3 + -0.4 * -5.5 + -0.1 * -4) / 4
    third = (-0.3 * -2 + 4 * 0.1 * -9) / 5
    expected = -ALPHA * torch.tensor([first, 0.2 * -7, third, 0.0], dtype=torch.float64)
    assert torch.allclose(loss, expected)


def test_reinforce_weights_equal_rows_as_if_drawn_apart():
    """A row with multiplicity m is m rows."""
    apart = torch.arange(6).repeat_interleave(DRAWN)
    together = row_gradient(
        lambda lp: losses.reinforce_loss(lp, REWARDS, INDEX, 4, ALPHA, 0.5, DRAWN)
    )
    separate = row_gradient(
        lambda lp: losses.reinforce_loss(
            lp[apart], REWARDS[apart], INDEX[apart], 4, ALPHA, 0.5, torch.ones(12)
        )
    )
    assert torch.allclose(together, separate)


def test_fused_takes_mrt_only_where_an_input_has_two_distinct_rows():
    """Input 1 has one row, drawn three times: REINFORCE; input 3 has none: no loss."""
    fused = losses.fused_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, 0.5, DRAWN)
    mrt = losses.mrt_loss(log_probs(), REWARDS, INDEX, 4, ALPHA)
    reinforce = losses.reinforce_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, 0.5, DRAWN)
    assert torch.equal(fused, torch.stack([mrt[0], reinforce[1], mrt[2], mrt[3]]))
    assert fused[3] == 0
    gradient = row_gradient(lambda lp: losses.fused_loss(lp, REWARDS, INDEX, 4, ALPHA, 0.5, DRAWN))
    assert torch.isclose(gradient[3], torch.tensor(-ALPHA * (0.7 - 0.5), dtype=torch.float64))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_token_scores(kind):
    """The softmax over the words that may be drawn, with autograd's gradient, in float32."""
    generator = torch.Generator().manual_seed(1)
    scores = (3 * torch.randn(5, 7, generator=generator)).to(kind)
    targets = torch.tensor([0, EOS, 4, 6, 3])
    no_eos = torch.tensor([True, False, False, True, True])
    weights = torch.linspace(-1, 1, 5)
    inputs = [scores.clone().requires_grad_() for _ in range(2)]
    log_probs, entropy = token_scores(inputs[0] * 1, targets, PAD, EOS, no_eos)
    never = torch.zeros(5, 7, dtype=torch.bool)
    never[:, PAD] = True
    never[:, EOS] = no_eos
    full = inputs[1].float().masked_fill(never, -torch.inf).log_softmax(1)
    chosen = full.gather(1, targets.unsqueeze(1)).squeeze(1)
    assert log_probs.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    assert torch.allclose(log_probs, chosen, atol=1e-5)
    assert torch.allclose(entropy, torch.special.entr(full.exp()).sum(1), atol=1e-5)
    (weights * log_probs).sum().backward()
    (weights * chosen).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-5)


def test_small_alpha_limit():
    """(c) grad L_MRT -> -(alpha/k) sum_j (r_j - mean r) grad log p_j, with an error of O(alpha)."""
    mean = losses.segment_mean(REWARDS, torch.ones(6), INDEX, 4)
    k = torch.bincount(INDEX).to(REWARDS)
    limit = -(REWARDS - mean[INDEX]) / k[INDEX]
    errors = []
    for alpha in (1e-2, 1e-3, 1e-4):
        gradient = row_gradient(lambda lp, a=alpha: losses.mrt_loss(lp, REWARDS, INDEX, 4, a))
        errors.append((gradient / alpha - limit).abs().max())
    assert errors[2] < 1e-4
    assert 8 < errors[0] / errors[1] < 12 and 8 < errors[1] / errors[2] < 12
    # The limit is REINFORCE with the input's own mean as baseline: both branches share one scale.
    first = INDEX == 0
    scale = row_gradient(
        lambda lp: losses.reinforce_loss(
            lp[first], REWARDS[first], INDEX[first], 1, 1.0, float(mean[0]), torch.ones(3)
        )
    )
    assert torch.allclose(scale[first], limit[first])


@pytest.mark.parametrize("baseline", [0.0, 0.35])
def test_reinforce_tends_to_the_exact_policy_gradient(baseline):
    """(a) The mean over 20,000 draws lies within the standard errors of the enumerated gradient."""
    draws, limit, min_len = 20000, 2, 0
    model = make_model(scale=0.4).eval()
    batch = add_padding(make_batch(ids=[0]), 1)
    space = every_row(limit, min_len)
    rewards = torch.rand(len(space), generator=torch.Generator().manual_seed(2))
    scores = rescore(model, batch["net_input"], space, PAD, EOS, min_len)
    p = scores.log_probs.exp()
    assert abs(p.sum().item() - 1) < 1e-5
    exact = gradients(model, -(p * rewards).sum())

    sampler = RowSampler([model], TARGET, max_len_a=0, max_len_b=limit, min_len=min_len)
    rows = without_duplicates(sampler.sample_rows(batch, [draws], [1.0], seed=4))
    assert int(rows.multiplicity.sum()) == draws
    places = {tuple(tokens): r for r, tokens in enumerate(space.tokens.tolist())}
    drawn = rewards[[places[tuple(tokens)] for tokens in rows.tokens.tolist()]]
    sampled = rescore(model, batch["net_input"], rows, PAD, EOS, min_len)
    loss = losses.reinforce_loss(
        sampled.log_probs, drawn, rows.input_index, 1, ALPHA, baseline, rows.multiplicity
    )
    estimate = gradients(model, loss.sum()) / ALPHA

    per_row = torch.stack([gradients(model, log_p) for log_p in scores.log_probs])
    terms = -(rewards - baseline).unsqueeze(1) * per_row
    weights = p.detach().unsqueeze(1)
    assert torch.allclose((weights * terms).sum(0), exact, atol=1e-5)
    variance = (weights * terms**2).sum(0) - exact**2
    error = (variance.clamp(min=0) / draws).sqrt()
    assert exact.norm() > 10 * error.norm()  # the test could tell a wrong gradient
    assert ((estimate - exact).abs() <= 5 * error + 1e-6).all()
    assert (estimate - exact).norm() < 2 * error.norm()


def test_mrt_over_draws_takes_equal_rows_as_if_drawn_apart():
    """Value and gradient, also of the fused loss; an input with one row alone is not concerned."""
    apart = torch.arange(6).repeat_interleave(DRAWN)
    one = losses.mrt_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, draws=DRAWN)
    other = losses.mrt_loss(log_probs()[apart], REWARDS[apart], INDEX[apart], 4, ALPHA)
    assert torch.allclose(one, other)
    common = (REWARDS, INDEX, 4, ALPHA)
    gradient = row_gradient(lambda lp: losses.mrt_loss(lp, *common, draws=DRAWN))
    expected = row_gradient(
        lambda lp: losses.mrt_loss(lp[apart], REWARDS[apart], INDEX[apart], 4, ALPHA)
    )
    assert torch.allclose(gradient, expected)
    distinct = row_gradient(lambda lp: losses.mrt_loss(lp, *common))
    assert (gradient - distinct).abs().max() > 0.01
    fused = row_gradient(lambda lp: losses.fused_loss(lp, *common, 0.5, DRAWN, draws=DRAWN))
    alone = row_gradient(lambda lp: losses.fused_loss(lp, *common, 0.5, DRAWN))
    assert torch.allclose(fused[INDEX != 1], gradient[INDEX != 1])
    assert fused[INDEX == 1] == alone[INDEX == 1] != 0


def test_mrt_over_draws_tends_to_leave_one_out():
    """As α → 0 it is (n − 1)/n of RLOO for n draws; over distinct rows something else."""
    alpha = 1e-4
    draws = torch.bincount(INDEX, DRAWN, minlength=4)[INDEX]
    rloo = row_gradient(lambda lp: losses.rloo_loss(lp, REWARDS, INDEX, 4, alpha, DRAWN))
    found = row_gradient(lambda lp: losses.mrt_loss(lp, REWARDS, INDEX, 4, alpha, draws=DRAWN))
    expected = (draws - 1) / draws * rloo
    assert torch.allclose(found / alpha, expected / alpha, atol=1e-3)
    distinct = row_gradient(lambda lp: losses.mrt_loss(lp, REWARDS, INDEX, 4, alpha))
    assert (distinct - expected).abs().max() > 0.02 * alpha


def test_mrt_gradient_through_the_model():
    """(a) Parameters get autograd of the written formula over the candidate set."""
    model, batch = make_model().eval(), make_batch(ids=[0, 1])
    rows = every_row(2, 1, inputs=2)
    rewards = torch.rand(len(rows), generator=torch.Generator().manual_seed(5))
    log_p = rescore(model, batch["net_input"], rows, PAD, EOS, 1).log_probs
    ours = losses.mrt_loss(log_p, rewards, rows.input_index, 2, ALPHA).sum()
    written = sum(
        written_mrt(log_p[rows.input_index == i], rewards[rows.input_index == i], ALPHA)
        for i in range(2)
    )
    expected = gradients(model, written)
    assert expected.norm() > 1e-3
    assert torch.allclose(gradients(model, ours), expected, rtol=1e-4, atol=1e-7)


def test_rloo_by_hand():
    """Of each draw's reward the mean of the input's other draws is taken; one draw gives nothing.

    Input 0 draws 0.9 twice, 0.1 and 0.4; input 2 draws 0.2 once and 0.6 four times.
    """
    loss = losses.rloo_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, DRAWN)
    first = (2 * (0.9 - 1.4 / 3) * -3 + (0.1 - 2.2 / 3) * -5.5 + (0.4 - 1.9 / 3) * -4) / 4
    third = ((0.2 - 0.6) * -2 + 4 * (0.6 - 2.0 / 4) * -9) / 5
    expected = -ALPHA * torch.tensor([first, 0.0, third, 0.0], dtype=torch.float64)
    assert torch.allclose(loss, expected)
    single = torch.tensor([1, 1, 1, 1, 1, 1])
    loss = losses.rloo_loss(log_probs(), REWARDS, INDEX, 4, ALPHA, single)
    assert loss[1] == 0 and loss[0] != 0
    gradient = row_gradient(lambda lp: losses.rloo_loss(lp, REWARDS, INDEX, 4, ALPHA, single))
    assert gradient[3] == 0 and torch.isfinite(gradient).all()


def test_rloo_takes_equal_rows_as_if_drawn_apart():
    """A row with multiplicity m is m rows; equal draws alone have no gradient."""
    apart = torch.arange(6).repeat_interleave(DRAWN)
    together = row_gradient(lambda lp: losses.rloo_loss(lp, REWARDS, INDEX, 4, ALPHA, DRAWN))
    separate = row_gradient(
        lambda lp: losses.rloo_loss(
            lp[apart], REWARDS[apart], INDEX[apart], 4, ALPHA, torch.ones(12)
        )
    )
    assert torch.allclose(together, separate)
    assert together[3].abs() < 1e-12  # input 1: the same row three times


def test_rloo_is_on_the_scale_of_the_others():
    """k/(k - 1) of REINFORCE with the input's mean, which is MRT's limit: one learning rate."""
    first = INDEX == 0
    ones = torch.ones(3)

    def gradient(loss):
        return row_gradient(lambda lp: loss(lp[first], REWARDS[first], INDEX[first], 1))

    leave_one_out = gradient(lambda *x: losses.rloo_loss(*x, 1e-4, ones))
    mean = float(REWARDS[first].mean())
    reinforce = gradient(lambda *x: losses.reinforce_loss(*x, 1e-4, mean, ones))
    mrt = gradient(lambda *x: losses.mrt_loss(*x, 1e-4))
    assert torch.allclose(leave_one_out, 1.5 * reinforce)
    assert torch.allclose(leave_one_out, 1.5 * mrt, rtol=1e-2)


def every_outcome(p, draws):
    """All multisets of ``draws`` of the space with probabilities p, and how likely each is.

    Returns ``rows`` (places in the space), ``index`` (outcome of each row), ``multiplicity`` and
    ``chance`` [outcomes].
    """
    rows, index, multiplicity, chances = [], [], [], []
    for number, outcome in enumerate(itertools.combinations_with_replacement(range(len(p)), draws)):
        counts = Counter(outcome)
        chance = math.factorial(draws)
        for place, count in counts.items():
            chance *= float(p[place]) ** count / math.factorial(count)
        rows += counts.keys()
        index += [number] * len(counts)
        multiplicity += counts.values()
        chances.append(chance)
    assert math.isclose(sum(chances), 1, rel_tol=1e-5)
    return *map(torch.tensor, (rows, index, multiplicity)), torch.tensor(chances)


class Space:
    """A model whose five possible outputs are listed, with a reward for each."""

    def __init__(self, temperature=1.0, seed=1):
        model, limit, min_len = make_model(seed=seed, scale=0.8).eval(), 1, 0
        batch = add_padding(make_batch(ids=[0]), 1)
        rows = every_row(limit, min_len)
        self.rewards = torch.rand(len(rows), generator=torch.Generator().manual_seed(2))
        self.log_p, _ = plain_scores(model, batch, rows, min_len)
        self.log_q, _ = plain_scores(model, batch, rows, min_len, temperature)
        self.p, self.q = self.log_p.exp().detach(), self.log_q.exp().detach()
        self.model = model

    def gradient(self, scalar):
        return gradients(self.model, scalar)

    def expected(self, draws, loss):
        """Gradient of E[loss]/α over all outcomes of ``draws`` from q.

        ``loss`` takes the rows' places in the space, their outcomes and multiplicities, and gives
        the loss of each outcome.
        """
        rows, index, multiplicity, chance = every_outcome(self.q, draws)
        return self.gradient((chance * loss(rows, index, multiplicity)).sum()) / ALPHA


def equal(found, exact):
    """Up to rounding of float32, as a share of the gradient's length."""
    assert exact.norm() > 0.1
    return (found - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("draws", [2, 3])
def test_rloo_is_unbiased(draws):
    """Its mean over all outcomes is the gradient of the enumerated expected reward."""
    space = Space()
    exact = space.gradient(-(space.log_p.exp() * space.rewards).sum())

    def loss(rows, index, multiplicity):
        outcomes = int(index.max()) + 1
        log_p, rewards = space.log_p[rows], space.rewards[rows]
        return losses.rloo_loss(log_p, rewards, index, outcomes, ALPHA, multiplicity)

    found = space.expected(draws, loss)
    assert equal(found, exact)


def test_one_baseline_for_all_inputs_moves_the_policy_from_or_to_another_sampler():
    """Rows of q, loss of p: RLOO compares them with each other; REINFORCE adds
    (b − r̄)·∇KL(q‖p) to that descent, and so moves p away from q where r̄ is below b."""
    space = Space(temperature=2.0)
    mean = (space.q * space.rewards).sum()
    compared = space.gradient(-(space.q * (space.rewards - mean) * space.log_p).sum())
    kl = space.gradient((space.q * (space.log_q.detach() - space.log_p)).sum())
    assert kl.norm() > 0.1

    def loss(baseline, rows, index, multiplicity):
        common = (space.log_p[rows], space.rewards[rows], index, int(index.max()) + 1, ALPHA)
        if baseline is None:
            return losses.rloo_loss(*common, multiplicity)
        return losses.reinforce_loss(*common, baseline, multiplicity)

    assert equal(space.expected(2, lambda *x: loss(None, *x)), compared)
    for baseline in (0.0, 1.0):
        found = space.expected(2, lambda *x, b=baseline: loss(b, *x))
        assert equal(found, compared + (mean - baseline) * kl)


@pytest.mark.parametrize("draws", [2, 4])
def test_the_batch_mean_shrinks_the_gradient(draws):
    """With the mean of the n draws as baseline it is 1 - 1/n of the exact one; with 0.3 all."""
    space = Space()
    exact = space.gradient(-(space.log_p.exp() * space.rewards).sum())

    def loss(baseline, rows, index, multiplicity):
        log_p, rewards = space.log_p[rows], space.rewards[rows]
        own = losses.segment_mean(rewards, multiplicity, index, int(index.max()) + 1)[index]
        centred = rewards - (own if baseline is None else baseline)
        return losses.reinforce_loss(
            log_p, centred, index, int(index.max()) + 1, ALPHA, 0.0, multiplicity
        )

    constant = space.expected(draws, lambda *x: loss(0.3, *x))
    shrunk = space.expected(draws, lambda *x: loss(None, *x))
    assert equal(constant, exact)
    assert equal(shrunk, (1 - 1 / draws) * exact)


def test_importance_weights_by_hand():
    """p/q up to the limit; constants; finite whatever p and q are."""
    log_p = torch.tensor([-1.0, -2.0, -3.0, 0.0, -900.0], requires_grad=True)
    log_q = torch.tensor([-1.0, -1.0, -4.0, -800.0, 0.0], requires_grad=True)
    weights = losses.importance_weights(log_p, log_q, 2.0)
    assert not weights.requires_grad
    assert torch.allclose(weights, torch.tensor([1.0, math.exp(-1), 2.0, 2.0, 0.0]))
    weights = losses.importance_weights(log_p, log_q, math.inf)
    assert torch.allclose(weights[2], torch.tensor(math.exp(1)))
    assert torch.isfinite(weights).all() and torch.isfinite(weights.log()).all()


def test_weights_by_hand():
    """Factors of a draw's term in REINFORCE and RLOO, of p^alpha in MRT; 1 changes nothing."""
    weights = torch.tensor([0.5, 2.0, 1.0, 1.5, 0.1, 1.0], dtype=torch.float64)
    common = (REWARDS, INDEX, 4, ALPHA)
    score_functions = (
        lambda lp, w: losses.reinforce_loss(lp, *common, 0.5, DRAWN, w),
        lambda lp, w: losses.rloo_loss(lp, *common, DRAWN, w),
    )
    for loss in score_functions:
        plain = row_gradient(lambda lp, f=loss: f(lp, None))
        assert torch.allclose(row_gradient(lambda lp, f=loss: f(lp, weights)), weights * plain)
    q = torch.softmax(ALPHA * log_probs().detach()[:3] + weights[:3].log(), 0)
    risk = losses.mrt_loss(log_probs(), *common, weights)
    assert torch.isclose(risk[0].detach(), -(q * REWARDS[:3]).sum())
    fused = losses.fused_loss(log_probs(), *common, 0.5, DRAWN, weights)
    reinforce = losses.reinforce_loss(log_probs(), *common, 0.5, DRAWN, weights)
    assert torch.equal(fused, torch.stack([risk[0], reinforce[1], risk[2], risk[3]]))
    ones = torch.ones_like(weights)
    assert torch.equal(
        losses.fused_loss(log_probs(), *common, 0.5, DRAWN, ones),
        losses.fused_loss(log_probs(), *common, 0.5, DRAWN),
    )


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_corrections(temperature):
    """Draws from q at another temperature: what each correction's expected gradient is.

    As in the paper it is that of neither distribution's reward; with the scores at the same
    temperature exactly that of E_q[r]; with weights p/q exactly that of E_p[r], and, the lower
    they are limited, the farther from it.
    """
    space = Space(temperature)
    of_p = space.gradient(-(space.log_p.exp() * space.rewards).sum())
    of_q = space.gradient(-(space.log_q.exp() * space.rewards).sum())

    def expected(log_probs, clip=None):
        def loss(rows, index, multiplicity):
            weights = None
            if clip is not None:
                weights = losses.importance_weights(space.log_p[rows], space.log_q[rows], clip)
            return losses.reinforce_loss(
                log_probs[rows],
                space.rewards[rows],
                index,
                int(index.max()) + 1,
                ALPHA,
                0.3,
                multiplicity,
                weights,
            )

        return space.expected(2, loss)

    uncorrected = expected(space.log_p)
    assert min((uncorrected - g).norm() / g.norm() for g in (of_p, of_q)) > 0.05
    assert equal(expected(space.log_q), of_q)
    assert equal(expected(space.log_p, math.inf), of_p)
    errors = [(expected(space.log_p, clip) - of_p).norm() for clip in (math.inf, 1.2, 0.8)]
    assert errors[0] < errors[1] < errors[2]


def test_weighted_rloo_is_unbiased():
    """RLOO with weights p/q on draws from q has the exact gradient of E_p[r]."""
    space = Space(1.7)
    exact = space.gradient(-(space.log_p.exp() * space.rewards).sum())

    def loss(rows, index, multiplicity):
        log_p = space.log_p[rows]
        weights = losses.importance_weights(log_p, space.log_q[rows], math.inf)
        common = (space.rewards[rows], index, int(index.max()) + 1, ALPHA)
        return losses.rloo_loss(log_p, *common, multiplicity, weights)

    assert equal(space.expected(3, loss), exact)
