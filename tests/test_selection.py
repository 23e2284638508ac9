"""--rescored-share and --selection: the gradient of a part of the rows, and what stays of all."""

import math

import numpy as np
import pytest
import torch
from fairseq.logging import metrics
from helpers import make_batch, make_model, plain_scores, take
from test_criterion import OBJECTIVES, Run

from esrl_fairseq.core.losses import mrt_loss, segment_sum, spread_scale
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring import frozen


def watched(**options):
    """A run that shows its samples."""
    run = Run(**{"ppo_level": "sequence", **options})
    linearise = run.criterion.objective.linearise

    def linearised(samples, seed):
        run.samples = samples
        return linearise(samples, seed)

    run.criterion.objective.linearise = linearised
    return run


def slopes(run, batch):
    """∇log p of each row, [rows, parameters], from plain log-probabilities."""
    log_probs, _ = plain_scores(run.model.eval(), batch, run.samples.rows, min_len=1)
    run.model.train()
    rows = []
    for log_p in log_probs:
        found = torch.autograd.grad(
            log_p, list(run.model.parameters()), retain_graph=True, allow_unused=True
        )
        rows.append(
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(run.model.parameters(), found)
                ]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("selection", ["top", "unbiased", "mixed"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_is_that_of_the_chosen_rows(objective, selection):
    """−Σ w c ∇log p over them, c being minus the slope of the loss of all rows; the loss's value,
    the rewards that are pushed and what the store learns are those of all rows."""
    batch, options = make_batch(), {"objective": objective}
    run, all_of_them = (
        watched(rescored_share=0.4, selection=selection, **options),
        watched(**options),
    )
    loss, gradient, inputs = run.gradient(batch)
    full, full_gradient, _ = all_of_them.gradient(batch)
    found, whole = run.samples.loss, all_of_them.samples.loss
    assert torch.equal(found.coefficients, whole.coefficients)
    assert 0 < len(found.chosen) < len(whole.chosen) <= len(run.samples.rows)
    each = slopes(run, batch)
    weights = torch.zeros(len(each)).index_put((found.chosen,), found.weights)
    written = -((weights * found.coefficients).unsqueeze(1) * each).sum(0)
    assert torch.allclose(gradient, written, rtol=1e-3, atol=1e-5) and written.norm() > 1e-3
    written = -(whole.coefficients.unsqueeze(1) * each).sum(0)
    assert torch.allclose(full_gradient, written, rtol=1e-3, atol=1e-5)
    if objective != "ppo":  # whose loss is a sum over the chosen rows
        assert loss == full
    (visit,), (expected,) = run.task.rl._pending, all_of_them.task.rl._pending
    assert visit.records.tobytes() == expected.records.tobytes()
    assert np.array_equal(visit.rewards, expected.rewards)


@pytest.mark.parametrize("what", ["log_probs", "rewards"])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_row_without_numbers(objective, share, what):
    """The gradient has none either, also where the row's own coefficient is 0: fairseq then skips
    the update."""
    run = watched(objective=objective, rescored_share=share)
    of_judge = run.criterion.judge

    def judge(model, samples):
        of_judge(model, samples)
        rows = samples.rows.input_index.bincount()
        alone = samples.rows.input_index == rows.argmin()  # an input with one row
        assert rows.min() == 1
        values = samples.drawn.log_probs if what == "log_probs" else samples.rewards
        values[alone] = np.nan

    run.criterion.judge = judge
    _, gradient, _ = run.gradient(make_batch())
    assert not gradient.isfinite().all()


def test_bias_by_enumeration():
    """Over all that chance may choose, `unbiased` and `mixed` give the gradient of all rows, and
    `top` the one of the loss whose small coefficients are 0."""
    batch, run = make_batch(), watched(objective="rloo")
    run.loss(batch)
    samples, each = run.samples, slopes(run, batch)
    c = samples.loss.coefficients
    exact = -(c.unsqueeze(1) * each).sum(0)
    bias = {}
    for selection in ("top", "unbiased", "mixed"):
        cfg = run.criterion.cfg
        cfg.rescored_share, cfg.selection = 0.4, selection
        mean = torch.zeros(len(c))
        rounds = 3000
        for seed in range(rounds):
            places, weights = run.criterion.objective.choose(samples, c.abs(), seed)
            mean[places] += weights / rounds
        expected = -((mean * c).unsqueeze(1) * each).sum(0)
        bias[selection] = float((expected - exact).norm() / exact.norm())
    assert bias["unbiased"] < 0.03 and bias["mixed"] < 0.03 < 0.1 < bias["top"] < 0.9


@pytest.mark.parametrize("objective", ["fused", "mrt"])
def test_risk_is_over_all_candidates(objective):
    """MRT's Q is normalised over the rows that are left out, too: by what drawing them told."""
    batch, run = make_batch(), watched(objective=objective, rescored_share=0.3)
    run.loss(batch)
    samples = run.samples
    log_p, _ = plain_scores(run.model.eval(), batch, samples.rows, min_len=1)
    log_p = log_p.detach().requires_grad_()
    rewards = torch.tensor(samples.rewards)
    index = samples.rows.input_index
    risk = mrt_loss(log_p, rewards, index, 6, 0.5)
    (expected,) = torch.autograd.grad(risk.sum(), log_p)
    several = torch.bincount(index, minlength=6)[index] >= 2
    assert torch.allclose(-expected[several], samples.loss.coefficients[several], atol=1e-6)
    assert len(samples.chosen) < int(several.sum())


def test_budget_is_the_batch_s():
    """The tokens of the chosen rows, not those of each input; some inputs may have none."""
    run = watched(objective="rloo", rescored_share=0.3, task_options={"elimination_ratio": 0})
    _, _, log = run.loss(make_batch())
    tokens = run.samples.rows.lengths
    assert log["all_tokens"] == tokens.sum()
    assert log["chosen_tokens"] == tokens[run.samples.loss.chosen].sum() <= 0.3 * tokens.sum()
    assert log["chosen_rows"] == len(run.samples.chosen)
    squares = run.samples.loss.coefficients**2
    kept = float(squares[run.samples.loss.chosen].sum() / squares.sum())
    assert log["kept_squares"] == pytest.approx(kept) and 0.3 < kept < 1
    with metrics.aggregate(new_root=True) as values:
        run.criterion.reduce_metrics([log, log])
    found = values.get_smoothed_values()
    assert found["chosen_tokens"] == pytest.approx(
        log["chosen_tokens"] / log["all_tokens"], abs=1e-3
    )
    assert found["kept_squares"] == pytest.approx(kept, abs=1e-3)
    assert found["stages_apart"] < 1e-5


def test_length_normalization_counts_in_kept_squares():
    """c is by log p, not by log p / |y|."""
    options = {"length_normalization": True, "rescored_share": 0.4}
    run = watched(objective="rloo", task_options={"elimination_ratio": 0}, **options)
    _, _, log = run.loss(make_batch())
    loss, lengths = run.samples.loss, run.samples.drawn.lengths
    squares = (loss.coefficients / lengths) ** 2
    kept = float(squares[loss.chosen].sum() / squares.sum())
    assert log["kept_squares"] == pytest.approx(kept)
    other = loss.coefficients**2
    assert abs(kept - float(other[loss.chosen].sum() / other.sum())) > 1e-3


def test_a_batch_that_teaches_nothing_is_not_in_kept_squares():
    run = watched(objective="rloo", rescored_share=0.5)
    _, _, log = run.loss(make_batch())
    run.criterion.cfg.reward_control = "constant"
    _, _, nothing = run.loss(make_batch())
    assert not run.samples.loss.coefficients.any()
    with metrics.aggregate(new_root=True) as values:
        run.criterion.reduce_metrics([log, nothing])
    assert values["kept_squares"].avg == pytest.approx(log["kept_squares"])
    with metrics.aggregate(new_root=True) as values:
        run.criterion.reduce_metrics([nothing])
    assert "kept_squares" not in values


@pytest.mark.parametrize("selection", ["unbiased", "mixed"])
def test_chance_that_chooses_nothing_is_logged_and_warned_of(selection, caplog):
    """The row that stage two gets for want of any other has no part in the figures."""
    run = watched(objective="rloo", rescored_share=0.001, selection=selection)
    _, gradient, _ = run.gradient(make_batch())
    _, _, log = run.loss(make_batch())
    assert not gradient.any()
    assert len(run.samples.chosen) == 1 and run.samples.loss.weights.tolist() == [0]
    assert log["chosen_rows"] == log["chosen_tokens"] == log["kept_squares"] == 0
    assert log["stages_apart"] < 1e-4 and log["chosen_scored"] > 0
    found = [r.getMessage() for r in caplog.records if "--rescored-share 0.001" in r.getMessage()]
    assert len(found) == 1 and "chance chose no sample" in found[0]


@pytest.mark.parametrize("selection", ["top", "unbiased"])
def test_split_of_the_same_update(selection):
    """Each batch has its own budget and its own chance; the same batch chooses the same rows."""
    batch = make_batch()
    options = dict(objective="rloo", rescored_share=0.5, selection=selection)
    (_, one, _), (_, again, _) = (watched(**options).gradient(batch) for _ in range(2))
    assert torch.equal(one, again)
    halves = [take(batch, [0, 1, 2]), take(batch, [3, 4, 5])]
    _, both, _ = watched(**options).gradient(*halves)
    _, first, _ = watched(**options).gradient(halves[0])
    _, second, _ = watched(**options).gradient(halves[1])
    assert torch.allclose(both, first + second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["fused", "rloo"])
def test_standard_sampling_chooses_the_same(objective):
    batch = make_batch()
    options = dict(objective=objective, rescored_share=0.4)
    _, two_stage, _ = watched(**options).gradient(batch)
    _, standard, _ = watched(sampling_mode="standard", **options).gradient(batch)
    assert torch.allclose(two_stage, standard, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
def test_kl_is_of_all_rows(dropout, monkeypatch):
    """Those that are not rescored, too: log p is stage one's, log p_ref of a pass without graph."""
    monkeypatch.setattr(frozen, "load_model", lambda *_: make_model(seed=5))
    kl = dict(kl_weight=0.3, kl_reference="other.pt", rescoring_dropout=dropout)
    run, all_of_them = watched(rescored_share=0.3, **kl), watched(**kl)
    batch = make_batch()
    _, _, log = run.loss(batch)
    _, _, expected = all_of_them.loss(batch)
    assert log["kl"] == expected["kl"] != 0
    assert np.array_equal(run.samples.rewards, all_of_them.samples.rewards)


def test_with_references():
    """They are scored whatever is chosen."""
    batch = make_batch()
    run, plain = (watched(rescored_share=0.3, mle_weight=w) for w in (0.3, 0.0))
    (_, _, log), (_, _, expected) = run.loss(batch), plain.loss(batch)
    assert log["nll_references"] > 0 and log["chosen_rows"] == expected["chosen_rows"]


def test_stages_that_differ_are_seen():
    """A decoder that does another thing in whole rows than step by step."""
    run, batch = watched(), make_batch()
    _, _, log = run.loss(batch)
    assert float(log["stages_apart"]) / log["chosen_scored"] < 1e-5
    forward = run.model.decoder.forward

    def shifted(*args, incremental_state=None, **keywords):
        output = forward(*args, incremental_state=incremental_state, **keywords)
        return (output[0] * 1.1, *output[1:]) if incremental_state is None else output

    run.model.decoder.forward = shifted
    _, _, log = run.loss(batch)
    assert float(log["stages_apart"]) / log["chosen_scored"] > 1e-3
    for quiet in ({"rescoring_dropout": True}, {"sampling_mode": "standard"}):
        assert "stages_apart" not in watched(**quiet).loss(batch)[2]


def test_reward_scaling_by_hand():
    """Standard deviations with divisor n − 1; an input with one draw takes that of all, and one
    whose rewards do not differ has none."""
    rewards = torch.tensor([0.1, 0.5, 0.9, 0.3])
    index, drawn = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 1, 1, 3])
    own, every = (
        np.std([0.1, 0.1, 0.5], ddof=1),
        np.std([0.1, 0.1, 0.5, 0.9, 0.3, 0.3, 0.3], ddof=1),
    )
    scale = spread_scale(rewards, index, 4, drawn, "input")
    expected = [1 / (own + 1e-4), 1 / (every + 1e-4), 0, 1 / (every + 1e-4)]
    assert scale.tolist() == pytest.approx(expected, rel=1e-4)
    scale = spread_scale(rewards, index, 4, drawn, "batch")
    assert scale.tolist() == pytest.approx([1 / (every + 1e-4)] * 4, rel=1e-4)
    assert spread_scale(rewards, index, 4, drawn, "none").tolist() == [1] * 4


@pytest.mark.parametrize("scaling", ["input", "batch"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.37, -7.3])
def test_no_spread_no_scale(reward, scaling):
    """However many draws: their mean is not exact. What is no number stays so."""
    rewards, one = torch.full((5000,), reward), torch.ones(5000, dtype=torch.long)
    assert spread_scale(rewards, 0 * one, 1, one, scaling).tolist() == [0]
    rewards[7] = torch.nan
    assert spread_scale(rewards, 0 * one, 1, one, scaling).isnan().all()


@pytest.mark.parametrize("scaling", ["input", "batch"])
@pytest.mark.parametrize("baseline", ["fifo", "group", "none"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_rewards_have_no_gradient(objective, baseline, scaling):
    """Whatever the baseline is: nothing is chosen, and the loss is not blown up."""
    options = {"objective": objective, "reward_baseline": baseline, "reward_scaling": scaling}
    queue = (0.3,) if baseline == "fifo" else ()
    run = watched(queue=queue, reward_control="constant", rescored_share=0.5, **options)
    loss, gradient, _ = run.gradient(make_batch())
    assert loss == 0 and not gradient.any() and run.samples.loss.chosen.tolist() == [0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_without_spread_are_not_rescored(objective):
    """Of an input drawn as one row several times, or with equal rewards, beside others."""
    run = watched(objective=objective, reward_scaling="input", rescored_share=0.9)
    score = run.criterion.score_rows

    def scored(sample, rows):
        found = score(sample, rows)
        equal = rows.input_index.numpy() == 3
        assert rows.multiplicity[equal].sum() > 1
        found.rewards = np.where(equal, np.float32(0.7), found.rewards)
        return found

    run.criterion.score_rows = scored
    run.loss(make_batch())
    samples = run.samples
    assert 3 not in samples.rows.input_index[samples.loss.chosen]
    assert samples.loss.losses[3] == 0 and samples.loss.losses.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reward_scaling_scales_each_input(objective):
    batch = make_batch()
    plain, scaled = (
        watched(objective=objective),
        watched(objective=objective, reward_scaling="input"),
    )
    plain.loss(batch), scaled.loss(batch)
    rows = plain.samples.rows
    scale = spread_scale(
        torch.tensor(plain.samples.rewards), rows.input_index, 6, rows.multiplicity, "input"
    )
    expected = plain.samples.loss.coefficients * scale[rows.input_index]
    assert torch.allclose(scaled.samples.loss.coefficients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["fused", "mrt"])
def test_mrt_over_draws(objective):
    """Through the criterion: equal samples count as often as they came, as in RLOO."""
    batch = make_batch()
    found, rloo = (
        watched(objective=kind, risk_alpha=1e-3, risk_candidates="draws")
        for kind in (objective, "rloo")
    )
    found.loss(batch), rloo.loss(batch)
    rows = found.samples.rows
    assert (rows.multiplicity > 1).any()
    several = (rows.input_index.bincount() > 1)[rows.input_index]
    draws = segment_sum(rows.multiplicity, rows.input_index, 6)[rows.input_index]
    expected = (draws - 1) / draws * rloo.samples.loss.coefficients
    assert torch.allclose(
        found.samples.loss.coefficients[several], expected[several], rtol=0.05, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescored_share": 0.0}, "--rescored-share is 0.0, but must be above 0 and at most 1"),
        ({"rescored_share": 1.5}, "--rescored-share is 1.5"),
        ({"rescored_share": math.nan}, "--rescored-share is nan"),
        ({"ppo_clip_high": 0.1}, "--ppo-clip-high is 0.1, but must be a number from --ppo-clip"),
        ({"ppo_clip_high": math.inf}, "--ppo-clip-high is inf"),
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(EsrlError, match=message):
        Run(**options)


def test_idle_options_are_named(caplog):
    run = Run(selection="unbiased", ppo_clip_high=0.3, objective="rloo", risk_candidates="draws")
    assert "--selection unbiased (for a --rescored-share below 1)" in caplog.text
    assert "--ppo-clip-high 0.3 (for --objective ppo)" in caplog.text
    assert "--risk-candidates draws (for the objectives fused and mrt, with" in caplog.text
    assert run.criterion.cfg.rescored_share == 1
