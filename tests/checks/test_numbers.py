"""What is NaN or infinite is found, named, and told from half precision's overflow."""

import math
import types

import numpy as np
import pytest
import torch
from helpers import EOS, make_batch, make_criterion, make_model, make_rows, make_task
from torch import nn

from esrl_fairseq.checks.numbers import (
    NotFinite,
    bad_gradient,
    bad_parameter,
    first_not_finite,
    largest_parameter,
    one_line,
    refuse_bad_parameters,
)
from esrl_fairseq.compat import at_bad_numbers
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring import frozen
from esrl_fairseq.run import Run
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.rl_state import Visit
from esrl_fairseq.state.samples import Samples
from esrl_fairseq.state.visits import bad_numbers


def test_the_first_that_is_not_finite():
    good, bad = torch.ones(2, 2), torch.tensor([1, torch.inf, -torch.inf])
    assert first_not_finite([("a", good), ("b", None)]) == ""
    assert first_not_finite([("a", good), ("b", bad)]) == "b holds infinity (2 of 3 values)"
    half = torch.full((1000, 2), torch.nan).half()
    assert first_not_finite([("c", half)]) == "c holds NaN in float16 (2,000 of 2,000 values)"


def test_parameters_and_gradients():
    model = nn.Linear(2, 1)
    assert not bad_parameter(model) and not bad_gradient(model)
    model.weight.data.copy_(torch.tensor([[1, -7]]))
    assert largest_parameter(model) == "weight reaches 7"
    model.bias.grad = torch.tensor([torch.nan])
    assert bad_gradient(model) == "bias holds NaN (1 of 1 values)"
    refuse_bad_parameters(model, "x.pt")
    model.weight.data[0, 1] = torch.nan
    with pytest.raises(EsrlError, match=r"parameters of x.pt .*: weight holds NaN \(1 of 2"):
        refuse_bad_parameters(model, "x.pt")


def shown(entropy=(1.0, 2.0), log_probs=(-1.0, -2.0), rewards=(0.5, 0.25), kl=0.0):
    """What bad_numbers says of a batch with one sample of each of two inputs."""
    rows = make_rows([[EOS], [EOS]], [0, 1])
    known = Scores(torch.tensor(log_probs), torch.tensor(entropy), torch.ones(2))
    batch = {"id": torch.tensor([7, 9])}
    samples = Samples(batch, None, rows, known, None, np.float32(rewards), False)
    visit = Visit(np.array([7, 9]), np.zeros(2, RECORD), np.float32(rewards), kl)
    return bad_numbers(samples, visit)


def test_what_a_batch_shows():
    assert shown() == ""
    for one in ({"entropy": (1, math.nan)}, {"log_probs": (-1, -math.inf)}):
        assert "log-probabilities are not finite" in shown(**one)
        assert shown(**one).endswith("first for sample 9")
    assert "the KL to the frozen model is inf in the batch with sample 7" in shown(kl=math.inf)
    assert "--kl-weight" in shown(rewards=(0, -np.inf))


def run_with(model, **common):
    """A run as far as it knows precision and model."""
    run = Run.__new__(Run)
    run.cfg = types.SimpleNamespace(
        common=types.SimpleNamespace(**{"fp16": False, "amp": False, **common})
    )
    run.trainer = types.SimpleNamespace(model=model)
    return run


@pytest.mark.parametrize("common", [{}, {"fp16": True}, {"amp": True}, {"bf16": True}])
@pytest.mark.parametrize("sound", [True, False])
def test_overflow_of_half_precision_passes(common, sound):
    """Where a loss scale makes up for it, and the parameters are sound."""
    task, model = make_task(num_samples=2), make_model()
    if not sound:
        model.encoder.embed_tokens.weight.data[4, 4] = torch.nan
    task.refuse_numbers("bad")  # no trainer that could do anything about it
    task.run = run_with(model, **common)
    task.refuse_numbers("")
    if sound and (common.get("fp16") or common.get("amp")):
        task.refuse_numbers("bad")
    else:
        with pytest.raises(NotFinite, match="bad"):
            task.refuse_numbers("bad")


def test_log_probabilities_that_are_none():
    """In an update, whose sample is named, and in validation."""
    task, model = make_task(num_samples=2), make_model()
    criterion = make_criterion(task)
    task.begin_epoch(1, model)
    model.decoder.embed_tokens.weight.data.fill_(torch.nan)
    task.run = run_with(model)
    task.run.begin_update = lambda: None
    batch = make_batch()
    with pytest.raises(NotFinite, match=r"log-probabilities .* first for sample \d+"):
        criterion.forward(model.train(), batch)
    assert task.rl.rewards_of_update() == (0, 0)
    with pytest.raises(NotFinite, match="validation references are not finite"):
        criterion.eval()(model.eval(), batch)


def test_a_frozen_model_of_nan(monkeypatch):
    other = make_model(seed=2)
    other.decoder.embed_tokens.weight.data.fill_(torch.inf)
    monkeypatch.setattr(frozen, "load_model", lambda *_: other)
    with pytest.raises(EsrlError, match=r"frozen model \(other.pt\) .* holds infinity"):
        frozen.FrozenModel("other.pt", make_task()).beside(make_model())


def test_fairseqs_words_in_one_line():
    error = FloatingPointError("Fatal error: gradients are\n inconsistent. Try this. Or that?")
    assert one_line(error) == "fatal error: gradients are inconsistent"


class Trainer:
    """What fairseq's does with gradients that are not finite."""

    gathered = 0

    def consolidate_optimizer(self):
        self.gathered += 1

    def train_step(self):
        try:
            raise FloatingPointError("gradients are Nan/Inf")
        except FloatingPointError:
            self.consolidate_optimizer()
            raise


def test_bad_numbers_are_told_of():
    """Once, so that the call may save; gathering for other reasons is as it was."""
    trainer, told = Trainer(), []
    at_bad_numbers(trainer, told.append)
    trainer.consolidate_optimizer()
    assert trainer.gathered == 1 and not told
    with pytest.raises(FloatingPointError):
        trainer.train_step()
    assert trainer.gathered == 2 and str(told[0]) == "gradients are Nan/Inf"
