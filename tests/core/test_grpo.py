"""docs/grpo.md: the published losses of GRPO and its relatives, written down once more, are the
losses here under the options that the page names.

All are means over inputs, of token log-probabilities [rows, length] with gradient.
"""

import itertools

import numpy as np
import pytest
import torch

from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.objective import Objective
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.state.samples import Samples

N = 4  # samples an input
LENGTHS = [3, 1, 5, 2, 4, 4, 2, 5]  # of two inputs' samples
REWARDS = np.array([0.9, 0.1, 0.4, 0.5, 0.2, 0.2, 0.8, 0.0])
LOW, HIGH = 0.2, 0.28
PAD = 0


def policy(scale=0.0, seed=1):
    """Log-probabilities with gradient; further from those at scale 0 for larger scales."""
    draw = torch.Generator().manual_seed(seed)
    values = -3 * torch.rand(len(LENGTHS), max(LENGTHS), generator=draw, dtype=torch.float64)
    moved = torch.randn(values.shape, generator=draw, dtype=torch.float64)
    return (values + scale * moved).requires_grad_()


# What the papers say, by loops over inputs, samples and tokens


def centred(rewards):
    """Dr. GRPO's advantages: less the mean of the input's samples."""
    return (rewards.reshape(-1, N) - rewards.reshape(-1, N).mean(1, keepdims=True)).ravel()


def standardised(rewards):
    """GRPO's: also over their standard deviation; implementations add a little to it."""
    return centred(rewards) / spread(rewards.reshape(-1, N))


def spread(rewards):
    """Of each input's samples, or of all, for each of them."""
    return (rewards.std(-1, ddof=1, keepdims=True) + 1e-4 + 0 * rewards).ravel()


def clipped(ratio, advantage, low, high):
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def mean_over_inputs(of_group):
    groups = [range(i, i + N) for i in range(0, len(LENGTHS), N)]
    return sum(of_group(group) for group in groups) / len(groups)


def by_tokens(log_p, old, advantages, divisor, low=LOW, high=LOW):
    """−1/N Σ_j 1/divisor Σ_t min(ρ A, clip(ρ) A); GRPO, Dr. GRPO and DAPO differ in the divisor.

    divisor: (a row, the rows of its input) → what its tokens are divided by.
    """

    def of_group(group):
        total = 0
        for row in group:
            for t in range(LENGTHS[row]):
                ratio = (log_p[row, t] - old[row, t]).exp()
                term = clipped(ratio, advantages[row], low, high)
                total = total - term / divisor(row, group) / N
        return total

    return mean_over_inputs(of_group)


def grpo(log_p, old, rewards, high=LOW):
    """Shao et al. 2024, equation 3, without KL."""
    return by_tokens(log_p, old, standardised(rewards), lambda row, _: LENGTHS[row], high=high)


def dr_grpo(log_p, old, rewards, high=LOW):
    """Liu et al. 2025: neither division."""
    return by_tokens(log_p, old, centred(rewards), lambda *_: 1, high=high)


def dapo(log_p, old, rewards, high=HIGH):
    """Yu et al. 2025, equation 8: over the tokens of the whole group."""

    def mean_length(_, group):
        return sum(LENGTHS[row] for row in group) / N

    return by_tokens(log_p, old, standardised(rewards), mean_length, high=high)


def gspo(log_p, old, rewards, low=LOW, high=LOW):
    """Zheng et al. 2025, equation 5: the ratio is a geometric mean over the tokens."""
    advantages = standardised(rewards)

    def of_group(group):
        total = 0
        for row in group:
            length = LENGTHS[row]
            ratio = ((log_p[row, :length] - old[row, :length]).sum() / length).exp()
            total = total - clipped(ratio, advantages[row], low, high) / N
        return total

    return mean_over_inputs(of_group)


def rloo(log_p, rewards):
    """Ahmadian et al. 2024: against the mean of the others."""

    def of_group(group):
        total = 0
        for row in group:
            others = np.mean([rewards[other] for other in group if other != row])
            total = total - (rewards[row] - others) * log_p[row, : LENGTHS[row]].sum() / N
        return total

    return mean_over_inputs(of_group)


def max_variance(rewards, most):
    """PODS (Xu et al. 2025): the so many samples whose rewards have the largest variance."""
    subsets = itertools.combinations(range(len(rewards)), most)
    return max(subsets, key=lambda rows: np.var([rewards[row] for row in rows]))


# What is computed here


def ours(log_p, rewards, old=None, baseline=0.0, **options):
    """The criterion's loss with these options, as fairseq's mean over inputs.

    old: of the policy that drew the rows; by default the one that is trained.
    """
    lengths = torch.tensor(LENGTHS)
    own = torch.arange(max(LENGTHS)) < lengths.unsqueeze(1)
    rows = Rows(
        tokens=torch.where(own, 5, PAD),
        lengths=lengths,
        input_index=torch.arange(2).repeat_interleave(N),
        truncated=torch.zeros(len(LENGTHS), dtype=torch.bool),
        multiplicity=torch.ones(len(LENGTHS), dtype=torch.long),
    )

    def scores(table):
        table = table.masked_fill(~own, 0)
        tokens = table if options.get("ppo_level", "token") == "token" else None
        entropy = torch.zeros(len(LENGTHS))
        return Scores(table.sum(1), entropy, lengths, token_log_probs=tokens)

    objective = Objective(EsrlCriterionConfig(risk_alpha=1.0, **options))
    samples = Samples(
        {"id": torch.arange(2)},
        plan=None,
        rows=rows,
        drawn=scores(log_p if old is None else old).detach(),
        scored=None,
        rewards=rewards,
        dummy=False,
        baseline=baseline,
    )
    samples.loss = objective.linearise(samples, 1)
    chosen = samples.loss.chosen
    with_gradient = scores(log_p)[chosen]
    samples.scores = with_gradient.detach()
    if old is not None:
        old_log_probs = objective.ppo.log_probs(scores(old), rows).detach()
        samples.old_log_probs = old_log_probs[chosen]
    term = objective.term(samples, "cpu")(torch.arange(len(chosen)), with_gradient)
    return (objective.losses(samples).sum() + term - term.detach()) / samples.inputs


def gradient(loss, log_p):
    return torch.autograd.grad(loss, log_p, retain_graph=True)[0]


def same(one, other, log_p, factor=1.0, value=True):
    """Both losses have the same gradient, up to a known factor, and the same value."""
    first, second = gradient(one, log_p), gradient(other, log_p)
    assert first.abs().max() > 0.01
    return torch.allclose(first, factor * second) and (
        not value or torch.allclose(one, factor * other)
    )


def test_rloo():
    log_p = policy()
    assert same(ours(log_p, REWARDS, objective="rloo"), rloo(log_p, REWARDS), log_p)


def test_one_update_a_batch_is_leave_one_out():
    """At ρ = 1, GRPO, Dr. GRPO and GSPO are rloo up to n/(n − 1); DAPO also up to each input's mean
    length."""
    log_p = policy()
    old, factor = log_p.detach(), N / (N - 1)
    plain = ours(log_p, REWARDS, objective="rloo")
    assert same(plain, dr_grpo(log_p, old, REWARDS), log_p, factor, value=False)
    scaled = {"objective": "rloo", "reward_scaling": "input"}
    by_length = ours(log_p, REWARDS, length_normalization=True, **scaled)
    assert same(by_length, grpo(log_p, old, REWARDS), log_p, factor, value=False)
    assert same(by_length, gspo(log_p, old, REWARDS), log_p, factor, value=False)
    found = gradient(ours(log_p, REWARDS, **scaled), log_p)
    published = gradient(dapo(log_p, old, REWARDS), log_p)
    mean_length = torch.tensor(LENGTHS, dtype=torch.float64).view(-1, N).mean(1)
    per_row = mean_length.repeat_interleave(N).unsqueeze(1)
    assert torch.allclose(found, factor * per_row * published)


@pytest.mark.parametrize(
    "published, options",
    [
        (grpo, {"reward_scaling": "input", "length_normalization": True}),
        (dr_grpo, {}),
        (gspo, {"ppo_level": "sequence", "reward_scaling": "input", "length_normalization": True}),
    ],
)
@pytest.mark.parametrize("high", [LOW, HIGH])
def test_several_updates_a_batch(published, options, high):
    """ppo against the group's mean is the published loss, where the clip is active, too."""
    log_p, old = policy(scale=0.8), policy().detach()
    common = dict(objective="ppo", reward_baseline="group", ppo_clip=LOW, ppo_clip_high=high)
    found = ours(log_p, REWARDS, old, **common, **options)
    assert same(found, published(log_p, old, REWARDS, high=high), log_p)
    if published is not gspo:  # whose ratios do not go so far
        assert not same(found, published(log_p, old, REWARDS, high=3 * high), log_p)
    own = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    assert (gradient(found, log_p)[own] == 0).any()  # clipped


def test_dapo_has_a_factor_an_input():
    """DAPO's loss is ours over the mean length of the input's samples."""
    log_p, old = policy(scale=0.8), policy().detach()
    lengths = torch.tensor(LENGTHS, dtype=torch.float64).view(-1, N).mean(1)
    rewards = REWARDS / lengths.repeat_interleave(N).numpy()
    rewards = rewards / spread(REWARDS.reshape(-1, N))
    common = dict(objective="ppo", reward_baseline="group", ppo_clip=LOW)
    found = ours(log_p, rewards, old, ppo_clip_high=HIGH, **common)
    assert same(found, dapo(log_p, old, REWARDS), log_p)
    assert not same(ours(log_p, rewards, old, **common), dapo(log_p, old, REWARDS), log_p)


def test_reinforce_plus_plus():
    """Its advantages are standardised over the batch."""
    log_p, old = policy(scale=0.8), policy().detach()
    mean = REWARDS.mean()
    advantages = (REWARDS - mean) / spread(REWARDS)
    common = dict(objective="ppo", reward_scaling="batch")
    found = ours(log_p, REWARDS, old, baseline=mean, **common)
    assert same(found, by_tokens(log_p, old, advantages, lambda *_: 1), log_p)


def test_which_kl_a_gradient_is_of():
    """By enumeration: of GRPO's estimator the mean is KL(p‖p_ref), but the mean of its gradient
    that of KL(p_ref‖p); of the log-ratio as a reward it is that of KL(p‖p_ref)."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    log_p = logits.log_softmax(0)
    p = log_p.exp().detach()
    log_ratio = reference.log() - log_p
    estimates = log_ratio.exp() - log_ratio - 1
    forward, backward = (log_p.exp() * -log_ratio).sum(), (reference * log_ratio).sum()
    assert torch.allclose((p * estimates).sum(), forward)
    estimated = gradient((p * estimates).sum(), logits)
    in_reward = gradient((p * -log_ratio.detach() * log_p).sum(), logits)
    assert torch.allclose(estimated, gradient(backward, logits))
    assert torch.allclose(in_reward, gradient(forward, logits))
    assert not torch.allclose(in_reward, estimated)


def test_largest_variance_is_at_both_ends():
    """PODS keeps some of the highest and some of the lowest rewards."""
    draw = np.random.default_rng(1)
    for most in (2, 3, 5):
        rewards = draw.random(7)
        kept = sorted(rewards[list(max_variance(rewards, most))])
        ordered = sorted(rewards)
        ends = [[*ordered[:low], *ordered[7 - most + low :]] for low in range(most + 1)]
        assert kept in ends
