"""Half precision: every path is near what it is without, and what is summed is float32.

``--amp`` is autocast, which fairseq has on a GPU alone; ``--bf16``, ``--fp16`` and their
memory-efficient forms have half-precision weights.
"""

import math

import numpy as np
import pytest
import torch
from helpers import (
    EOS,
    PAD,
    SEED,
    TARGET,
    every_row,
    gradients,
    make_batch,
    make_criterion,
    make_language_model,
    make_language_task,
    make_model,
    make_prompts,
    make_rows,
    make_task,
)

from esrl_fairseq.core.sampling import inverse_cdf_sample
from esrl_fairseq.core.token_scores import tempered_scores, token_scores
from esrl_fairseq.rescoring import frozen, row_scorer
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.sampling.attention import SelfAttention
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import TransformerSteps

HALF = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Kinds, and how far a gradient may be from float32's, relative to its length."""


def amp(kind):
    """What fairseq has around the criterion."""
    return torch.autocast("cpu", dtype=kind)


OPTIONS = [
    *({"objective": name} for name in ("fused", "mrt", "reinforce", "rloo")),
    {"objective": "ppo", "ppo_level": "token"},
    {"objective": "ppo", "ppo_level": "sequence", "length_normalization": True},
    {"sampling_mode": "standard"},
    {"sampling_mode": "standard-nocache", "mle_weight": 0.3},
    {"kl_weight": 0.1, "kl_reference": "other.pt"},
    {"temperature_correction": "tempered", "length_normalization": True},
    {"temperature_correction": "importance", "objective": "rloo"},
    {"mle_weight": 0.3, "max_sampled_tokens": 9, "kl_weight": 0.1, "kl_reference": "other.pt"},
]


TRIED = [("transformer", one) for one in OPTIONS] + [("lstm", one) for one in OPTIONS[::3]]


class Run:
    """One batch of one criterion, in training and in validation."""

    def __init__(self, options, arch, kind=None, given=None, weights=False):
        sampling = dict(
            num_samples=4, capability="entropy", min_sample_temperature=0.7,
            max_sample_temperature=1.5,
        )  # fmt: skip
        if arch.endswith("lm"):
            options = {"reward": "repetition", **options}
            task, model = make_language_task(**sampling), make_language_model(arch)
            batch = make_batch(make_prompts())
        else:
            task, model, batch = make_task(**sampling), make_model(arch), make_batch()
        model = model.to(kind) if weights else model  # as fairseq does it, but for --amp
        criterion = make_criterion(task, **options)
        self.samples = None
        remember = criterion.remember
        criterion.remember = lambda samples: (setattr(self, "samples", samples), remember(samples))
        if given is not None:  # those of another run: rounding draws other ones at times
            rows = given.rows
            criterion.sample_rows = lambda *_: (rows, given.drawn)
            table = rows.tokens.repeat_interleave(rows.multiplicity, 0)
            criterion.draw_word = self.word_of(table)
        task.rl.baseline.push([0.3, 0.1, 0.6])
        task.begin_epoch(1, model)
        torch.manual_seed(1)
        with torch.autocast(
            "cpu", dtype=kind or torch.bfloat16, enabled=bool(kind) and not weights
        ):
            self.loss, _, self.log = criterion(model.train(), batch)
            self.valid = criterion.eval()(model.eval(), batch)
        self.gradient = gradients(model, self.loss).float()
        task.rl.commit()
        self.queue = task.rl.baseline.state()["rewards"]

    @staticmethod
    def word_of(table):
        """Standard sampling's choice: the next column of these rows."""
        steps = iter(table.T)
        return lambda logits, *_: next(steps).clamp(min=0)


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("arch, options", TRIED, ids=str)
def test_criterion(arch, options, kind, monkeypatch):
    """Loss, gradient, logs and scores of the same rows; all of them are finite and float32."""
    monkeypatch.setattr(frozen, "load_model", lambda *_: make_model(arch, seed=2))
    expected = Run(options, arch)
    found = Run(options, arch, kind, expected.samples)
    check(found, expected, kind)


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("arch, options", TRIED, ids=str)
def test_weights_in_half_precision(arch, options, kind, monkeypatch):
    monkeypatch.setattr(frozen, "load_model", lambda *_: make_model(arch, seed=2))
    expected = Run(options, arch)
    check(Run(options, arch, kind, expected.samples, weights=True), expected, kind)


def check(found, expected, kind):
    assert torch.equal(found.samples.rows.tokens, expected.samples.rows.tokens)
    assert found.loss.dtype == found.valid[0].dtype == torch.float32
    assert torch.isfinite(found.gradient).all()
    distance = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
    assert distance < HALF[kind]
    assert found.queue.dtype == np.float32 and len(found.queue) > 3
    np.testing.assert_allclose(found.queue, expected.queue, atol=HALF[kind])
    near = dict(rel=HALF[kind], abs=HALF[kind])
    assert float(found.loss) == pytest.approx(float(expected.loss), **near)
    for logs in ((found.log, expected.log), (found.valid[2], expected.valid[2])):
        for name in logs[1].keys() - {"peak_gb", "stages_apart"}:
            one, other = (float(log[name]) for log in logs)
            assert math.isfinite(one)
            if not name.startswith("seconds"):
                assert one == pytest.approx(other, **near), name
    for name, value in vars(expected.samples.scores).items():
        own = getattr(found.samples.scores, name)
        if value is not None and value.is_floating_point():
            assert own.dtype == torch.float32 and torch.allclose(own, value, atol=0.1), name


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("arch", ["transformer_lm", "lstm_lm"])
def test_language_models(arch, kind):
    options = {"objective": "reinforce"}
    expected = Run(options, arch)
    check(Run(options, arch, kind, expected.samples), expected, kind)


def precisions(model):
    """Of what a layer of the decoder computes, each time."""
    kinds = []
    model.decoder.layers[0].fc1.register_forward_hook(lambda *args: kinds.append(args[2].dtype))
    return kinds


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("arch", ["transformer", "bart"])
@pytest.mark.parametrize("dropout", [False, True])
def test_what_is_computed_again(arch, kind, dropout, monkeypatch):
    """In backward, which is outside of autocast: in the precision of the forward pass."""
    monkeypatch.setattr(row_scorer, "PIECE_TOKENS", 6)
    rows = make_rows([[4, 5, EOS], [5, EOS], [4, 4, 5, EOS], [EOS]], [0, 1, 1, 3])
    found = []
    for max_tokens in (4096, 1):
        model = make_model(arch)
        kinds = precisions(model)
        torch.manual_seed(1)
        net_input = make_batch()["net_input"]
        with amp(kind):
            scores = rescore(
                model, net_input, rows, PAD, EOS, dropout=dropout, max_tokens=max_tokens
            )
        pieces = len(kinds)
        found.append(gradients(model, scores.log_probs.sum()))
        assert kinds == [kind] * len(kinds) and len(kinds) == pieces * (1 + (max_tokens == 1))
    assert found[0].norm() > 1
    # Sums of pieces are in half precision, or in float32 where each is computed again.
    assert (found[1] - found[0]).norm() < HALF[kind] / 3 * found[0].norm()


def test_what_is_computed_again_within_autocast():
    """Where the forward pass was outside."""
    model, rows = make_model(), make_rows([[4, 5, EOS], [5, EOS]], [0, 1])
    kinds = precisions(model)
    scores = rescore(model, make_batch()["net_input"], rows, PAD, EOS, max_tokens=1)
    with amp(torch.bfloat16):
        gradients(model, scores.log_probs.sum())
    assert kinds == [torch.float32] * 2


@pytest.mark.parametrize("kind", HALF)
def test_token_scores(kind):
    """Of half-precision scores, in float32: the entropy, too, although some words are forbidden."""
    torch.manual_seed(1)
    words = (3 * torch.randn(5, 40)).to(kind)
    given = torch.arange(5), 0, 1, torch.tensor([True, False] * 2 + [True]), torch.full((5,), 0.7)
    expected = tempered_scores(words.float(), *given)
    plain = token_scores(words.float(), *given[:4])
    with amp(kind):
        found = tempered_scores(words.clone(), *given)
        own = token_scores(words.clone(), *given[:4])
    for one, other in zip((*found, *own), (*expected, *plain)):
        assert one.dtype == torch.float32 and torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    assert found[-1].min() > 0.1


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("arch", ["transformer", "lstm", "lightconv", "bart"])
def test_stage_one(arch, kind, monkeypatch):
    """Rows are well formed and not far from float32's; the fast path is the general one's, and its
    cache is half precision."""
    model, batch, caches = make_model(arch).eval(), make_batch(), set()
    attend = SelfAttention.__call__
    monkeypatch.setattr(
        SelfAttention,
        "__call__",
        lambda self, query, **_: (attend(self, query), caches.add(self.cache.dtype))[0],
    )

    def draw():
        sampler = RowSampler([model], TARGET, max_len_a=0, max_len_b=8, min_len=1)
        return sampler.sample_rows(batch, [40] * 6, np.ones(6, np.float32), SEED)

    expected = draw()
    assert caches <= {torch.float32}
    caches.clear()
    with amp(kind):
        fast = draw()
        assert caches == ({kind} if arch in ("transformer", "bart") else set())
        monkeypatch.setattr(TransformerSteps, "fits", lambda decoder: False)
        general = draw()
    for rows in (fast, general):
        assert rows.lengths.min() >= 2 and rows.lengths.max() <= 9
        width = min(rows.tokens.size(1), expected.tokens.size(1))
        same = (rows.tokens[:, :width] == expected.tokens[:, :width]).all(1).float().mean()
        assert same > 0.6


@pytest.mark.parametrize("words", [3, 64, 100, 129])
def test_scores_that_are_no_numbers(words):
    """They give any word, so that the update is left to fairseq's handling of overflow."""
    for bad in (torch.nan, torch.inf):
        scores = torch.full((4, words), bad)
        drawn = inverse_cdf_sample(scores, torch.ones(4), torch.tensor([0, 0.3, 0.6, 0.99]))
        assert 0 <= drawn.min() and drawn.max() < words
    model = make_model()
    model.decoder.embed_tokens.weight.data.fill_(torch.nan)
    task = make_task(num_samples=2)
    criterion = make_criterion(task)
    task.begin_epoch(1, model)
    loss, _, _ = criterion(model.train(), make_batch())
    assert loss.isnan()


@pytest.mark.parametrize("kind", HALF)
def test_probabilities_sum_to_one(kind):
    """Of everything that can be sampled, nearly: prefixes are rounded alike."""
    with amp(kind):
        rows = every_row(2, 0)
        net_input = make_batch(ids=[0])["net_input"]
        scores = rescore(make_model(), net_input, rows, PAD, EOS)
    assert float(scores.log_probs.exp().sum()) == pytest.approx(1, abs=1e-3)
