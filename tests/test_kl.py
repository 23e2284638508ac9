"""KL penalty to the frozen start model: the reward that the loss sees, λ, and the frozen model."""

import math
import shutil

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.logging import metrics
from helpers import (
    EOS,
    PAD,
    coefficients,
    every_row,
    make_batch,
    make_criterion,
    make_model,
    make_task,
    plain_scores,
    take,
)
from test_criterion import ALIKE, OBJECTIVES, Run
from test_losses import ALPHA, Space, equal

from esrl_fairseq import criterion
from esrl_fairseq.checks.criterion import kl_reference_file
from esrl_fairseq.core import losses
from esrl_fairseq.core.fingerprint import fingerprint
from esrl_fairseq.core.kl import adapted_weight, penalised_rewards
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.rescoring import frozen
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.kl_state import KLState
from esrl_fairseq.state.rl_state import RLState, Visit
from esrl_fairseq.task import EsrlTranslationConfig, EsrlTranslationTask


@pytest.fixture
def start(monkeypatch):
    """Files of the frozen model: the very model that is trained, and another one."""
    seeds = {"start.pt": 1, "other.pt": 5}
    monkeypatch.setattr(frozen, "load_model", lambda path, task: make_model(seed=seeds[path]))


def with_kl(weight=0.3, reference="other.pt", **options):
    return Run(kl_weight=weight, kl_reference=reference if weight else None, **options)


class TestMathematics:
    def test_penalised_rewards_by_hand(self):
        rewards, log_ratio = np.float32([0.5, 0.25, 1.0]), np.float32([1.0, -2.0, 0.0])
        found = penalised_rewards(rewards, log_ratio, 0.125)
        assert found.dtype == np.float32 and found.tolist() == [0.375, 0.5, 1.0]
        assert penalised_rewards(rewards, log_ratio, 0.0).tolist() == rewards.tolist()

    @pytest.mark.parametrize(
        ("kl", "factor"),
        [(4.0, 1.0), (4.4, 1.01), (3.8, 0.995), (4.8, 1.02), (90, 1.02), (3.2, 0.98), (-5, 0.98)],
    )
    def test_adapted_weight_by_hand(self, kl, factor):
        """A target of 4 nats: an error of 10% changes λ by 1%, and 2% is the most."""
        assert adapted_weight(0.5, kl, 4.0) == pytest.approx(0.5 * factor, rel=1e-12)

    @pytest.mark.parametrize("loss", ["reinforce", "rloo"])
    @pytest.mark.parametrize("correction", ["none", "tempered", "importance"])
    def test_unbiased(self, loss, correction):
        """Over all outcomes of three draws: exactly the gradient of E[r] − λ·KL.

        Draws come from p itself, or from q at another temperature; then it is the KL of q to the
        frozen model at that temperature (tempered), or that of p, by weights p/q (importance).
        """
        weight, temperature = 0.7, 1.0 if correction == "none" else 1.7
        space, reference = Space(temperature), Space(temperature, seed=5)
        tempered = correction == "tempered"
        log_p, log_ref = (s.log_q if tempered else s.log_p for s in (space, reference))
        p, log_ref = log_p.exp(), log_ref.detach()
        kl = (p * (log_p - log_ref)).sum()
        assert kl > 0.1
        exact = space.gradient(-(p * space.rewards).sum() + weight * kl)
        without = space.gradient(-(p * space.rewards).sum())
        assert (exact - without).norm() > 0.5 * without.norm()
        # What the derivative of the log-ratio itself would add.
        assert space.gradient((p.detach() * log_p).sum()).norm() < 1e-5 * exact.norm()

        ratio = (log_p - log_ref).detach().numpy()
        given = torch.tensor(penalised_rewards(space.rewards.numpy(), ratio, weight))

        def estimate(rows, index, multiplicity):
            common = (log_p[rows], given[rows], index, int(index.max()) + 1, ALPHA)
            weights = None
            if correction == "importance":
                weights = losses.importance_weights(log_p[rows], space.log_q[rows], math.inf)
            if loss == "rloo":
                return losses.rloo_loss(*common, multiplicity, weights)
            return losses.reinforce_loss(*common, 0.3, multiplicity, weights)

        assert equal(space.expected(3, estimate), exact)


class TestCriterion:
    @pytest.mark.parametrize("dropout", [False, True])
    @pytest.mark.parametrize("correction", ["none", "tempered", "importance"])
    def test_no_penalty_at_the_start_model(self, start, correction, dropout):
        """kl is exactly 0 there, so that loss and gradient are those without it, bit by bit."""
        options = dict(temperature_correction=correction, rescoring_dropout=dropout)
        run, plain = with_kl(reference="start.pt", **options), Run(**options)
        batch = make_batch()
        (loss, gradient, _), expected = run.gradient(batch), plain.gradient(batch)
        assert torch.allclose(loss, expected[0], atol=1e-4)
        assert torch.allclose(gradient, expected[1], atol=1e-4)
        log = run.loss(batch)[2]
        assert abs(log["kl"]) < 1e-4 and log["kl_weight"] == 0.3
        assert not {"kl", "kl_weight"} & plain.loss(batch)[2].keys()

    @pytest.mark.parametrize("correction", ["none", "tempered"])
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_loss_equals_the_formulas(self, start, objective, correction):
        """Penalised by plain log-probabilities, at each input's temperature if that is trained."""
        options = {"objective": objective, "temperature_correction": correction}
        run = with_kl(ppo_level="sequence", **options)
        batch = make_batch()
        loss, _, log = run.loss(batch)
        _, rows = run.rows(batch)
        models = run.model.eval(), make_model(seed=5).eval()
        log_p, log_ref = (plain_log_probs(run, model, batch, rows, correction) for model in models)
        ratio = (log_p - log_ref).detach()
        assert ratio.abs().max() > 1
        true = torch.tensor(run.criterion.score_rows(batch, rows).rewards)
        rewards = true - 0.3 * ratio
        common = (log_p, rewards, rows.input_index, 6, 0.5)
        queue = (np.mean([0.3, 0.1, 0.6]), rows.multiplicity)
        expected = {
            "mrt": lambda: losses.mrt_loss(*common),
            "reinforce": lambda: losses.reinforce_loss(*common, *queue),
            "fused": lambda: losses.fused_loss(*common, *queue),
            "rloo": lambda: losses.rloo_loss(*common, rows.multiplicity),
            # Sequences in their first pass, whose old log-probabilities are their own.
            "ppo": lambda: losses.ppo_loss(
                log_p.unsqueeze(1),
                None,
                coefficients(*common[1:], *queue),
                rows.input_index,
                6,
                (0.2, 0.2),
                torch.ones(len(log_p), 1),
            ),
        }[objective]().sum()
        assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)
        draws = rows.multiplicity
        assert log["kl"] == pytest.approx(float((ratio * draws).sum()), rel=1e-4)
        assert log["reward"] == pytest.approx(float((true * draws).sum()), rel=1e-6)
        (visit,) = run.task.rl._pending
        assert np.allclose(visit.rewards, rewards.repeat_interleave(draws), atol=1e-5)
        true_run = Run(ppo_level="sequence", **options)
        true_run.loss(batch)
        assert visit.records.tobytes() == true_run.task.rl._pending[0].records.tobytes()

    def test_dropout_does_not_reach_the_penalty(self, start):
        """Stage two's dropout would lower log p of long samples most, and so pay for length."""
        batch, logs = make_batch(), []
        for dropout in (False, True):
            logs.append(with_kl(rescoring_dropout=dropout).loss(batch)[2])
        assert logs[0]["kl"] == logs[1]["kl"] != 0

    def test_control_takes_the_reward_away_and_leaves_the_penalty(self, start):
        run, batch = with_kl(reward_control="constant"), make_batch()
        _, _, log = run.loss(batch)
        (visit,) = run.task.rl._pending
        assert len(set(visit.rewards)) > 6
        assert visit.rewards.sum() == pytest.approx(log["draws"] - 0.3 * log["kl"], rel=1e-5)

    def test_log_means_do_not_depend_on_the_split(self, start):
        run, batch, found = with_kl(), make_batch(), []
        for parts in ([batch], [take(batch, [0, 1, 2]), take(batch, [3, 4, 5])]):
            logs = [run.loss(part)[2] for part in parts]
            with metrics.aggregate(new_root=True) as values:
                run.criterion.reduce_metrics(logs)
            found.append(values.get_smoothed_values())
        assert found[0]["kl_weight"] == found[1]["kl_weight"] == 0.3
        total = sum(log["kl"] for log in logs) / sum(log["draws"] for log in logs)
        assert found[0]["kl"] == pytest.approx(total, abs=1e-4)
        assert found[1]["kl"] == pytest.approx(total, abs=1e-4)

    def test_a_larger_weight_stays_closer(self, start):
        """Exact KL to the start model, over all outputs, after 15 updates of Adam."""
        reached = [exact_kl_after(weight, updates=15) for weight in (0.0, 0.1, 3.0)]
        assert reached[0] > 2 * reached[1] > 10 * reached[2] > 0

    @pytest.mark.parametrize("dropout", [False, True])
    def test_fairseq_sees_no_second_model(self, start, dropout):
        """Nothing more to optimize, wrap or save; the wrapped model's forward runs once."""
        run, batch = with_kl(rescoring_dropout=dropout), make_batch()
        run.task.begin_epoch(2, run.model)
        assert not list(run.criterion.parameters()) and not run.criterion.state_dict()
        reference = run.task.frozen_model(run.model)
        assert reference is not run.model and not reference.training
        before = [p.clone() for p in reference.parameters()]

        class Wrapper(torch.nn.Module):
            calls = 0

            def __init__(self, module):
                super().__init__()
                self.module = module

            def forward(self, *args, **kwargs):
                self.calls += 1
                return self.module(*args, **kwargs)

        wrapped = Wrapper(run.model)
        run.model = wrapped
        loss = run.loss(batch)[0]
        assert wrapped.calls == 1
        loss.backward()
        assert all(p.grad is None for p in reference.parameters())
        assert all(map(torch.equal, before, reference.parameters()))

    def test_device_and_precision_of_the_model(self, start):
        run = with_kl()
        reference = run.task.frozen.beside(run.model.to(torch.bfloat16))
        assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}


def plain_log_probs(run, model, batch, rows, correction):
    """log p of the rows, of each input at its own temperature if that is trained."""
    if correction == "none":
        return plain_scores(model, batch, rows, min_len=1)[0]
    log_probs = torch.zeros(len(rows))
    for i, tau in enumerate(run.task.plan(batch).temperature.tolist()):
        at_tau, _ = plain_scores(model, batch, rows, min_len=1, temperature=tau)
        log_probs = torch.where(rows.input_index == i, at_tau, log_probs)
    return log_probs


def exact_kl_after(weight, updates):
    """Σ_y p(y|x)·(log p(y|x) − log p_ref(y|x)), summed over the batch's inputs."""
    options = {"capability": "none", **ALIKE}
    run = with_kl(weight, "start.pt", objective="rloo", task_options=options)
    batch, space = make_batch(), every_row(3, 1, inputs=6)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=0.01)
    for update in range(updates):
        optimizer.zero_grad()
        run.loss(batch, seed=update)[0].backward()
        optimizer.step()
        run.task.rl.commit()
    with torch.no_grad():
        models = run.model, make_model()
        log_p, log_ref = (
            rescore(model, batch["net_input"], space, PAD, EOS, 1).log_probs for model in models
        )
    assert log_p.exp().sum().item() == pytest.approx(6, abs=1e-4)
    return float((log_p.exp() * (log_p - log_ref)).sum())


class TestState:
    def test_weight_follows_all_batches_of_an_update(self, start):
        """λ changes when the update is over; two batches change it as one does, dummies do not."""
        batch = make_batch()
        one, two = (with_kl(kl_target=1.0) for _ in range(2))
        log = one.loss(batch)[2]
        one.task.rl.commit()
        logs = [two.loss(take(batch, part))[2] for part in ([0, 1], [2, 3, 4, 5])]
        assert [log["kl_weight"] for log in logs] == [0.3, 0.3]
        two.task.dummy_batch = True
        two.loss(batch)
        two.task.rl.commit()
        expected = adapted_weight(0.3, log["kl"] / log["draws"], 1.0)
        assert one.task.rl.kl.weight == pytest.approx(expected, rel=1e-12) != 0.3
        assert two.task.rl.kl.weight == pytest.approx(expected, rel=1e-6)
        assert one.loss(batch, seed=10)[2]["kl_weight"] == one.task.rl.kl.weight
        two.task.rl.commit()
        assert two.task.rl.kl.weight == pytest.approx(expected, rel=1e-6)

    def test_mean_is_over_draws(self):
        """Neither over batches nor over inputs: (3 + 1)/(1 + 3) = 1 nat is the target."""
        state = RLState(None)
        state.open_store(0, 4, "0" * 128)
        state.kl = KLState(0.5, 1.0)
        for kl, draws in ((3.0, 1), (1.0, 3)):
            state.add(visit(draws, kl))
        state.commit()
        assert state.kl.weight == 0.5
        state.commit()  # an update of dummy batches
        assert state.kl.weight == 0.5

    @pytest.mark.parametrize("mode", [{"objective": "ppo"}, {"sampling_mode": "standard"}])
    def test_no_table_of_tokens(self, start, monkeypatch, mode):
        """The frozen model's log-probabilities are summed over rows, whatever the objective is."""
        run, asked = with_kl(rescoring_dropout=True, **mode), []

        def observed(*args, **how):
            asked.append(how["tokens"])
            return rescore(*args, **how)

        monkeypatch.setattr(criterion, "rescore", observed)
        run.loss(make_batch())
        assert asked and not any(asked)

    def test_a_fixed_weight_stays(self, start):
        run = with_kl()
        run.loss(make_batch())
        run.task.rl.commit()
        assert run.task.rl.kl.weight == 0.3

    def saved(self, weight, target=1.0, reference="abc"):
        state = RLState(None)
        state.kl = KLState(weight, target, reference)
        return state.state_dict()

    def test_an_adapted_weight_is_resumed(self):
        """To the last bit; a fixed one is what the command line says; so is one never used."""
        for saved, target, expected in (
            (self.saved(0.1 + 0.2), 1.0, 0.1 + 0.2),
            (self.saved(0.1 + 0.2, None), 1.0, 0.1 + 0.2),
            (self.saved(0.1 + 0.2), None, 0.7),
            (self.saved(0.0, None, ""), 1.0, 0.7),
        ):
            resumed = RLState(None)
            resumed.kl = KLState(0.7, target)
            resumed.load_state_dict(saved)
            assert resumed.kl.weight == expected
            assert resumed.kl.reference == saved["kl"]["reference"]

    def test_another_weight_than_the_run_began_with(self, caplog):
        """Where λ is adapted it has no effect, which is said; once."""
        state = RLState(None)
        state.kl = KLState(0.3, 1.0, "abc")
        state.kl.end_update(90)
        for given, target in ((0.3, 1.0), (0.7, None)):
            resumed = RLState(None)
            resumed.kl = KLState(given, target)
            resumed.load_state_dict(state.state_dict())
        assert not caplog.records
        for _ in range(2):
            resumed = RLState(None)
            resumed.kl = KLState(0.7, 1.0)
            resumed.load_state_dict(state.state_dict())
            state = resumed
        (warning,) = caplog.messages
        assert "--kl-weight 0.7 is not used: this run began with 0.3" in warning
        assert "has made of it, 0.306" in warning

    def test_a_checkpoint_of_an_earlier_version(self):
        saved = self.saved(0.5)
        del saved["kl"]
        resumed = RLState(None)
        resumed.kl = KLState(0.7, 1.0)
        resumed.load_state_dict(saved)
        assert resumed.kl == KLState(0.7, 1.0)
        saved = self.saved(0.5)
        del saved["kl"]["given"]
        resumed.load_state_dict(saved)
        assert resumed.kl.weight == 0.5

    @pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
    def test_a_damaged_weight_is_refused(self, weight):
        resumed = RLState(None)
        resumed.kl = KLState(0.7, 1.0)
        with pytest.raises(EsrlError, match="checkpoint's KL weight cannot be read"):
            resumed.load_state_dict(self.saved(weight))

    def test_another_frozen_model_is_refused(self, start):
        """Before the first batch; the same model from elsewhere is not."""
        run = with_kl(reference="other.pt")
        run.task.begin_epoch(2, run.model)
        state = run.task.get_checkpoint_dict()[type(run.task).__name__]
        for reference in ("other.pt", "start.pt"):
            resumed = with_kl(reference=reference)
            resumed.task.set_checkpoint_dict(state)
            if reference == "other.pt":
                resumed.task.begin_epoch(2, resumed.model)
            else:
                with pytest.raises(EsrlError, match="not the one that this run began with"):
                    resumed.task.begin_epoch(2, resumed.model)


def visit(draws, kl):
    return Visit(np.array([0]), np.zeros(1, RECORD), np.zeros(draws, np.float32), kl)


class TestFile:
    """The frozen model's file, as fairseq writes it."""

    @pytest.fixture
    def task(self, corpus):
        words = Dictionary.load(str(corpus.dictionary))
        cfg = EsrlTranslationConfig()
        cfg.save_dir = None
        return EsrlTranslationTask(cfg, words, words)

    def test_it_is_the_checkpoints_model(self, task, mle):
        """And loading it draws no random number."""
        before = torch.get_rng_state()
        model = frozen.load_model(str(mle), task)
        assert torch.equal(torch.get_rng_state(), before)
        saved = torch.load(mle, weights_only=True)["model"]
        assert saved.keys() == model.state_dict().keys()
        assert all(torch.equal(saved[name], x) for name, x in model.state_dict().items())

    def test_validation_keeps_its_model(self, task, mle):
        """fairseq's --eval-bleu validates the model that the task built last."""
        task.cfg.eval_bleu, task.cfg.eval_bleu_args = True, "{}"
        task.sequence_generator = validated = object()
        frozen.load_model(str(mle), task)
        assert task.sequence_generator is validated

    def test_fingerprint(self, task, mle):
        """Of all values and names, and of nothing else."""
        models = [frozen.load_model(str(mle), task) for _ in range(3)]
        with torch.no_grad():
            next(models[2].parameters()).view(-1)[0] += 1e-6
        one, same, other = (fingerprint(model.state_dict()) for model in models)
        assert one == same != other and len(one) == 64

    def test_missing(self, task, tmp_path):
        path = str(tmp_path / "gone.pt")
        with pytest.raises(EsrlError, match="gone.pt does not exist: give --kl-reference") as found:
            frozen.load_model(path, task)
        assert "\n" not in str(found.value)

    def test_no_checkpoint(self, task, tmp_path, corpus):
        path = shutil.copy(corpus.dictionary, tmp_path / "dict.pt")
        with pytest.raises(EsrlError, match="dict.pt is a text file: give --kl-reference") as found:
            frozen.load_model(str(path), task)
        assert "\n" not in str(found.value)

    def test_another_architecture(self, task, mle, tmp_path):
        """Parameters that its options do not lead to, of which torch says one a line."""
        state = torch.load(mle, weights_only=True)
        state["model"] = {f"own.{name}": x for name, x in state["model"].items()}
        torch.save(state, tmp_path / "own.pt")
        with pytest.raises(EsrlError, match=r"own.pt \(Error.*Missing key.* …\): give") as found:
            frozen.load_model(str(tmp_path / "own.pt"), task)
        assert "\n" not in str(found.value) and len(str(found.value)) < 500

    def test_another_vocabulary(self, task, mle):
        task.src_dict.add_symbol("new")  # one dictionary for both sides
        with pytest.raises(EsrlError, match="another vocabulary: its encoder has 40 words.*has 41"):
            frozen.load_model(str(mle), task)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kl_weight": -0.1}, "--kl-weight is -0.1"),
            ({"kl_weight": math.nan}, "--kl-weight is nan"),
            ({"kl_weight": math.inf}, "--kl-weight is inf"),
            ({"kl_weight": 0.1, "kl_target": 0.0}, "--kl-target is 0.0"),
            ({"kl_weight": 0.1, "kl_target": math.nan}, "--kl-target is nan"),
            ({"kl_target": 4.0}, "--kl-weight, which is 0"),
            ({"kl_weight": 0.1, "kl_reference": None}, "--kl-reference"),
        ],
    )
    def test_wrong_ones(self, options, message):
        """Each is refused with a sentence that names it."""
        cfg = {"finetune_from_model": None, **options}
        if cfg.get("kl_weight"):
            cfg = {"kl_reference": "start.pt", **cfg}
        cfg["restore_file"] = CheckpointConfig.restore_file
        with pytest.raises(EsrlError, match=message):
            make_criterion(make_task(), **cfg)

    def test_which_file(self):
        """--kl-reference, --finetune-from-model, --restore-file; not a run's own checkpoint."""
        own = CheckpointConfig.restore_file

        def file(*paths):
            names = ("kl_reference", "finetune_from_model", "restore_file")
            return kl_reference_file(EsrlCriterionConfig(**dict(zip(names, paths))))

        assert file("a.pt", "b.pt", own) == "a.pt"
        assert file("a.pt", None, "c.pt") == "a.pt"
        assert file(None, "b.pt", own) == "b.pt"
        assert file(None, None, "c.pt") == "c.pt"
        assert file(None, None, own) == ""
