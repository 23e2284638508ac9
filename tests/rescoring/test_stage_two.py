"""(b) Stage two: one parallel pass equals a plain step-by-step pass, and its gradient."""

import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import (
    ARCHS,
    EOS,
    PAD,
    STAGE_TWO,
    UNK,
    A,
    B,
    add_padding,
    every_row,
    gradients,
    make_batch,
    make_model,
    make_rows,
    plain_scores,
    plain_token_scores,
    take,
)
from torch.nn.parallel import DistributedDataParallel

from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.rescoring import row_scorer
from esrl_fairseq.rescoring.recompute import with_gradient
from esrl_fairseq.rescoring.rescoring import learn, rescore
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.corpus import CorpusCounts
from esrl_fairseq.state.rl_state import RLState, Visit


def ragged_rows():
    """Lengths 1 (EOS only) to 5, truncated rows, an input without rows, equal rows."""
    return make_rows(
        [[EOS], [A, B, B, A, EOS], [B, EOS], [A, B, B, A, EOS], [EOS], [B, UNK, EOS],
         [A, EOS], [A, EOS], [B, B, A, EOS]],
        [0, 0, 0, 1, 1, 3, 4, 5, 5],
        [False, False, False, True, False, False, True, False, True],
    )  # fmt: skip


def subset(rows, keep):
    return Rows(*(getattr(rows, name)[keep] for name in Rows.__dataclass_fields__))


def weights(rows):
    return torch.linspace(-1, 2, len(rows))


def weighted(c, places, scores):
    return (c[places] * scores.log_probs).sum()


def pieces(monkeypatch, piece_tokens):
    """Let the decoder take about so many positions at once, and its last layer fewer."""
    monkeypatch.setattr(row_scorer, "PIECE_TOKENS", piece_tokens)
    monkeypatch.setattr(row_scorer, "LEARNED_TOKENS", piece_tokens)
    monkeypatch.setattr(row_scorer, "HEAD_POSITIONS", piece_tokens // 2 + 1)


PIECES = [(2048, 4096), (6, 4096), (1, 4096), (2048, 1), (6, 1), (6, 9)]
"""Positions taken at once, and those whose activations are kept for backward."""


@pytest.mark.parametrize("min_len", [0, 1])
@pytest.mark.parametrize("arch", STAGE_TWO)
def test_equals_the_plain_pass(arch, min_len, monkeypatch):
    """Log-probabilities, gradients, entropies and lengths, however rows are cut into pieces."""
    model, batch = make_model(arch).eval(), make_batch()
    if arch != "lstm":  # fairseq's LSTM refuses needless padding
        batch = add_padding(batch, 1)
    rows = ragged_rows()
    if min_len:
        rows = subset(rows, rows.lengths > 1)
    expected, entropy = plain_scores(model, batch, rows, min_len)
    gradient = gradients(model, (weights(rows) * expected).sum())
    model.train()
    for piece_tokens, max_tokens in PIECES:
        pieces(monkeypatch, piece_tokens)
        scores = rescore(model, batch["net_input"], rows, PAD, EOS, min_len, max_tokens=max_tokens)
        assert scores.log_probs.dtype == torch.float32 and not scores.entropy.requires_grad
        assert torch.allclose(scores.log_probs, expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(scores.entropy, entropy, rtol=1e-5, atol=1e-5)
        assert torch.equal(scores.lengths, rows.lengths - rows.truncated.long())
        found = gradients(model, (weights(rows) * scores.log_probs).sum())
        assert gradient.norm() > 1
        assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", STAGE_TWO)
def test_learning_at_once(arch, monkeypatch):
    """A sum's gradient, computed piece by piece in the forward pass, is that of the kept graph,
    times what backward brings; the scores are the same, without gradient."""
    model, batch, rows = make_model(arch).train(), make_batch(), ragged_rows()
    how = {"min_len": 1, "temperature": torch.linspace(0.5, 2, len(rows)), "tokens": True}
    c, given = weights(rows), (model, batch["net_input"], rows)

    def term(places, scores):
        tokens = (scores.token_log_probs**2).sum(1)
        return (c[places] * (scores.log_probs * scores.tempered + tokens)).sum()

    expected = rescore(*given, PAD, EOS, **how)
    total = term(torch.arange(len(rows)), expected)
    gradient = gradients(model, -3 * total)
    assert gradient.norm() > 1
    for piece_tokens in (2048, 6, 1):
        pieces(monkeypatch, piece_tokens)
        scores, found = learn(*given, term, PAD, EOS, **how)
        assert torch.allclose(found, total, rtol=1e-4)
        for name, value in vars(expected).items():
            assert torch.allclose(getattr(scores, name), value, rtol=1e-4, atol=1e-5)
            assert not getattr(scores, name).requires_grad
        difference = gradients(model, -3 * found) - gradient
        assert difference.norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_learning_at_once_with_dropout(arch, monkeypatch):
    """The gradient is of the masks that the scores have."""
    pieces(monkeypatch, 6)
    model, batch, rows = make_model(arch).train(), make_batch(), ragged_rows()
    given = model, batch["net_input"], rows
    torch.manual_seed(1)
    kept = rescore(*given, PAD, EOS, dropout=True)
    gradient = gradients(model, (weights(rows) * kept.log_probs).sum())
    torch.manual_seed(1)
    scores, total = learn(*given, partial(weighted, weights(rows)), PAD, EOS, dropout=True)
    assert torch.allclose(scores.log_probs, kept.log_probs, rtol=1e-5, atol=1e-5)
    assert torch.allclose(gradients(model, total), gradient, rtol=1e-3, atol=1e-4)


def test_shared_gradients_are_not_added_twice():
    """autograd gives both terms of a sum one tensor; each is scaled once."""
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    unused = torch.ones(2, requires_grad=True)

    def terms():
        yield lambda x: (x + b).sum()
        yield lambda x: (2 * (x + b)).sum()
        yield lambda x: (3 * (x + b)).sum()

    total = with_gradient(terms(), a, [b, unused])
    total.backward(torch.tensor(5.0))
    assert total == 36 and a.grad.tolist() == b.grad.tolist() == [30] * 3
    assert unused.grad is None


@pytest.mark.parametrize("arch", ["transformer", "lstm", "lightconv"])
@pytest.mark.parametrize("training", [False, True])
def test_pieces_computed_twice_keep_their_dropout(arch, training, monkeypatch):
    """With dropout, gradients do not depend on how much is computed again in backward."""
    pieces(monkeypatch, 6)
    model, batch, rows = make_model(arch).train(training), make_batch(), ragged_rows()
    found = []
    for max_tokens in (4096, 9, 1):
        torch.manual_seed(1)
        scores = rescore(
            model, batch["net_input"], rows, PAD, EOS, dropout=True, max_tokens=max_tokens
        )
        found.append(gradients(model, (weights(rows) * scores.log_probs).sum()))
    assert torch.allclose(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[2], found[0], rtol=1e-3, atol=1e-4)


def test_checkpointed_layers():
    """``--checkpoint-activations`` changes no gradient: neither dropout in what backward computes
    again, nor a piece that is recomputed as a whole."""
    batch, rows = make_batch(), ragged_rows()
    found = []
    for options in ({}, {"checkpoint_activations": True}):
        for max_tokens in (4096, 1):
            model = make_model(**options)
            scores = rescore(model, batch["net_input"], rows, PAD, EOS, max_tokens=max_tokens)
            # fairseq's checkpoints need backward(), which is what training calls.
            (weights(rows) * scores.log_probs).sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    wrapped = [layer for layer in model.decoder.layers if hasattr(layer, "precheckpoint_forward")]
    assert wrapped and all(x.forward != x.precheckpoint_forward for x in wrapped)
    for gradient in found[1:]:
        assert torch.allclose(gradient, found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", STAGE_TWO)
def test_scores_at_the_rows_temperature(arch, monkeypatch):
    """``tempered`` and its gradient equal the plain pass at each row's own temperature."""
    model, batch, rows = make_model(arch).eval(), make_batch(), ragged_rows()
    temperature = torch.linspace(0.5, 2, len(rows))
    expected = torch.stack(
        [
            plain_scores(model, batch, subset(rows, slice(r, r + 1)), 0, float(tau))[0][0]
            for r, tau in enumerate(temperature)
        ]
    )
    slope = gradients(model, (expected * weights(rows)).sum())
    for piece_tokens, max_tokens in PIECES:
        pieces(monkeypatch, piece_tokens)
        scores = rescore(
            model,
            batch["net_input"],
            rows,
            PAD,
            EOS,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        assert torch.allclose(scores.tempered, expected, atol=1e-5)
        both = (scores.tempered * weights(rows)).sum() + 0 * scores.log_probs.sum()
        assert torch.allclose(gradients(model, both), slope, rtol=1e-3, atol=1e-4)
        plain = rescore(model, batch["net_input"], rows, PAD, EOS, max_tokens=max_tokens)
        assert plain.tempered is None
        assert torch.equal(plain.log_probs, scores.log_probs)
    assert torch.allclose(scores[2:4].tempered, expected[2:4], atol=1e-5)


@pytest.mark.parametrize("arch", STAGE_TWO)
def test_scores_of_tokens(arch, monkeypatch):
    """``token_log_probs`` and its gradient equal the plain pass; other scores stay as they are."""
    model, batch, rows = make_model(arch).eval(), make_batch(), ragged_rows()
    expected = plain_token_scores(model, batch, rows)
    slope_of = torch.linspace(-1, 2, expected.numel()).view_as(expected)
    slope = gradients(model, (slope_of * expected).sum())
    temperature = torch.linspace(0.5, 2, len(rows))
    for piece_tokens, max_tokens in PIECES:
        pieces(monkeypatch, piece_tokens)
        common = (model, batch["net_input"], rows, PAD, EOS)
        plain = rescore(*common, max_tokens=max_tokens, temperature=temperature)
        assert plain.token_log_probs is None
        scores = rescore(*common, max_tokens=max_tokens, temperature=temperature, tokens=True)
        found = scores.token_log_probs
        assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-5)
        assert not found[~rows.scored()].any()
        assert torch.allclose(
            gradients(model, (slope_of * found).sum()), slope, rtol=1e-3, atol=1e-4
        )
        for name in ("log_probs", "tempered", "entropy"):
            assert torch.equal(getattr(scores, name), getattr(plain, name))
    assert torch.equal(scores[2:4].token_log_probs, found[2:4])


def test_what_is_kept_does_not_grow_with_the_samples(monkeypatch):
    """Numbers kept for backward: bounded by max_tokens, not [positions, words] at all."""
    pieces(monkeypatch, 16)
    model, batch = make_model(), make_batch()
    kept = {}
    for copies, max_tokens in ((1, 16), (40, 16), (40, 10_000)):
        rows = ragged_rows()
        index = torch.arange(len(rows)).repeat_interleave(copies)
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = rescore(
                model, batch["net_input"], subset(rows, index), PAD, EOS, max_tokens=max_tokens
            )
        assert scores.log_probs.requires_grad
        kept[copies, max_tokens] = sum(tensor.numel() for tensor in storages.values())
    assert kept[40, 16] < 1.5 * kept[1, 16] < kept[40, 10_000] / 3


@pytest.mark.parametrize("arch", ARCHS)
def test_probabilities_of_all_rows_sum_to_one(arch):
    """(a) Stage two's probabilities of everything that can be sampled."""
    model, batch = make_model(arch).eval(), make_batch(ids=[0, 3])
    for limit, min_len in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 3)):
        rows = every_row(limit, min_len, inputs=2)
        scores = rescore(model, batch["net_input"], rows, PAD, EOS, min_len)
        assert torch.allclose(scores.log_probs.exp().view(2, -1).sum(1), torch.ones(2), atol=1e-5)


def test_gradient_of_a_truncated_row_stops_at_its_last_word():
    """The same words, once ended by the policy and once by the limit, differ by log p(EOS)."""
    model, batch = make_model().eval(), make_batch(ids=[0])
    rows = make_rows([[A, B, EOS], [A, B, EOS]], [0, 0], [False, True])
    log_probs = rescore(model, batch["net_input"], rows, PAD, EOS).log_probs
    other = make_rows([[A, B, word, EOS] for word in (A, B, UNK, 0)], [0] * 4, [True] * 4)
    going_on = rescore(model, batch["net_input"], other, PAD, EOS).log_probs.exp().sum()
    assert torch.isclose(log_probs[0].exp() + going_on, log_probs[1].exp())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dropout", [False, True])
def test_one_forward_and_one_encoder_pass(arch, dropout):
    """Both run once, the encoder over the inputs and not the rows; the hook is gone afterwards."""
    model, batch, rows = make_model(arch), make_batch(), ragged_rows()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append("model"))
    model.encoder.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((args or tuple(kwargs.values()))[0].size(0)),
        with_kwargs=True,
    )
    rescore(model, batch["net_input"], rows, PAD, EOS, dropout=dropout)
    assert calls == ["model", 6]
    model(**batch["net_input"])  # an expanded encoder output would not fit


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("training", [False, True])
def test_modes_are_restored(arch, training):
    """Training flags of every module and the dropout inside recurrent ones, also after an error."""
    model, batch, rows = make_model(arch), make_batch(), ragged_rows()
    model.train(training)
    model.encoder.eval()
    recurrent = [m for m in model.modules() if isinstance(m, torch.nn.RNNBase)]
    before = [m.training for m in model.modules()] + [m.dropout for m in recurrent]
    assert (arch == "lstm") == any(m.dropout > 0 for m in recurrent)
    for dropout in (False, True):
        rescore(model, batch["net_input"], rows, PAD, EOS, dropout=dropout)
        assert [m.training for m in model.modules()] + [m.dropout for m in recurrent] == before
        with pytest.raises(Exception):  # noqa: B017  (any)
            rescore(model, {"src_tokens": None, "src_lengths": None}, rows, PAD, EOS, 0, dropout)
        assert [m.training for m in model.modules()] + [m.dropout for m in recurrent] == before
    assert not model.encoder._forward_hooks


@pytest.mark.parametrize("arch", ARCHS)
def test_dropout_is_an_option(arch):
    """Off: a model in training scores as in evaluation. On: it does not."""
    model, batch, rows = make_model(arch), make_batch(), ragged_rows()

    def scored(training, dropout):
        model.train(training)
        return rescore(model, batch["net_input"], rows, PAD, EOS, dropout=dropout).log_probs

    assert torch.equal(scored(True, False), scored(False, False))
    assert not torch.allclose(scored(True, True), scored(False, False), atol=1e-2)


def replicated_gradient(model, batch, rows):
    """Of the weighted log-probabilities with sources copied for every row."""
    net_input = {
        key: batch["net_input"][key][rows.input_index] for key in ("src_tokens", "src_lengths")
    }
    own = Rows(rows.tokens, rows.lengths, torch.arange(len(rows)), rows.truncated, rows.lengths)
    log_probs = rescore(model, net_input, own, PAD, EOS).log_probs
    return gradients(model, (weights(rows) * log_probs).sum())


def rank_rows(rank):
    """Another number of rows on each rank."""
    rows = ragged_rows()
    return subset(rows, rows.input_index % 2 == rank)


def distributed_worker(rank, folder):
    """One of two ranks: gradients through DistributedDataParallel, and the shared reward queue."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    row_scorer.PIECE_TOKENS = row_scorer.LEARNED_TOKENS = 6
    model = make_model().train()
    wrapped = DistributedDataParallel(model)
    for at_once in (False, True):  # the second backward pass needs the reducer in order
        model.zero_grad()
        rows = rank_rows(rank)
        net_input = make_batch()["net_input"]
        if at_once:
            term = partial(weighted, weights(rows))
            learn(wrapped, net_input, rows, term, PAD, EOS)[1].backward()
        else:
            log_probs = rescore(wrapped, net_input, rows, PAD, EOS, max_tokens=9).log_probs
            (weights(rows) * log_probs).sum().backward()
    state = RLState(folder)
    state.open_store(0, 4, "0" * 128)
    state.baseline.size = 10
    records = np.zeros(1, RECORD)
    records["capability"] = (rank + 1) / 4
    state.corpus = CorpusCounts(build_reward("corpus-bleu", decay=0.5))
    counts = {"corpus-bleu": np.full(10, rank + 1.0)}
    state.add(Visit(np.array([rank]), records, np.float32([rank, rank + 0.5]), counts=counts))
    state.commit()
    torch.save(
        {
            "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
            "rewards": state.baseline.rewards.tolist(),
            "capability": state.store.capability(range(4)).tolist(),
            "has_file": state.files is not None,
            "counts": state.corpus.moving["corpus-bleu"].mean.tolist(),
        },
        f"{folder}/{rank}.pt",
    )
    # A rank that left while the other one still talked to it was once seen to abort.
    del wrapped
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    """Two gloo ranks: the mean gradient of replicated sources, equal on both; so is the state."""
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if k not in os.environ}
    os.environ.update(environment)
    try:
        torch.multiprocessing.spawn(distributed_worker, (str(tmp_path),), nprocs=2)
    finally:
        for name in environment:
            del os.environ[name]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model, batch = make_model(), make_batch()
    expected = sum(replicated_gradient(model, batch, rank_rows(rank)) for rank in range(2)) / 2
    assert expected.norm() > 1
    assert torch.equal(first.pop("gradient"), gradient := second.pop("gradient"))
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4)
    assert first.pop("has_file") and not second.pop("has_file")
    assert first["rewards"] == second["rewards"] == [0, 0.5, 1, 1.5]
    assert first["counts"] == second["counts"] == [1.5] * 10
    assert first["capability"][:2] == second["capability"][:2] == [0.25, 0.5]


@pytest.mark.parametrize("arch", ["transformer", "lightconv"])
def test_equals_replicated_sources(arch):
    """The encoder's expanded output carries the gradient of all rows, whatever their order."""
    model, batch, rows = make_model(arch).eval(), make_batch(), ragged_rows()
    expected = replicated_gradient(model, batch, rows)
    order = [5, 0, 3, 1, 4, 2]
    shuffled = take(batch, order)
    rows_there = subset(rows, slice(None))
    rows_there.input_index = torch.tensor([order.index(i) for i in rows.input_index.tolist()])
    log_probs = rescore(model, shuffled["net_input"], rows_there, PAD, EOS).log_probs
    found = gradients(model, (weights(rows) * log_probs).sum())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
