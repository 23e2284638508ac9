"""The criterion as a whole: invariances, branches, references, validation, what it remembers."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.dataclass.utils import merge_with_parent
from fairseq.logging import metrics
from fairseq.tasks.translation import TranslationTask
from helpers import (
    EOS,
    PAD,
    TARGET,
    add_padding,
    coefficients,
    gradients,
    known_of,
    make_batch,
    make_criterion,
    make_dataset,
    make_model,
    make_rows,
    make_task,
    plain_scores,
    take,
)
from omegaconf import OmegaConf

from esrl_fairseq.core.baselines import KINDS
from esrl_fairseq.core.controls import control_rewards, perturb_capability
from esrl_fairseq.core.losses import (
    fused_loss,
    mrt_loss,
    ppo_loss,
    reinforce_loss,
    rloo_loss,
    segment_mean,
)
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring.logs import BRANCHES, peak_memory_gb
from esrl_fairseq.monitoring.warnings import Monitor
from esrl_fairseq.sampling.options import (
    SamplingConfig,
    check_places,
    check_sampling_options,
    deciding_capability,
    elimination_ratio,
)
from esrl_fairseq.sampling_task import SamplingTask
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.samples import Samples
from esrl_fairseq.task import EsrlTranslationConfig

OBJECTIVES = ("fused", "mrt", "reinforce", "rloo", "ppo")
DYNAMIC = dict(
    num_samples=6, elimination_ratio=0.5, min_sample_temperature=0.7, max_sample_temperature=1.5
)
ALIKE = {"min_sample_temperature": None, "max_sample_temperature": None}


class Run:
    """Task, criterion and model with known capabilities and, if asked, a filled reward queue."""

    def __init__(self, queue=(0.3, 0.1, 0.6), known=True, task_options=None, **options):
        self.task = make_task(**{**DYNAMIC, **(task_options or {})})
        self.criterion = make_criterion(self.task, **options)
        self.model = make_model().train()
        self.task.rl.baseline.push(queue)
        self.task.open_store()
        if known:
            records = np.zeros(5, RECORD)
            records["capability"] = [0.1, 0.9, 0.5, 0.3, 0.7]  # input 5 is unknown
            self.task.rl.store.write(np.arange(5), records)
        self.task.rl.begin_epoch(2)

    def loss(self, batch, seed=9):
        """Loss, sample size and log of one batch, as the trainer calls the criterion."""
        torch.manual_seed(seed)
        return self.criterion(self.model, batch)

    def gradient(self, *batches):
        """Summed loss, gradient and sample size of several batches of one update."""
        results = [self.loss(batch) for batch in batches]
        loss = sum(result[0] for result in results)
        return loss.detach(), gradients(self.model, loss), sum(result[1] for result in results)

    def rows(self, batch, seed=9):
        """{id: {(tokens, multiplicity)}} and the Rows that `loss` sees."""
        torch.manual_seed(seed)
        rows, _ = self.criterion.sample_rows(self.model, batch, self.task.plan(batch))
        found = {}
        for r, i in enumerate(rows.input_index.tolist()):
            tokens = tuple(rows.tokens[r, : rows.lengths[r]].tolist())
            found.setdefault(int(batch["id"][i]), set()).add((tokens, int(rows.multiplicity[r])))
        return found, rows

    def remembered(self):
        rl = self.task.rl
        return rl.baseline.rewards.tolist(), rl.store.records.tobytes(), rl.reference.tolist()


def close(one, other):
    assert torch.allclose(one[0], other[0], rtol=1e-4, atol=1e-6)
    assert one[1].norm() > 1e-3
    assert torch.allclose(one[1], other[1], rtol=1e-3, atol=1e-5)
    assert one[2] == other[2]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_splitting_and_order_change_nothing(objective):
    """(d) Identical samples; equal losses, gradients and sample sizes up to rounding."""
    run, batch = Run(objective=objective, mle_weight=0.3), make_batch()
    samples, _ = run.rows(batch)
    counts = sorted(sum(m for _, m in rows) for rows in samples.values())
    assert len(set(counts)) > 2 and counts[-1] == 6  # dynamic sampling is at work
    whole = run.gradient(batch)

    padded, permuted = add_padding(batch), take(batch, [3, 0, 5, 1, 4, 2])
    halves = [take(batch, [0, 1, 2]), take(batch, [3, 4, 5])]
    uneven = [make_batch(ids=[5, 2, 0, 1]), make_batch(ids=[3, 4])]
    for other in ([padded], [permuted], halves, uneven):
        found = {}
        for part in other:
            found.update(run.rows(part)[0])
        assert found == samples
        close(run.gradient(*other), whole)


def test_two_batches_of_an_update_leave_the_state_of_one():
    """(d) After the update queue and store are what one large batch leaves."""
    one, two, batch = Run(), Run(), make_batch()
    one.loss(batch)
    before = two.remembered()
    for positions in ([0, 1, 2], [3, 4, 5]):
        two.loss(take(batch, positions))
        assert two.remembered() == before  # nothing is seen before the update is over
    one.task.rl.commit(), two.task.rl.commit()
    (rewards, store, _), (found, found_store, _) = one.remembered(), two.remembered()
    assert found == rewards != before[0]
    a, b = (np.frombuffer(s, RECORD) for s in (store, found_store))
    for name in RECORD.names:
        assert np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6), name


def test_baseline_is_the_batch_mean_only_while_the_queue_is_empty():
    """(f) Then the mean of the queue; the current rewards follow it after the update."""
    run, batch = Run(queue=()), make_batch()
    _, _, log = run.loss(batch)
    assert math.isclose(log["baseline"], log["reward"] / log["draws"], rel_tol=1e-6)
    run.task.rl.commit()
    pushed = run.task.rl.baseline.rewards.astype(np.float64)
    assert len(pushed) == log["draws"]
    _, _, log = run.loss(batch, seed=10)
    assert math.isclose(log["baseline"], pushed.mean(), rel_tol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_equals_the_formulas(objective):
    """The criterion's loss from its own rows, plain log-probabilities and text rewards."""
    run, batch = Run(objective=objective, ppo_level="sequence"), make_batch()
    loss, sample_size, log = run.loss(batch)
    _, rows = run.rows(batch)
    log_probs, entropy = plain_scores(run.model.eval(), batch, rows, min_len=1)
    rewards = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
    assert rewards.unique().numel() > 2
    baseline = np.mean([0.3, 0.1, 0.6])
    common = (log_probs, rewards, rows.input_index, 6, 0.5)
    expected = {
        "mrt": lambda: mrt_loss(*common),
        "reinforce": lambda: reinforce_loss(*common, baseline, rows.multiplicity),
        "fused": lambda: fused_loss(*common, baseline, rows.multiplicity),
        "rloo": lambda: rloo_loss(*common, rows.multiplicity),
        "ppo": lambda: ppo_loss(
            log_probs.unsqueeze(1),
            None,
            coefficients(*common[1:], baseline, rows.multiplicity),
            rows.input_index,
            6,
            (0.2, 0.2),
            torch.ones(len(rows), 1),
        ),
    }[objective]().sum()
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-6)
    assert sample_size == log["sample_size"] == 6
    assert log["entropy"] == pytest.approx(float(entropy.sum()), rel=1e-4)
    assert log["draws"] == rows.multiplicity.sum() and log["rows"] == len(rows)
    several = int((torch.bincount(rows.input_index, minlength=6) >= 2).sum())
    assert 0 < several < 6
    fused = {"mrt": several, "reinforce": 6 - several}
    branches = fused if objective == "fused" else {objective: 6}
    for branch in BRANCHES:
        assert log[f"inputs_{branch}"] == branches.get(branch, 0)
    parts = [log[f"loss_{branch}"] for branch in BRANCHES]
    assert sum(parts) == pytest.approx(float(log["loss"]), rel=1e-5)
    assert sum(p != 0 for p in parts) == len(branches)


@pytest.mark.parametrize("mle_weight", [0.0, 0.3])
@pytest.mark.parametrize("correction", ["none", "tempered", "importance"])
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "ppo"])
def test_temperature_correction(objective, correction, mle_weight):
    """The loss from plain log-probabilities at temperature 1 and at each input's own."""
    run = Run(
        objective=objective,
        temperature_correction=correction,
        importance_clip=1.1,
        mle_weight=mle_weight,
    )
    batch = make_batch()
    loss, _, log = run.loss(batch)
    _, rows = run.rows(batch)
    model = run.model.eval()
    log_p, _ = plain_scores(model, batch, rows, min_len=1)
    log_q = log_p.clone()
    temperature = run.task.plan(batch).temperature
    assert len(set(temperature.tolist())) > 4
    for i, tau in enumerate(temperature.tolist()):
        at_tau, _ = plain_scores(model, batch, rows, min_len=1, temperature=tau)
        log_q = torch.where(rows.input_index == i, at_tau, log_q)
    ratio = (log_p - log_q).exp().detach()
    assert ratio.min() < 0.9 and ratio.max() > 1.1
    weights = ratio.clamp(max=1.1) if correction == "importance" else None
    rewards = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
    trained = log_q if correction == "tempered" else log_p
    common = (trained, rewards, rows.input_index, 6, 0.5)
    queue = (np.mean([0.3, 0.1, 0.6]), rows.multiplicity)
    expected = {
        "mrt": lambda: mrt_loss(*common, weights),
        "reinforce": lambda: reinforce_loss(*common, *queue, weights),
        "fused": lambda: fused_loss(*common, *queue, weights),
        "rloo": lambda: rloo_loss(*common, rows.multiplicity, weights),
    }[objective]().sum()
    expected = expected + mle_weight * 0.5 * log["nll_references"]
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)


def test_length_normalization_divides_by_chosen_tokens():
    """A forced EOS does not count as length."""
    run, batch = Run(objective="mrt", length_normalization=True), make_batch()
    loss, _, _ = run.loss(batch)
    _, rows = run.rows(batch)
    assert rows.truncated.any()
    log_probs, _ = plain_scores(run.model.eval(), batch, rows, min_len=1)
    rewards = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
    lengths = rows.lengths - rows.truncated.long()
    expected = mrt_loss(log_probs / lengths, rewards, rows.input_index, 6, 0.5).sum()
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_one_sample_an_input_uses_reinforce():
    """(e) With K = 1 fused is REINFORCE; MRT alone would have no gradient and is refused."""
    found = {}
    for objective in ("fused", "reinforce"):
        run = Run(objective=objective, task_options={"num_samples": 1})
        loss, _, log = run.loss(make_batch())
        found[objective] = gradients(run.model, loss)
        assert log["inputs_mrt"] == 0
    assert torch.equal(found["fused"], found["reinforce"]) and found["fused"].norm() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_duplicates_are_one_row(objective):
    """(e) Equal draws: one candidate of MRT, one input with REINFORCE, weight m in REINFORCE."""
    run = Run(objective=objective)
    sequences = [[4, EOS], [4, EOS], [4, EOS], [5, EOS], [4, 5, EOS], [5, EOS]]
    draws = make_rows(sequences, [0, 0, 0, 1, 1, 1])
    run.task.build_sampler(run.model).sample = lambda *_: (draws, known_of(draws))
    batch = make_batch(ids=[0, 1])
    rows, drawn = run.criterion.sample_rows(run.model, batch, run.task.plan(batch))
    assert rows.multiplicity.tolist() == [3, 2, 1] and rows.input_index.tolist() == [0, 1, 1]
    drawn.log_probs = torch.tensor([-1.0, -2.0, -3.0])
    rewards = np.float32([0.9, 0.2, 0.6])
    samples = Samples(batch, None, rows, drawn, None, rewards, False, baseline=0.4)
    samples.loss = run.criterion.objective.linearise(samples, 1)
    log_p = drawn.log_probs[samples.loss.chosen].requires_grad_()
    samples.scores = Scores(log_p, torch.zeros(len(log_p)), torch.ones(len(log_p)))
    loss = run.criterion.objective.term(samples, "cpu")(torch.arange(len(log_p)), samples.scores)
    (gradient,) = torch.autograd.grad(loss, log_p)
    q = torch.sigmoid(torch.tensor(0.5))  # of the second row against the third
    slope = 0.5 * q * (1 - q) * 0.4
    risk = torch.stack([slope, -slope])
    expected = {
        "mrt": torch.tensor([0.0, *risk]),
        "reinforce": -0.5 * torch.tensor([0.5, -0.2 * 2 / 3, 0.2 / 3]),
        "fused": torch.tensor([-0.5 * 0.5, *risk]),
        "rloo": -0.5 * torch.tensor([0.0, 2 * (0.2 - 0.4) / 3, (0.6 - 0.2) / 3]),
        "ppo": -0.5 * torch.tensor([0.5, -0.2 * 2 / 3, 0.2 / 3]),
    }[objective]
    assert torch.allclose(gradient, expected[samples.loss.chosen], atol=1e-6)
    places = samples.loss.chosen.tolist()
    assert places == (expected.nonzero().squeeze(1).tolist() or [0])  # one with nothing to learn


def test_skipped_inputs_have_no_loss_but_count():
    """k_min = 0: capable inputs are neither sampled nor visited; the sample size stays."""
    run = Run(task_options={"min_samples": 0, "elimination_ratio": 0.9}, objective="fused")
    batch = make_batch()
    plan = run.task.plan(batch)
    assert (plan.counts == 0).any() and (plan.counts > 0).any()
    loss, sample_size, log = run.loss(batch)
    assert sample_size == 6 and torch.isfinite(gradients(run.model, loss)).all()
    assert log["quarter_0"] == (plan.counts == 0).sum()
    (visit,) = run.task.rl._pending
    assert visit.ids.tolist() == batch["id"][torch.tensor(plan.counts > 0)].tolist()
    for objective in OBJECTIVES:
        every = Run(task_options={"min_samples": 0, "elimination_ratio": 1.0}, objective=objective)
        part = take(batch, [0, 1])  # all known: all would be skipped
        assert every.task.plan(part).counts.sum() == 1
        assert torch.isfinite(every.loss(part)[0])


@pytest.mark.parametrize("error", ["CUDA out of memory.", "not enough memory: you tried", "other"])
def test_advice_when_memory_runs_out(error, monkeypatch, caplog):
    """The error goes on as it is, after a line that says what to lower."""
    task = make_task()

    def fail(*_, **__):
        raise RuntimeError(error)

    monkeypatch.setattr(TranslationTask, "train_step", fail)
    with pytest.raises(RuntimeError, match=error):
        task.train_step(None, None, None, None, 0)
    assert ("--max-sampled-tokens" in caplog.text) == (error != "other")


def test_plan_follows_capability():
    """Counts and temperatures fall with capability; unknown: K and the base temperature."""
    run = Run(task_options={"sample_temperature": 1.1})
    plan = run.task.plan(make_batch())
    known = ~np.isnan(plan.capability)
    order = np.argsort(plan.capability[known])
    assert (np.diff(plan.counts[known][order]) <= 0).all()
    assert (np.diff(plan.temperature[known][order]) < 0).all()
    assert plan.counts[~known].tolist() == [6]
    assert plan.temperature[~known].tolist() == [np.float32(1.1)]
    one = Run(task_options={**ALIKE, "sample_temperature": 1.1}).task.plan(make_batch())
    assert one.temperature.tolist() == [np.float32(1.1)] * 6
    off = Run(task_options={**ALIKE, "capability": "none", "sample_temperature": 1.1}).task
    assert off.plan(make_batch()).counts.tolist() == [6] * 6
    assert off.plan(make_batch()).temperature.tolist() == [np.float32(1.1)] * 6


def test_plan_follows_the_spread_of_rewards():
    """--elimination-ratio auto; temperatures stay what the capability says.

    Variances 0, 1/2 … 2 times the mean one, each from 8 samples, have 4/11, 7.5/11 … 18/11 of it
    when shrunk, and (k - 1) k <= 30 times that.
    """
    run, batch = Run(task_options={"elimination_ratio": "auto"}), make_batch()
    records = run.task.rl.store.records
    records["samples"][:5] = 8
    records["reward_std"][:5] = 0.2 * np.sqrt([0, 0.5, 1, 1.5, 2])
    assert run.task.plan(batch).counts.tolist() == [6] * 6  # until the next epoch
    for scale in (1, 100):
        records["reward_std"] *= scale
        run.task.rl.begin_epoch(2 + scale)
        plan = run.task.plan(batch)
        assert plan.counts[batch["id"].argsort().numpy()].tolist() == [3, 5, 6, 6, 6, 6]
    assert plan.temperature.tolist() == Run().task.plan(batch).temperature.tolist()
    run.task.options.capability = "none"
    assert run.task.plan(batch).counts.tolist() == [6] * 6
    run.task.options.capability = "bleu"
    run.loss(batch)
    run.task.rl.commit()
    assert records["samples"].tolist() == [3, 5, 6, 6, 6, 6]


@pytest.mark.parametrize("kind", ["bleu", "entropy", "reward", "none"])
def test_visit(kind):
    """What is remembered of an input, from plain scores: draws count, not distinct rows."""
    run, batch = Run(task_options={"capability": kind, **ALIKE}), make_batch()
    run.loss(batch)
    (visit,) = run.task.rl._pending
    _, rows = run.rows(batch)
    _, entropy = plain_scores(run.model.eval(), batch, rows, min_len=1)
    rewards = run.criterion.score_rows(batch, rows).rewards
    draws = np.repeat(np.arange(len(rows)), rows.multiplicity.numpy())
    assert visit.ids.tolist() == batch["id"].tolist()
    assert np.array_equal(visit.rewards, rewards[draws])
    lengths = (rows.lengths - rows.truncated.long()).numpy()
    for i, record in enumerate(visit.records):
        own = draws[rows.input_index.numpy()[draws] == i]
        assert record["samples"] == len(own)
        mean_entropy = float(entropy[own].sum() / lengths[own].sum())
        expected = {
            "reward_mean": rewards[own].mean(),
            "reward_std": rewards[own].std(),
        }
        capability = {"entropy": 1 - mean_entropy / math.log(len(TARGET))}
        if kind == "none":
            assert np.isnan(record["capability"])
        else:
            expected["capability"] = capability.get(kind, rewards[own].mean())
        for name, value in expected.items():
            assert math.isclose(record[name], value, rel_tol=1e-4, abs_tol=1e-4), name


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_of_stage_two(dropout):
    """Off: the gradient depends on the seed only through the samples. On: it is another one, of
    rows and coefficients that are the same."""
    run, plain, batch = Run(rescoring_dropout=dropout), Run(), make_batch()
    plain.model.eval()
    (loss, gradient, _), (expected, plain_gradient, _) = (x.gradient(batch) for x in (run, plain))
    assert loss == expected and torch.equal(gradient, plain_gradient) != dropout


@pytest.mark.parametrize("normalized", [False, True])
def test_references_likelihood(normalized):
    """--mle-weight adds -w alpha log p of the references, and its gradient; samples unchanged.

    With --length-normalization it is log p a token, as of the samples."""
    batch = make_batch()
    without, with_references = (
        Run(length_normalization=normalized, mle_weight=weight) for weight in (0.0, 0.3)
    )
    assert with_references.rows(batch)[0] == without.rows(batch)[0]
    base, base_gradient, _ = without.gradient(batch)
    loss, gradient, size = with_references.gradient(batch)
    lengths = batch["target"].ne(PAD).sum(1).tolist()
    references = make_rows([t[:n].tolist() for t, n in zip(batch["target"], lengths)], range(6))
    model = without.model.eval()
    log_p, _ = plain_scores(model, batch, references, min_len=1)
    likelihood = (log_p / torch.tensor(lengths) if normalized else log_p).sum()
    assert torch.allclose(loss - base, -0.3 * 0.5 * likelihood, rtol=1e-4)
    assert size == 6
    expected = gradients(model, -0.3 * 0.5 * likelihood)
    assert torch.allclose(gradient - base_gradient, expected, rtol=1e-3, atol=1e-4)
    _, _, log = with_references.loss(batch)
    assert log["nll_references"] == pytest.approx(-float(log_p.sum()), rel=1e-4)


def test_references_shorter_than_the_shortest_sample():
    """--sample-min-len is a rule for samples; a shorter reference keeps a finite likelihood."""
    run, batch = Run(mle_weight=0.3, task_options={"sample_min_len": 3}), make_batch()
    assert batch["target"].ne(PAD).sum(1).min() < 4
    loss, gradient, _ = run.gradient(batch)
    assert loss.abs() < 1e3 and gradient.norm() > 1e-3 and torch.isfinite(gradient).all()


def test_dummy_batches_leave_no_trace():
    """fairseq's dummy batches run everything and are neither remembered nor counted."""
    run = Run()
    run.task.dummy_batch = True
    run.loss(make_batch())
    assert not run.task.rl._pending and run.task.monitor.rows == 0


class TestInputBaseline:
    """--input-baseline: what the last visit of an input lets expect."""

    def runs(self, **options):
        """With and without it, from the same records; input 5 is unknown."""
        runs = [Run(input_baseline=given, **options) for given in (True, False)]
        for run in runs:
            records = run.task.rl.store.records[:5].copy()
            records["reward_mean"] = [0.1, 0.9, 0.5, 0.3, 0.7]
            records["samples"], records["reward_std"] = [2, 3, 4, 2, 5], 0.1
            run.task.rl.store.write(np.arange(5), records)
            run.task.rl.begin_epoch(3)
        return runs

    @pytest.mark.parametrize("objective", ["mrt", "rloo"])
    def test_no_effect_on_samples_that_are_compared(self, objective):
        """A constant for each input cancels."""
        (_, given, _), (_, plain, _) = (
            run.gradient(make_batch()) for run in self.runs(objective=objective)
        )
        assert given.norm() > 1e-3 and torch.allclose(given, plain, rtol=1e-3, atol=1e-5)

    def test_reinforce_by_the_formula(self):
        run, _ = self.runs(objective="reinforce")
        batch = make_batch()
        loss, _, log = run.loss(batch)
        _, rows = run.rows(batch)
        offset = torch.from_numpy(run.task.rl.offsets(batch["id"]))
        assert offset.abs().max() > 0.2 and (offset == 0).sum() == 1  # of the unknown one
        log_probs, _ = plain_scores(run.model.eval(), batch, rows, min_len=1)
        rewards = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
        rewards = rewards - offset[rows.input_index]
        baseline = np.mean([0.3, 0.1, 0.6])
        common = (log_probs, rewards, rows.input_index, 6, 0.5)
        expected = reinforce_loss(*common, baseline, rows.multiplicity)
        assert torch.allclose(loss, expected.sum(), rtol=1e-4, atol=1e-6)
        draws = rows.multiplicity
        (visit,) = run.task.rl._pending  # the queue gets these; store and logs the true ones
        assert np.allclose(visit.rewards, rewards.repeat_interleave(draws), atol=1e-6)
        true = rewards + offset[rows.input_index]
        assert log["reward"] == pytest.approx(float((true * draws).sum()), rel=1e-5)
        own = rows.input_index == 1
        mean = true[own].repeat_interleave(draws[own]).mean()
        record = visit.records[visit.ids == int(batch["id"][1])]
        assert record["reward_mean"] == pytest.approx(float(mean), rel=1e-5)

    def test_resumed(self):
        """What inputs are compared with is the epoch's, and belongs to the checkpoint."""
        run, _ = self.runs()
        state = run.task.rl.state_dict()
        expected = run.task.rl.offsets(make_batch()["id"])
        again = Run(known=False)
        again.task.rl.load_state_dict(state)
        again.task.open_store()
        again.task.rl.begin_epoch(3)
        assert np.array_equal(again.task.rl.offsets(make_batch()["id"]), expected)
        assert expected.any()


@pytest.mark.parametrize("mode", ["two-stage", "standard"])
def test_dummy_batches_of_validation(mode):
    """fairseq's dummy may be a validation batch: other ids than the store's, no references.

    It costs one sample, and its log has the keys and the kinds of others, which fairseq adds up.
    """
    run = Run(mle_weight=0.1, sampling_mode=mode, reward="repetition")
    _, _, usual = run.loss(make_batch())
    batch = make_batch()
    batch["id"] = batch["id"] + 1000
    del batch["target"]
    run.task.dummy_batch = True
    plan = run.task.plan(batch)
    assert plan.counts.tolist() == [1, 0, 0, 0, 0, 0] and np.isnan(plan.capability).all()
    loss, sample_size, log = run.loss(batch)
    loss.backward()
    assert loss == 0 and sample_size == 0 and not any(log.values())
    kinds = [{key: torch.is_tensor(value) for key, value in one.items()} for one in (log, usual)]
    assert kinds[0] == kinds[1]


def test_visits_of_an_update_that_was_given_up():
    """What it showed is forgotten, as fairseq draws for those inputs again or not at all."""
    run, batch = Run(), make_batch()
    before = run.remembered()
    run.criterion.train()
    run.loss(batch)
    assert run.task.rl._pending
    run.criterion.train()  # the next update
    run.task.rl.commit()
    assert run.remembered() == before


def test_truncated_samples_are_counted_as_drawn(monkeypatch):
    """Also where all draws of an input are one row."""
    run, counted = Run(known=False), []
    rows = make_rows([[4, EOS]] * 6, range(6), [True] * 6, [5] * 6)
    monkeypatch.setattr(run.task.monitor, "add_batch", lambda *values: counted.append(values))
    monkeypatch.setattr(
        run.criterion,
        "sample_rows",
        lambda *_: (rows, known_of(rows)),
    )
    run.loss(make_batch())
    assert counted[0][1:3] == (30, 30)


@pytest.mark.parametrize("rewarded", [True, False])
def test_only_rl_is_watched(rewarded, caplog):
    """MLE with the task of RL has learning rates that RL must not have."""
    run, optimizer = Run(), SimpleNamespace(step=lambda: None, get_lr=lambda: 1e-2)
    run.task.trained_by_reward = rewarded
    run.task.optimizer_step(optimizer, run.model, 0)
    assert bool(caplog.records) == rewarded


@pytest.mark.parametrize("beam", [1, 2])
def test_validation_changes_no_state(beam):
    """Queue, store, reference and pending visits stay; so do the samples that follow."""
    run, batch = Run(valid_beam=beam), make_batch()
    expected = run.loss(batch)[0]
    run.task.rl._pending = []
    before = run.remembered()
    run.model.eval(), run.criterion.eval()
    loss, sample_size, log = run.loss(batch)
    run.model.train(), run.criterion.train()
    assert run.remembered() == before and not run.task.rl._pending
    assert run.loss(batch)[0] == expected
    assert sample_size == batch["ntokens"] and not loss.requires_grad
    model = run.model.eval()
    log_probs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
    chosen = log_probs.gather(2, batch["target"].unsqueeze(2)).squeeze(2)
    assert torch.allclose(loss, -chosen[batch["target"].ne(PAD)].sum(), rtol=1e-5)
    assert 0 <= log["valid_reward"] <= 6 and log["nsentences"] == 6


def test_validation_has_the_least_length_of_samples():
    run = Run(task_options={"sample_min_len": 3})
    found = run.task.best_hypotheses(run.model.eval(), make_batch(), 1)
    assert min(map(len, found)) == 4  # EOS is one of them


def test_validation_has_the_limits_of_samples():
    """Also where the least length is above a·x + b, and where that is beyond all numbers."""
    options = {"sample_min_len": 5, "sample_max_len_b": 3}
    run = Run(task_options=options)
    assert set(map(len, run.task.best_hypotheses(run.model.eval(), make_batch(), 1))) == {6}
    run = Run(task_options={"sample_max_len_a": 1e30, "sample_min_len": 9})
    sampler = run.task.build_sampler(run.model)
    assert sampler.length_limits(torch.tensor([1, 4])).tolist() == [31, 31]
    assert min(map(len, run.task.best_hypotheses(run.model.eval(), make_batch(), 1))) >= 10


def test_least_length_beyond_the_places_is_refused():
    check_places(SamplingConfig(sample_min_len=31), 32)
    for least in (32, 500):
        with pytest.raises(EsrlError, match=f"--sample-min-len is {least}, .* at most 31 tokens"):
            check_places(SamplingConfig(sample_min_len=least), 32)


def test_validation_reward_is_the_greedy_text():
    """Beam 1: the likeliest word at each step, scored like samples."""
    run, batch = Run(), make_batch()
    run.model.eval(), run.criterion.eval()
    _, _, log = run.loss(batch)
    greedy = torch.full((6, 4), EOS)
    with torch.no_grad():
        for step in range(3):
            previous = torch.cat([torch.full((6, 1), EOS), greedy[:, :step]], 1)
            scores = run.model(
                src_tokens=batch["net_input"]["src_tokens"],
                src_lengths=batch["net_input"]["src_lengths"],
                prev_output_tokens=previous,
            )[0][:, -1]
            scores[:, PAD] = -torch.inf
            scores[:, EOS] += -torch.inf if step == 0 else 0
            ended = (greedy[:, :step] == EOS).any(1)
            greedy[:, step] = scores.argmax(1).masked_fill(ended, EOS)
    expected = run.criterion.scorer.score(batch, greedy.tolist(), range(6)).rewards.sum()
    assert math.isclose(log["valid_reward"], expected, rel_tol=1e-5)


def test_stock_task_gets_a_sampler(caplog):
    """With fairseq's translation task: default options, and log lines for sampler and reward."""
    task = make_task(stock=True)
    with caplog.at_level(logging.INFO, "esrl_fairseq"):
        criterion = make_criterion(task)
    assert isinstance(task, SamplingTask) and task.options.num_samples == 8
    assert [r.message for r in caplog.records if "attached a sampler" in r.message]
    assert [r.message for r in caplog.records if r.message.startswith("reward: bleu|")]
    assert len(caplog.records) == 2
    loss, size, log = criterion(make_model().train(), make_batch())
    assert torch.isfinite(loss) and size == 6 and log["draws"] == 48


@pytest.mark.parametrize("kind", KINDS)
def test_reward_baselines(kind):
    """What is subtracted in the second update is what the kind says; its log line has it."""
    run, batch = Run(queue=(), objective="reinforce", reward_baseline=kind), make_batch()
    _, _, log = run.loss(batch)
    mean = log["reward"] / log["draws"]
    assert math.isclose(log["baseline"], 0 if kind in ("none", "group") else mean, rel_tol=1e-6)
    run.task.rl.commit()
    loss, _, log = run.loss(batch, seed=10)
    own = log["reward"] / log["draws"]
    expected = {"batch": own, "none": 0, "group": 0}.get(kind, mean)
    assert not math.isclose(own, mean, rel_tol=1e-3)
    assert math.isclose(log["baseline"], expected, rel_tol=1e-6)
    _, rows = run.rows(batch, seed=10)
    log_probs, _ = plain_scores(run.model.eval(), batch, rows, min_len=1)
    rewards = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
    if kind == "group":
        means = segment_mean(rewards, rows.multiplicity, rows.input_index, 6)
        rewards = rewards - means[rows.input_index]
    written = reinforce_loss(
        log_probs, rewards, rows.input_index, 6, 0.5, expected, rows.multiplicity
    )
    assert torch.allclose(loss, written.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["rloo", "mrt"])
def test_comparing_objectives_need_other_samples(objective, caplog):
    """One sample an input is refused; that some may get one is said once, in the log."""
    with pytest.raises(EsrlError, match=f"--objective {objective} compares.*--num-samples is 1"):
        make_criterion(make_task(num_samples=1), objective=objective)
    beta = {"elimination_ratio": 0.3}
    for quiet in ({**beta, "min_samples": 2}, {"capability": "none"}):
        make_criterion(make_task(**quiet), objective=objective)
    make_criterion(make_task(**beta), objective="fused")
    # Shrinkage leaves inputs of 3 or more samples two at least, of 2 samples perhaps one.
    make_criterion(make_task(num_samples=3), objective=objective)
    assert not caplog.records
    for warned in (beta, {**beta, "min_samples": 0}, {"num_samples": 2}):
        make_criterion(make_task(**warned), objective=objective)
        assert len(caplog.records) == 1 and "--min-samples 2" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("objective", ["fused", "reinforce", "ppo"])
def test_group_baseline_needs_two_samples(objective, caplog):
    """One sample less its own reward is 0; objectives that have no baseline are not meant."""
    options = {"objective": objective, "reward_baseline": "group"}
    with pytest.raises(EsrlError, match="--reward-baseline group compares.*--num-samples is 1"):
        make_criterion(make_task(num_samples=1), **options)
    make_criterion(make_task(num_samples=2, min_samples=2), **options)
    assert not caplog.records
    make_criterion(make_task(num_samples=8, elimination_ratio=0.5), **options)
    (warning,) = caplog.messages
    assert "--reward-baseline group learns nothing from an input with one sample" in warning


@pytest.mark.parametrize(
    ("samples", "options", "warned"),
    [
        (8, {"objective": "reinforce"}, True),
        (1, {"objective": "fused"}, True),
        (2, {"objective": "fused"}, True),  # auto: one sample where two hardly differed
        (8, {"objective": "fused"}, False),
        (8, {"objective": "rloo"}, False),
        (8, {"objective": "reinforce", "sampling_mode": "standard"}, False),
        (8, {"objective": "reinforce", "rescoring_dropout": False}, False),
    ],
)
def test_dropout_in_stage_two_with_one_baseline_is_warned_of(samples, options, warned, caplog):
    make_criterion(make_task(num_samples=samples), **{"rescoring_dropout": True, **options})
    assert ["can fall apart" in record.message for record in caplog.records] == [True] * warned


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_constant_rewards_have_no_gradient(objective, caplog):
    """The control: no objective finds anything in them, while logs and store keep the truth."""
    run, batch = Run(queue=(), objective=objective, reward_control="constant"), make_batch()
    assert len(caplog.records) == 1 + (objective in ("rloo", "mrt"))
    assert "--reward-control constant" in caplog.text
    true = Run(queue=(), objective=objective)
    loss, _, log = run.loss(batch)
    assert gradients(run.model, loss).norm() < 1e-5
    expected, _, true_log = true.loss(batch)
    assert gradients(true.model, expected).norm() > 1e-2
    assert log["baseline"] == 1 and log["reward"] == true_log["reward"]
    (visit,), (true_visit,) = run.task.rl._pending, true.task.rl._pending
    assert set(visit.rewards) == {1.0} and len(visit.rewards) == len(true_visit.rewards)
    assert visit.records.tobytes() == true_visit.records.tobytes()
    assert run.task.monitor.state_dict() == true.task.monitor.state_dict()


def test_shuffled_rewards():
    """The batch's own rewards on other rows; the seed of the update decides which."""
    batch = make_batch()
    run, true = (Run(objective="mrt", reward_control=kind) for kind in ("shuffled", "none"))
    loss, _, log = run.loss(batch)
    assert run.loss(batch)[0] == loss != true.loss(batch)[0]
    assert log["reward"] == true.loss(batch)[2]["reward"]
    _, rows = run.rows(batch)
    rewards = run.criterion.score_rows(batch, rows)
    torch.manual_seed(9)
    given = run.criterion.given_rewards(batch, rewards)
    assert sorted(given) == sorted(rewards.rewards) and list(given) != list(rewards.rewards)
    log_probs, _ = plain_scores(run.model.eval(), batch, rows, min_len=1)
    written = mrt_loss(log_probs, torch.tensor(given), rows.input_index, 6, 0.5).sum()
    assert torch.allclose(loss, written, rtol=1e-4, atol=1e-6)


def test_control_rewards():
    """Another shuffle for another update or batch, the same for the same; all rows take part."""
    rewards = np.arange(40, dtype=np.float32)
    assert control_rewards(rewards, "none", 1, [3]) is rewards
    assert control_rewards(rewards, "constant", 1, [3]).tolist() == [1.0] * 40
    seen = [control_rewards(rewards, "shuffled", *key) for key in ((1, [3, 4]), (2, [3, 4]))]
    seen += [control_rewards(rewards, "shuffled", *key) for key in ((1, [4, 3]), (1, [3]))]
    assert len({tuple(values) for values in seen}) == 4
    for values in seen:
        assert values.dtype == np.float32 and sorted(values) == rewards.tolist()
        assert (values != rewards).sum() > 30
    again = control_rewards(rewards, "shuffled", 1, [3, 4])
    assert again.tolist() == seen[0].tolist()


def test_noise_on_capabilities():
    """Gaussian errors by sample and seed alone, within [0, 1]; or those of other inputs."""
    ids = np.arange(2000)
    capability = np.full(2000, 0.5)
    noisy = perturb_capability(capability, "0.1", 5, ids)
    assert abs(noisy.mean() - 0.5) < 0.01 and abs(noisy.std() - 0.1) < 0.01
    assert np.array_equal(perturb_capability(capability[7:9], "0.1", 5, ids[7:9]), noisy[7:9])
    assert (perturb_capability(capability, "0.1", 6, ids) != noisy).all()
    wide = perturb_capability(capability, "3", 5, ids)
    assert wide.min() == 0 and wide.max() == 1
    assert np.array_equal(perturb_capability(capability, "0", 5, ids), capability)
    values = np.linspace(0, 1, 50)
    permuted = perturb_capability(values, "permuted", 5, ids[:50])
    assert sorted(permuted) == sorted(values) and (permuted != values).sum() > 40


@pytest.mark.parametrize("noise", ["0.2", "permuted"])
def test_capability_noise(noise, caplog):
    """It changes what is stored of capability, nothing else of a visit, and not the loss."""
    batch, run, true = make_batch(), Run(capability_noise=noise), Run()
    assert len(caplog.records) == 1 and f"--capability-noise {noise}" in caplog.text
    assert run.loss(batch)[0] == true.loss(batch)[0]
    records, true_records = (r.task.rl._pending[0].records for r in (run, true))
    for name in RECORD.names:
        same = np.array_equal(records[name], true_records[name])
        assert same == (name != "capability"), name
    assert (0 <= records["capability"]).all() and (records["capability"] <= 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline_decay": 1.0}, "--baseline-decay is 1.0"),
        ({"baseline_decay": math.nan}, "--baseline-decay is nan"),
        ({"baseline_window": 0}, "--baseline-window is 0"),
        ({"capability_noise": "much"}, "--capability-noise is 'much'"),
        ({"capability_noise": "-0.1"}, "--capability-noise is '-0.1'"),
        ({"capability_noise": "inf"}, "--capability-noise is 'inf'"),
        ({"importance_clip": 0.0}, "--importance-clip"),
        ({"importance_clip": math.nan}, "--importance-clip"),
        ({"risk_alpha": 0.0}, "--risk-alpha"),
        ({"risk_alpha": math.nan}, "--risk-alpha"),
        ({"risk_alpha": None, "length_normalization": True}, "--length-normalization"),
        ({"baseline_queue_size": 0}, "--baseline-queue-size"),
        ({"valid_beam": -1}, "--valid-beam"),
        ({"mle_weight": -0.1}, "--mle-weight"),
        ({"ppo_passes": 0}, "--ppo-passes is 0"),
        ({"ppo_clip": 0.0}, "--ppo-clip is 0"),
        ({"ppo_clip": math.nan}, "--ppo-clip is nan"),
        ({"objective": "ppo", "temperature_correction": "importance"}, "choose tempered or none"),
        ({"objective": "ppo", "sampling_mode": "standard"}, "choose two-stage"),
        (
            {"objective": "ppo", "temperature_correction": "tempered", "ppo_level": "token"},
            "choose --ppo-level sequence",
        ),
        ({"reward": "rouge-of-mars"}, "rouge-of-mars"),
        (
            {"reward_post_process": "sentence_piece"},
            "'sentence_piece' .did you mean 'sentencepiece'",
        ),
        ({"reward_detokenizer": "mosses"}, "'mosses' .did you mean 'moses'"),
        ({"reward_smoothing": "Floor"}, "'Floor' .did you mean 'floor'"),
        ({"kl_reference": "start.pt"}, "--kl-reference is start.pt, but --kl-weight is 0"),
        ({"reward_control": "constant", "input_baseline": True}, "--reward-control constant keeps"),
    ],
)
def test_bad_options_of_the_criterion(options, message):
    """Each is refused with a sentence that names it."""
    with pytest.raises(EsrlError, match=message):
        make_criterion(make_task(), **options)


@pytest.mark.parametrize("objective", ["reinforce", "rloo", "ppo"])
def test_length_normalization_needs_no_alpha_where_that_is_a_scale(objective):
    criterion = make_criterion(
        make_task(), objective=objective, length_normalization=True, risk_alpha=None
    )
    assert criterion.objective.alpha == 0.005


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("min_samples", -1),
        ("min_samples", 9),
        ("elimination_ratio", 1.1),
        ("elimination_ratio", -0.1),
        ("elimination_ratio", math.nan),
        ("elimination_ratio", "nan"),
        ("elimination_ratio", "much"),
        ("elimination_ratio", ""),
        ("sample_temperature", 0.0),
        ("min_sample_temperature", -1.0),
        ("max_sample_temperature", math.inf),
        ("max_sample_temperature", 0.5),
        ("sample_max_len_a", math.inf),
        ("sample_max_len_a", math.nan),
        ("sample_max_len_b", -1),
        ("sample_max_len_b", 0),  # with a = 0
        ("sample_min_len", -1),
    ],
)
def test_bad_options_of_sampling(name, value):
    """Each is refused with a sentence that names it."""
    task = make_task()
    setattr(task.cfg, name, value)
    with pytest.raises(EsrlError, match="--" + name.replace("_", "-")):
        check_sampling_options(task.cfg)


def test_temperatures_by_capability_need_capability():
    with pytest.raises(EsrlError, match="--max-sample-temperature is 1.5, but --capability none"):
        make_task(capability="none", max_sample_temperature=1.5)
    make_task(capability="none", max_sample_temperature=1.0)  # as all others


@pytest.mark.parametrize(
    ("options", "decides"),
    [
        ({}, False),
        ({"elimination_ratio": "auto"}, False),
        ({"elimination_ratio": 0}, False),
        ({"elimination_ratio": "0.0"}, False),
        ({"elimination_ratio": 0.3}, True),
        ({"elimination_ratio": "1"}, True),  # known inputs have k_min, unknown ones K
        ({"elimination_ratio": 0.3, "min_samples": 8}, False),
        ({"elimination_ratio": 0.3, "num_samples": 1}, False),
        ({"elimination_ratio": 0.3, "num_samples": 1, "min_samples": 0}, True),
        ({"max_sample_temperature": 1.2}, True),
        ({"min_sample_temperature": 0.8}, True),
        ({"min_sample_temperature": 0.8, "max_sample_temperature": 0.8}, True),  # unknown: 1
        ({"sample_temperature": 0.8}, False),
        ({"sample_temperature": 0.8, "max_sample_temperature": 0.8}, False),
        ({"min_sample_temperature": 0.8, "elimination_ratio": 0, "num_samples": 1}, True),
    ],
)
def test_what_capability_decides(options, decides):
    """What it decides can be seen in the plan: known capabilities change it, or nothing does."""
    options = {**DYNAMIC, **ALIKE, "elimination_ratio": "auto", "num_samples": 8, **options}
    for kind in ("bleu", "reward", "entropy"):
        task = make_task(**options, capability=kind)
        assert deciding_capability(task.options) == (kind if decides else "none")
    plans = [
        (plan.counts.tolist(), plan.temperature.tolist())
        for plan in (Run(known=x, task_options=options).task.plan(make_batch()) for x in (0, 1))
    ]
    assert (plans[0] != plans[1]) == decides


@pytest.mark.parametrize(
    ("capability", "reward", "stored"),
    [
        ("bleu", "bleu", "reward_mean"),
        ("bleu", "chrf", None),
        ("bleu", "bleu:0.5+chrf:0.5", None),
        ("reward", "chrf", "reward_mean"),
        ("reward", "chrf:2", None),
        ("entropy", "chrf:2", "entropy"),
        ("none", "bleu", None),
    ],
)
def test_capabilities_that_decide_nothing(capability, reward, stored):
    """Stored is what --capability names where it is known anyway; otherwise nothing is.

    Then a run that is resumed with a number as β has K samples for inputs without capability.
    """
    options = {**ALIKE, "capability": capability, "elimination_ratio": "auto"}
    run, batch = Run(known=False, task_options=options, reward=reward), make_batch()
    run.loss(batch)
    run.task.rl.commit()
    records = np.array(run.task.rl.store.records)
    if stored == "reward_mean":
        assert np.array_equal(records["capability"], records["reward_mean"])
    elif stored == "entropy":
        assert (0 < records["capability"]).all() and (records["capability"] < 1).all()
        assert not np.allclose(records["capability"], records["reward_mean"], atol=0.01)
    else:
        assert np.isnan(records["capability"]).all() and (records["samples"] > 0).all()
    log = run.loss(batch)[2]
    assert log["known"] == (6 if stored else 0)
    run.task.options.elimination_ratio = "0.5"
    run.task.rl.begin_epoch(3)
    if capability != "none":
        assert (run.task.plan(batch).counts.min() < 6) == (stored is not None)


@pytest.mark.parametrize(
    ("options", "task_options", "words"),
    [
        ({"reward": "chrf", "reward_tokenize": "char"}, {}, "--reward-tokenize char (for the rew"),
        ({"reward_smoothing": "floor"}, {}, ""),
        ({"reward": "chrf:0.5+bleu:0.5", "reward_smoothing": "floor"}, {}, ""),
        ({"reward": "chrf", "reward_smoothing": "floor"}, {"elimination_ratio": 0.3}, ""),
        ({"baseline_decay": 0.5}, {}, "--baseline-decay 0.5 (for --reward-baseline ema)"),
        ({"baseline_decay": 0.5, "reward_baseline": "ema"}, {}, ""),
        ({"baseline_window": 3}, {}, "--baseline-window 3 (for --reward-baseline window)"),
        ({"objective": "rloo", "reward_baseline": "none"}, {}, "--reward-baseline none (for obj"),
        ({"objective": "mrt", "baseline_queue_size": 9}, {}, "--baseline-queue-size 9 (for obj"),
        ({"objective": "rloo", "input_baseline": True}, {}, "--input-baseline (for objectives o"),
        ({"input_baseline": True, "reward_baseline": "group"}, {}, "(for baselines other than g"),
        ({"input_baseline": True, "objective": "rloo", "reward_scaling": "batch"}, {}, ""),
        ({"ppo_clip": 0.1, "ppo_passes": 3}, {}, "--ppo-passes 3 (for --objective ppo), --ppo-c"),
        ({"risk_candidates": "draws"}, {"num_samples": 1}, "with --num-samples above 1)"),
        ({"risk_candidates": "draws"}, {"num_samples": 2}, ""),
        ({}, {"num_samples": 1, "elimination_ratio": "0"}, ""),
        ({}, {"capability": "none", "elimination_ratio": "0"}, ""),
        ({"importance_clip": 3.0}, {}, "3.0 (for --temperature-correction importance)"),
        ({"temperature_correction": "tempered"}, {}, "tempered (for temperatures other than 1)"),
        ({"temperature_correction": "tempered"}, {"max_sample_temperature": 1.5}, ""),
        ({"max_sampled_tokens": 9, "sampling_mode": "standard"}, {}, "tokens 9 (for --sampling t"),
        ({}, {"capability": "none", "min_samples": 2}, "--min-samples 2 (for a --capability o"),
        ({}, {"min_samples": 4, "elimination_ratio": "0"}, "--min-samples 4 (for an --eliminati"),
        ({}, {"min_samples": 4, "elimination_ratio": "auto"}, ""),
        ({}, {"capability": "none", "elimination_ratio": 0.3}, "--elimination-ratio 0.3 (for a"),
        ({}, {"num_samples": 1, "elimination_ratio": 0.3}, "0.3 (for --num-samples above --min"),
        ({"capability_noise": "0.1"}, {}, "--capability-noise 0.1 (for samples or temperatures"),
        ({"capability_noise": "0.1"}, {"elimination_ratio": 0.3}, ""),
    ],
)
def test_options_without_effect_are_named(options, task_options, words, caplog):
    """In one warning; options at their defaults are not."""
    make_criterion(make_task(**task_options), **options)
    found = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_share_of_samples_that_are_scored_anyway(caplog):
    make_criterion(make_task(), rescored_share=0.5)
    assert not caplog.records
    make_criterion(make_task(), rescored_share=0.5, sampling_mode="standard")
    (warning,) = caplog.messages
    assert "--rescored-share 0.5 saves nothing with --sampling standard" in warning


def test_auto_skips_no_input():
    """--elimination-ratio auto is the default; beside --min-samples 0 it must give way to a β."""
    assert elimination_ratio(make_task().options) is None
    with pytest.raises(EsrlError, match="--min-samples is 0, but --elimination-ratio auto never"):
        make_task(min_samples=0)
    make_task(min_samples=0, elimination_ratio=0.3)
    make_task(min_samples=0, capability="none")


@pytest.mark.parametrize(
    ("value", "beta"), [(0.3, 0.3), (0, 0), (1, 1), ("0.25", 0.25), ("auto", None)]
)
def test_elimination_ratio_is_text_or_number(value, beta):
    """As YAML files and the configurations in earlier checkpoints have it."""
    cfg = OmegaConf.create({"task": {"_name": "esrl_translation", "elimination_ratio": value}})
    merged = merge_with_parent(EsrlTranslationConfig(), cfg.task, remove_missing=True)
    assert elimination_ratio(merged) == beta
    assert elimination_ratio(make_task(elimination_ratio=value).options) == beta


def test_missing_reference_names_the_sample():
    """A batch without targets stops with the sample's id."""
    run, batch = Run(), make_batch()
    batch["target"] = None
    with pytest.raises(EsrlError, match=f"sample {int(batch['id'][0])} "):
        run.loss(batch)


def test_state_dict_of_the_task_continues_bit_by_bit():
    """A new process with the checkpoint's task state computes the same next loss."""
    run, batch = Run(), make_batch()
    run.loss(batch)
    run.task.rl.commit()
    state = run.task.get_checkpoint_dict()[type(run.task).__name__]
    resumed = Run(queue=(), known=False)
    resumed.task.set_checkpoint_dict(state)
    resumed.task.rl.begin_epoch(2)
    expected, found = run.gradient(batch), resumed.gradient(batch)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_log_means_do_not_depend_on_the_split():
    """reduce_metrics of two halves and of the whole agree on what does not measure time."""
    run, batch = Run(mle_weight=0.3), make_batch()
    values = []
    for parts in ([batch], [take(batch, [0, 1, 2]), take(batch, [3, 4, 5])]):
        with metrics.aggregate(new_root=True) as found:
            run.criterion.reduce_metrics([run.loss(part)[2] for part in parts])
        values.append(found.get_smoothed_values())
    whole, split = values
    timed = {key for key in whole if key.startswith("seconds") or key == "peak_gb"}
    assert {"reward", "reward_std", "baseline", "share_mrt", "eliminated", "samples_hist"} <= set(
        whole
    )
    for key in set(whole) - timed - {"sampled_tokens"}:  # that one is a mean over batches
        number = isinstance(whole[key], float)
        expected = pytest.approx(whole[key], rel=1e-3, abs=1e-4) if number else whole[key]
        assert split[key] == expected, key


class TestMonitor:
    """Warnings for runs that go wrong in known ways."""

    def validated(self, monitor, train, valid):
        monitor.add_batch(train * 10, 10, 0, 0, 0)
        monitor.begin_validation()
        monitor.add_validation(valid * 5, 5)
        monitor.end_validation()

    def test_gamed_reward(self, caplog):
        """Training reward up while validation falls; not otherwise, nor on the first time."""
        monitor = Monitor()
        for train, valid in ((0.3, 0.3), (0.4, 0.4), (0.3, 0.35), (0.35, 0.348)):
            self.validated(monitor, train, valid)
            assert not caplog.records
        self.validated(monitor, 0.5, 0.2)
        assert len(caplog.records) == 1 and "may be wrong or gamed" in caplog.text
        monitor.end_validation()  # the same validation is not counted twice
        assert len(caplog.records) == 1

    def test_learning_rate(self, caplog):
        """Above 5e-4, once."""
        monitor = Monitor()
        monitor.end_update(1e-4)
        assert not caplog.records
        monitor.end_update(1e-3)
        monitor.end_update(1e-3)
        assert len(caplog.records) == 1 and "0.001" in caplog.text

    def test_truncation(self, caplog):
        """More than a tenth of at least 1000 samples, once."""
        monitor = Monitor()
        monitor.add_batch(0, 900, 900, 0, 0)
        monitor.end_update(1e-4)
        monitor.add_batch(0, 9100, 100, 0, 0)
        monitor.end_update(1e-4)
        assert not caplog.records
        monitor.add_batch(0, 100, 100, 0, 0)
        monitor.end_update(1e-4)
        monitor.end_update(1e-4)
        assert len(caplog.records) == 1 and "length limit" in caplog.text

    @pytest.mark.parametrize("words", [590, 1610])
    def test_length(self, words, caplog):
        """Of at least 1000 samples since the last validation, once; not without references."""
        monitor = Monitor()
        for size, own in ((900, words), (100, 1000), (1000, 1000)):
            monitor.add_batch(0, size, 0, own, 1000)
            monitor.end_update(1e-4)
        monitor.add_batch(0, 5000, 0, 5000, 0)
        self.validated(monitor, 0.3, 0.3)
        monitor.add_batch(0, 1000, 0, 1000, 0)
        monitor.end_update(1e-4)
        self.validated(monitor, 0.3, 0.3)
        assert not caplog.records
        for _ in range(2):
            monitor.add_batch(0, 1000, 0, words, 1000)
            monitor.end_update(1e-4)
        assert len(caplog.records) == 1 and f"{words / 1000:.2f} times as many words" in caplog.text

    def test_state(self, caplog):
        """It survives a checkpoint, as plain numbers, and does not warn again."""
        monitor = Monitor()
        self.validated(monitor, 0.3, 0.3)
        monitor.end_update(1e-3)
        resumed = Monitor()
        resumed.load_state_dict(monitor.state_dict())
        assert vars(resumed) == vars(monitor)
        resumed.end_update(1e-3)
        assert len(caplog.records) == 1
        self.validated(resumed, 0.5, 0.2)
        assert len(caplog.records) == 2


def test_fingerprints_pin_the_training_data(tmp_path):
    """The store of a checkpoint belongs to its data: other data are refused."""
    task = make_task(store_dir=str(tmp_path))
    task.open_store()
    saved = task.rl.state_dict()
    same, other = make_task(), make_task(make_dataset(seed=5))
    for resumed in (same, other):
        resumed.rl.load_state_dict(saved)
    same.open_store()
    with pytest.raises(EsrlError, match="other training data"):
        other.open_store()


def test_memory_is_of_the_device_that_trains(monkeypatch):
    """--cpu beside a GPU: resident memory, whatever the GPU holds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7_000_000_000)
    assert peak_memory_gb(torch.device("cuda")) == 7
    assert 0.05 < peak_memory_gb(torch.device("cpu")) < 7
