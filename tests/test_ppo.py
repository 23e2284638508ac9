"""PPO: the clipped surrogate, several updates from the same samples, and what they survive."""

import copy
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator
from helpers import (
    coefficients,
    make_batch,
    make_criterion,
    make_dataset,
    make_model,
    make_task,
    plain_scores,
    plain_token_scores,
    take,
)

from esrl_fairseq.core.losses import ppo_loss, ppo_statistics, reinforce_loss
from esrl_fairseq.run import Run
from esrl_fairseq.state import replay
from esrl_fairseq.state.replay import Replay

ALPHA, CLIP, BASELINE = 0.3, 0.2, 0.4
REWARDS = torch.tensor([0.9, 0.9, 0.1, 0.1, 0.9], dtype=torch.float64)  # A = 0.5 or -0.3
INDEX = torch.tensor([0, 0, 1, 1, 2])  # input 3 has no row
DRAWN = torch.tensor([1, 3, 1, 1, 2])


def log_ratios(*ratios):
    return torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()


def loss_of(log_probs, counts, old=None):
    old = torch.zeros_like(log_probs) if old is None else old
    given = coefficients(REWARDS, INDEX, 4, ALPHA, BASELINE, DRAWN)
    return ppo_loss(log_probs, old, given, INDEX, 4, (CLIP, CLIP), counts)


def statistics_of(log_probs, counts):
    old = torch.zeros_like(log_probs)
    given = coefficients(REWARDS, INDEX, 4, ALPHA, BASELINE, DRAWN)
    return ppo_statistics(log_probs, old, given, DRAWN, (CLIP, CLIP), counts)


def test_clipped_surrogate_of_sequences_by_hand():
    """Both signs of A: clipped where the policy has moved on in A's direction, and only there."""
    log_probs = log_ratios([1.5], [0.5], [1.5], [0.5], [1.1])
    counts = torch.ones(5, 1)
    loss = loss_of(log_probs, counts)
    terms = [1.2 * 0.5, 0.5 * 0.5, 1.5 * -0.3, 0.8 * -0.3, 1.1 * 0.5]
    means = [(terms[0] + 3 * terms[1]) / 4, (terms[2] + terms[3]) / 2, terms[4], 0]
    assert torch.allclose(loss, -ALPHA * torch.tensor(means, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    slopes = [0, 0.5 * 0.5 * 3 / 4, 1.5 * -0.3 / 2, 0, 1.1 * 0.5]
    expected = -ALPHA * torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(gradient.squeeze(1), expected)
    sums = statistics_of(log_probs.detach(), counts)
    assert sums["actions"] == 8 and sums["clipped"] == 2
    assert math.isclose(sums["ratio"], 1.5 + 3 * 0.5 + 1.5 + 0.5 + 2 * 1.1)
    kl = {ratio: ratio - 1 - math.log(ratio) for ratio in (0.5, 1.1, 1.5)}
    assert math.isclose(sums["kl"], 2 * kl[1.5] + 4 * kl[0.5] + 2 * kl[1.1])


def test_clipped_surrogate_of_tokens_by_hand():
    """Each token has its own ratio, and all of a row the row's advantage."""
    log_probs = log_ratios([1.5, 0.5, 1], [1, 1, 1], [1.5, 0.5, 1], [1, 1, 1], [1, 1.1, 2])
    counts = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0.5, 0.5, 0.5]])
    loss = loss_of(log_probs, counts)
    first = ((1.2 + 0.5) * 0.5 + 3 * 0.5) / 4
    second = (1.5 + 0.8) * -0.3 / 2
    third = 0.5 * (1 + 1.1 + 1.2) * 0.5
    expected = -ALPHA * torch.tensor([first, second, third, 0], dtype=torch.float64)
    assert torch.allclose(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    slopes = [
        [0, 0.5 * 0.5 / 4, 0],
        [0.5 * 3 / 4, 0, 0],
        [1.5 * -0.3 / 2, 0, 0],
        [0, 0, 0],
        [0.5 * 0.5, 0.5 * 1.1 * 0.5, 0],
    ]
    assert torch.allclose(gradient, -ALPHA * torch.tensor(slopes, dtype=torch.float64))
    sums = statistics_of(log_probs.detach(), counts)
    assert sums["actions"] == 2 + 3 + 2 + 2 * 3 and sums["clipped"] == 1 + 1 + 2


@pytest.mark.parametrize("width", [1, 3])
def test_gradient_at_the_old_policy_is_that_of_reinforce(width):
    """At ratio 1 each action's gradient is that of its row's log-probability."""
    log_probs = torch.linspace(-3, -1, 5 * width, dtype=torch.float64).view(5, width)
    log_probs.requires_grad_()
    counts = torch.ones(5, width)
    (found,) = torch.autograd.grad(loss_of(log_probs, counts, log_probs.detach()).sum(), log_probs)
    common = (REWARDS, INDEX, 4, ALPHA, BASELINE, DRAWN)
    (expected,) = torch.autograd.grad(reinforce_loss(log_probs.sum(1), *common).sum(), log_probs)
    assert torch.allclose(found, expected) and found.abs().min() > 0
    alone = ppo_loss(log_probs, None, coefficients(*common), INDEX, 4, (CLIP, CLIP), counts)
    assert torch.allclose(torch.autograd.grad(alone.sum(), log_probs)[0], expected)


def test_ratios_stay_finite():
    """However far the policy has moved; an unclipped bad sample is still pushed down at e^19."""
    log_probs = torch.tensor([[900.0], [-900.0], [19.0], [900.0], [-900.0]], requires_grad=True)
    loss = loss_of(log_probs, torch.ones(5, 1))
    assert torch.isfinite(loss).all()
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert torch.isfinite(gradient).all() and gradient[2] > 1e6
    assert all(torch.isfinite(x) for x in statistics_of(log_probs, torch.ones(5, 1)).values())


class Sgd(torch.optim.SGD):
    """With the methods of fairseq's optimizers that the task uses."""

    def backward(self, loss):
        loss.backward()

    def get_lr(self):
        return 1e-4  # for the monitor


class Trainer:
    """Makes updates in the order in which fairseq's trainer calls task and criterion."""

    def __init__(self, store_dir=None, arch="transformer", **options):
        task_options = dict(num_samples=5, elimination_ratio=0.5)
        options = {"objective": "ppo", "ppo_passes": 2, "ppo_level": "sequence", **options}
        self.task = make_task(store_dir=store_dir, **task_options)
        self.criterion = make_criterion(self.task, **options)
        self.model = make_model(arch).train()
        self.optimizer = Sgd(self.model.parameters(), lr=0.5)
        self.task.rl.baseline.push([0.3, 0.1, 0.6])
        self.task.begin_epoch(1, self.model)
        self.updates = 0

    def update(self, *batches, dummies=(), given_up=False):
        """One update; returns the log of each batch."""
        torch.manual_seed(9 + self.updates)
        self.model.train(), self.criterion.train()
        self.optimizer.zero_grad()
        size, logs = 0, []
        for place, batch in enumerate(batches):
            loss, batch_size, log = self.task.train_step(
                batch,
                self.model,
                self.criterion,
                self.optimizer,
                self.updates,
                ignore_grad=place in dummies,
            )
            size += batch_size
            logs.append(log)
        if not given_up:
            for parameter in self.model.parameters():
                parameter.grad /= max(size, 1)
            self.task.optimizer_step(self.optimizer, self.model, self.updates)
            self.updates += 1
        return logs

    def parameters(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def remembered(self):
        rl = self.task.rl
        return rl.baseline.rewards.tolist(), rl.store.records.tobytes(), self.task.monitor.rows

    def drawn(self, batch):
        """The rows that the next first pass draws."""
        torch.manual_seed(9 + self.updates)
        return self.criterion.sample_rows(self.model, batch, self.task.plan(batch))[0]


def first_half():
    return take(make_batch(), [0, 1, 2])


def second_half():
    return take(make_batch(), [3, 4, 5])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ppo_level": "token"},
        {"ppo_level": "token", "length_normalization": True},
        {"length_normalization": True},
        {"temperature_correction": "tempered"},
        {"mle_weight": 0.3},
        {"ppo_level": "token", "mle_weight": 0.3},
        {"ppo_level": "token", "mle_weight": 0.3, "arch": "bart"},
        {"temperature_correction": "tempered", "arch": "bart"},
    ],
)
def test_first_pass_is_reinforce(options):
    """The same gradient, baseline, visits and logs; later passes keep all of them."""
    ppo, reinforce = Trainer(**options), None
    options = {k: v for k, v in options.items() if k != "ppo_level"}
    reinforce = Trainer(objective="reinforce", **options)
    for one in (ppo, reinforce):
        sampling = one.task.options
        sampling.sample_temperature, sampling.max_sample_temperature = 1.3, 1.3
    (log,), (expected,) = ppo.update(make_batch()), reinforce.update(make_batch())
    start = make_model(options.get("arch", "transformer"))
    start = torch.cat([p.detach().flatten() for p in start.parameters()])
    step, expected_step = ppo.parameters() - start, reinforce.parameters() - start
    assert expected_step.norm() > 1e-2
    assert torch.allclose(step, expected_step, rtol=1e-4, atol=1e-6)
    assert ppo.remembered() == reinforce.remembered()
    assert set(log) - set(expected) == {f"ppo_{x}" for x in "actions clipped ratio kl pass".split()}
    assert log["ppo_ratio"] == log["ppo_actions"] and log["ppo_clipped"] == log["ppo_kl"] == 0
    for name in ("reward", "baseline", "draws", "entropy", "nll_references", "sampled_tokens"):
        assert log[name] == expected[name], name


def written_loss(log_probs, old, rewards, rows, counts):
    """The clipped surrogate over 6 inputs, one action at a time; α is 0.5, b the queue's mean."""
    b, total = np.mean([0.3, 0.1, 0.6]), 0
    for i in range(6):
        own = (rows.input_index == i).nonzero().squeeze(1).tolist()
        draws = sum(int(rows.multiplicity[r]) for r in own)
        for r in own:
            for t in range(log_probs.size(1)):
                if counts[r, t]:
                    ratio, advantage = (log_probs[r, t] - old[r, t]).exp(), float(rewards[r]) - b
                    kept = min(max(ratio, 1 - CLIP), 1 + CLIP)
                    term = min(ratio * advantage, kept * advantage)
                    total = total - 0.5 * term * int(rows.multiplicity[r]) / draws
    return total


@pytest.mark.parametrize("arch", ["transformer", "bart"])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_two_passes_equal_two_written_steps(level, arch):
    """From the same samples, rewards, baseline and old probabilities; then samples are drawn."""
    trainer, batch = Trainer(ppo_level=level, arch=arch), make_batch()
    rows = trainer.drawn(batch)
    rewards = trainer.criterion.score_rows(batch, rows).rewards
    twin = copy.deepcopy(trainer.model).eval()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)

    def log_probs():
        if level == "token":
            return plain_token_scores(twin, batch, rows, min_len=1)
        return plain_scores(twin, batch, rows, min_len=1)[0].unsqueeze(1)

    old = log_probs().detach()
    counts = rows.scored() if level == "token" else torch.ones_like(old)
    for number in (1, 2):
        (log,) = trainer.update(batch)
        optimizer.zero_grad()
        (written_loss(log_probs(), old, rewards, rows, counts) / 6).backward()
        optimizer.step()
        written = torch.cat([p.detach().flatten() for p in twin.parameters()])
        assert torch.allclose(trainer.parameters(), written, rtol=1e-4, atol=1e-5)
        assert log["ppo_pass"] == number
        assert (log["ppo_clipped"] > 0) == (log["ppo_kl"] > 0) == (number == 2)
    (log,) = trainer.update(batch)
    assert log["ppo_pass"] == 1 and log["ppo_kl"] == 0 and log["sampled_tokens"] > 0


def test_later_passes_sample_nothing():
    """Whatever batches come, the kept ones are taken, and what they showed counts once."""
    trainer, given = Trainer(ppo_passes=3), [first_half(), second_half()]
    first = trainer.update(given[0])
    remembered = trainer.remembered()

    def fail(*_):
        raise AssertionError("sampled or scored on a later pass")

    criterion = trainer.criterion
    names = ("sample_rows", "score_rows", "given_rewards", "visit")
    for name in names:
        setattr(criterion, name, fail)
    seen = [trainer.parameters()]
    for number in (2, 3):
        (log,) = trainer.update(given[1])
        assert log["ppo_pass"] == number and log["sampled_tokens"] == 0
        for name in ("reward", "baseline", "draws", "rows", "empty", "ntokens", "capability"):
            assert log[name] == first[0][name], name
        assert log["seconds_stage_one"] == log["seconds_reward"] == 0 < log["seconds_stage_two"]
        seen.append(trainer.parameters())
        assert trainer.remembered() == remembered
        assert not torch.equal(seen[-1], seen[-2])
    with pytest.raises(AssertionError, match="sampled"):
        trainer.update(given[1])
    for name in names:
        delattr(criterion, name)
    (log,) = trainer.update(given[1])
    assert log["ppo_pass"] == 1 and log["draws"] > 0
    assert trainer.remembered() != remembered
    assert log["ntokens"] == given[1]["ntokens"] != first[0]["ntokens"]


def test_one_pass_keeps_nothing():
    """PPO with one pass is REINFORCE, update after update."""
    one, reinforce = Trainer(ppo_passes=1), Trainer(objective="reinforce")
    for batch in (first_half(), second_half(), first_half()):
        one.update(batch), reinforce.update(batch)
    assert torch.allclose(one.parameters(), reinforce.parameters(), rtol=1e-4, atol=1e-6)
    assert not one.task.rl.replay.state_dict()["kept"]


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_update_freq_2_equals_a_doubled_batch(level):
    """In every pass, and in the first of the next samples."""
    one, two = (Trainer(ppo_level=level, mle_weight=0.1) for _ in range(2))
    for _ in range(3):
        one.update(make_batch())
        two.update(first_half(), second_half())
        assert torch.allclose(one.parameters(), two.parameters(), rtol=1e-3, atol=1e-5)


def test_fewer_and_more_batches_than_are_kept():
    """Fewer at the end of an epoch: the others have no part. More after a resume: they repeat."""
    steps = {}
    for later, forget in ((1, False), (1, True), (2, False), (4, False)):
        trainer = Trainer()
        trainer.update(first_half(), second_half())
        if forget:
            trainer.task.rl.replay._kept[0].pop()
        before = trainer.parameters()
        logs = trainer.update(*[second_half()] * later)
        steps[later, forget] = trainer.parameters() - before
        tokens = [half["ntokens"] for half in (first_half(), second_half())]
        assert [log["ntokens"] for log in logs] == (tokens * 2)[:later]
    assert torch.equal(steps[1, False], steps[1, True])
    assert not torch.allclose(steps[1, False], steps[2, False], rtol=1e-2)
    assert torch.allclose(steps[4, False], steps[2, False], rtol=1e-4, atol=1e-6)


def test_an_epoch_begins_with_new_samples():
    """They belong to their epoch; the rest of their passes is left out."""
    trainer = Trainer(ppo_passes=4)
    passes = []
    for epoch, updates in ((1, 6), (2, 3)):
        trainer.task.begin_epoch(epoch, trainer.model)
        for _ in range(updates):
            (log,) = trainer.update(first_half())
            passes.append(log["ppo_pass"])
    assert passes == [1, 2, 3, 4, 1, 2, 1, 2, 3]


def test_updates_that_fairseq_gives_up():
    """Overflow or no memory: fairseq counts no update, and that pass is made with what follows."""
    trainer, expected = Trainer(), Trainer()
    trainer.update(second_half(), second_half(), given_up=True)
    found = [trainer.update(first_half())]
    trainer.update(second_half(), given_up=True)
    found.append(trainer.update(second_half()))
    wanted = [expected.update(first_half()) for _ in range(2)]
    assert [log["ppo_pass"] for (log,) in found] == [1, 2]
    assert [log["draws"] for (log,) in found] == [log["draws"] for (log,) in wanted]
    assert torch.equal(trainer.parameters(), expected.parameters())


def test_overflow_with_amp():
    """Then fairseq calls the optimizer, which takes no step, and makes the same update again."""
    trainer, expected = Trainer(), Trainer()
    scaler = trainer.optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))  # which begins with that scale
    whole_step, passes = trainer.optimizer.step, []
    for overflow in (True, False, True, False, False):
        trainer.optimizer.step = whole_step
        if overflow:
            trainer.optimizer.step = lambda: scaler.update(scaler.get_scale() / 2)
        before = trainer.remembered()
        passes.append(trainer.update(first_half())[0]["ppo_pass"])
        assert not overflow or trainer.remembered()[:2] == before[:2]
        trainer.updates -= overflow
    assert passes == [1, 1, 2, 2, 1]
    for _ in range(3):
        expected.update(first_half())
    assert torch.equal(trainer.parameters(), expected.parameters())
    assert trainer.remembered()[:2] == expected.remembered()[:2]


def test_a_dummy_batch_is_kept_but_counts_for_nothing():
    """On a rank that has no batch left the dummy's place is never filled by anything that counts.

    The other way round, fairseq's dummy in a later pass takes the kept batch's part away.
    """
    trainer = Trainer()
    trainer.update(first_half(), second_half(), dummies=[1])
    logs = trainer.update(first_half(), second_half())
    assert logs[0]["sample_size"] == 3 and logs[0].keys() == logs[1].keys()
    assert all(value == 0 for value in logs[1].values())
    single = Trainer()
    single.update(first_half())
    single.update(first_half())
    assert torch.allclose(trainer.parameters(), single.parameters(), rtol=1e-4, atol=1e-6)

    trainer = Trainer()
    trainer.update(first_half(), second_half())
    before = trainer.parameters()
    trainer.update(first_half(), dummies=[0])
    assert torch.equal(trainer.parameters(), before)


def test_samples_that_a_rank_lacks_are_not_used(monkeypatch):
    """One rank ran out of memory in a batch: no rank goes on with this update's samples."""
    trainer = Trainer()
    monkeypatch.setattr(replay, "from_all_ranks", lambda own: [own, own[1:]])
    for _ in range(2):
        assert trainer.update(first_half(), second_half())[0]["ppo_pass"] == 1
    monkeypatch.undo()
    passes = [trainer.update(first_half())[0]["ppo_pass"] for _ in range(3)]
    assert passes == [1, 2, 1]


def test_a_rank_takes_its_own_samples(monkeypatch):
    """Of those that all ranks gave, also from a checkpoint."""
    other = Trainer()
    other.update(second_half())
    foreign = other.task.rl.replay.state_dict()["kept"][0]
    monkeypatch.setattr(replay, "from_all_ranks", lambda own: [foreign, own])
    monkeypatch.setattr(replay, "number_of_ranks", lambda: 2)
    monkeypatch.setattr(replay, "own_rank", lambda: 1)
    trainer = Trainer()
    trainer.update(first_half())
    for one in (resumed(trainer), trainer):
        (log,) = one.update(second_half())
        assert log["ppo_pass"] == 2 and log["ntokens"] == first_half()["ntokens"]


def checkpoint(trainer):
    """The task's state through a checkpoint file, read by torch's safe loader."""
    file = io.BytesIO()
    torch.save(trainer.task.get_checkpoint_dict()[type(trainer.task).__name__], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(trainer, **options):
    """Another process with the trainer's parameters and checkpoint."""
    other = Trainer(**options)
    other.model.load_state_dict(trainer.model.state_dict())
    other.task.set_checkpoint_dict(checkpoint(trainer))
    other.task.begin_epoch(1, other.model)
    other.updates = trainer.updates
    return other


@pytest.mark.parametrize("updates", [1, 2, 3, 4])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_resuming_goes_on_with_the_same_samples(updates, level):
    """Bit for bit, after any of the passes."""
    options = {"ppo_passes": 3, "ppo_level": level, "mle_weight": 0.1}
    trainer = Trainer(**options)
    for _ in range(updates):
        trainer.update(first_half(), second_half())
    other = resumed(trainer, **options)
    for _ in range(3):
        expected = trainer.update(first_half(), second_half())
        found = other.update(first_half(), second_half())
        for log, wanted in zip(found, expected):
            same = {k for k in wanted if not k.startswith("seconds") and k != "peak_gb"}
            assert {k: log[k] for k in same} == {k: wanted[k] for k in same}
    assert torch.equal(other.parameters(), trainer.parameters())


@pytest.mark.parametrize(
    "options", [{"ppo_level": "token"}, {"length_normalization": True}, {"ranks": 2}]
)
def test_resuming_otherwise_draws_new_samples(options, monkeypatch, caplog):
    """Probabilities that cannot be compared, or samples of other ranks; a warning says so."""
    trainer = Trainer()
    trainer.update(first_half())
    if options.pop("ranks", 1) == 2:
        monkeypatch.setattr(replay, "number_of_ranks", lambda: 2)
    other = resumed(trainer, **options)
    assert len(caplog.records) == 1 and "goes on with new ones" in caplog.text
    monkeypatch.undo()
    assert other.update(first_half())[0]["ppo_pass"] == 1


def test_other_objectives_and_older_checkpoints(caplog):
    """They keep nothing, and go on as ever from a checkpoint that has or lacks samples."""
    trainer = Trainer()
    trainer.update(first_half())
    other = resumed(trainer, objective="reinforce")
    other.update(first_half())
    assert not other.task.rl.replay.state_dict()["kept"]
    state = checkpoint(trainer)
    del state["rl"]["replay"]
    older = Trainer()
    older.task.set_checkpoint_dict(state)
    assert older.update(first_half())[0]["ppo_pass"] == 1
    (idle,) = caplog.records
    assert "without effect in this run: --ppo-level sequence (for --objective ppo)" in caplog.text


@pytest.mark.parametrize(
    ("batches", "frequencies", "epoch", "made"),
    [(6, [2], 1, 0), (5, [2], 1, 0), (4, [2], 1, 2), (6, [1, 3], 1, 0), (6, [1, 3], 5, 2)],
)
def test_epochs_without_all_passes_warn(batches, frequencies, epoch, made, caplog):
    """Before the first update, with the number that they make."""
    run = SimpleNamespace(
        task=SimpleNamespace(rl=SimpleNamespace(replay=Replay(3))),
        cfg=SimpleNamespace(optimization=SimpleNamespace(update_freq=frequencies)),
    )
    dataset = make_dataset(batches)
    examples = EpochBatchIterator(dataset, list, [[i] for i in range(batches)], epoch=epoch)
    Run.warn_of_few_updates(run, examples)
    assert len(caplog.messages) == bool(made)
    assert not made or f"--ppo-passes 3, but an epoch has {made} update(s)" in caplog.text


def test_dropout_warns(caplog):
    """Only where later passes compare with the first."""
    make_criterion(make_task(), objective="ppo", ppo_passes=1, rescoring_dropout=True)
    make_criterion(make_task(), objective="rloo", rescoring_dropout=True)
    assert not caplog.records
    make_criterion(make_task(), objective="ppo", rescoring_dropout=True)
    assert len(caplog.records) == 1 and "--rescoring-dropout" in caplog.text
