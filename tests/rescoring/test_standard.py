"""Standard sampling: rows, scores and gradients of two-stage sampling, in one pass with a graph."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import (
    ARCHS,
    EOS,
    PAD,
    SEED,
    STAGE_TWO,
    TARGET,
    A,
    gradients,
    make_batch,
    make_criterion,
    make_model,
    make_task,
    take,
)
from torch.nn.parallel import DistributedDataParallel

from esrl_fairseq.core.sequences import append_rows
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring import frozen
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.rescoring.standard import sample_with_graph
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.state.capability import RECORD

COUNTS = [5, 1, 0, 3, 2, 8]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 0.5])
KINDS = ("standard", "standard-nocache")


def make_sampler(model, min_len=1):
    return RowSampler([model], TARGET, max_len_a=0.5, max_len_b=2, min_len=min_len)


def standard(model, batch, cached=True, counts=COUNTS, sampler=None, **options):
    """Rows, scores and references' scores at the test's temperatures and seed."""
    sampler = sampler or make_sampler(model)
    return sample_with_graph(
        model, batch, sampler, counts, TEMPERATURES, SEED, cached=cached, **options
    )


def weights(n):
    return torch.linspace(-1, 2, n)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("min_len", [0, 2])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("arch", STAGE_TWO)
def test_equals_two_stages(arch, cached, min_len):
    """The same rows; the scores of stage two and their gradients, the references' among them."""
    model, batch = make_model(arch).train(), make_batch()
    sampler = make_sampler(model, min_len)
    drawn = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
    assert 0 < drawn.truncated.sum() < len(drawn) and len(drawn.lengths.unique()) > 1
    given = append_rows(drawn, batch["target"], PAD)
    temperature = torch.tensor(TEMPERATURES)[given.input_index]
    expected = rescore(model, batch["net_input"], given, PAD, EOS, min_len, temperature=temperature)
    n = len(drawn)

    rows, scores, references = standard(
        model, batch, cached, sampler=sampler, tempered=True, references=batch["target"]
    )
    for name in ("tokens", "lengths", "input_index", "truncated", "multiplicity"):
        assert torch.equal(getattr(rows, name), getattr(drawn, name)), name
    assert torch.equal(scores.lengths, expected.lengths[:n])
    assert not scores.entropy.requires_grad
    pairs = {
        "log_probs": (scores.log_probs, expected.log_probs[:n]),
        "tempered": (scores.tempered, expected.tempered[:n]),
        "references": (references.log_probs, expected.log_probs[n:]),
    }
    assert torch.allclose(scores.entropy, expected.entropy[:n], rtol=1e-5, atol=1e-5)
    for name, (found, wanted) in pairs.items():
        assert found.dtype == torch.float32
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5), name
        slopes = [gradients(model, (weights(len(x)) * x).sum()) for x in (found, wanted)]
        assert slopes[1].norm() > 1
        assert relative_error(*slopes) < 1e-5, name


@pytest.mark.parametrize("sampling", KINDS)
@pytest.mark.parametrize("arch", ["transformer", "lstm"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "fused", "mle_weight": 0.3},
        {"objective": "mrt", "temperature_correction": "tempered"},
        {"objective": "reinforce", "temperature_correction": "importance", "mle_weight": 0.3},
        {"objective": "rloo", "length_normalization": True},
        {"objective": "fused", "kl_weight": 0.3, "kl_reference": "other.pt"},
    ],
    ids=lambda options: "-".join(options),
)
def test_criterion_learns_the_same(options, arch, sampling, monkeypatch):
    """Loss, gradient, log and what is remembered, with dynamic sampling and equal samples."""
    monkeypatch.setattr(frozen, "load_model", lambda *_: make_model(arch, seed=2))
    results = {}
    for kind in ("two-stage", sampling):
        task = make_task(
            num_samples=6, elimination_ratio=0.5, min_sample_temperature=0.5,
            max_sample_temperature=1.5, sample_max_len_b=2, capability="entropy",
        )  # fmt: skip
        criterion = make_criterion(task, sampling_mode=kind, **options)
        model = make_model(arch).train()
        task.rl.baseline.push([0.3, 0.1, 0.6])
        task.open_store()
        records = np.zeros(5, RECORD)
        records["capability"] = [0.1, 0.9, 0.5, 0.3, 0.7]  # input 5 is unknown
        task.rl.store.write(np.arange(5), records)
        task.rl.begin_epoch(2)
        torch.manual_seed(1)
        loss, size, log = criterion(model, make_batch())
        results[kind] = loss, gradients(model, loss), size, log, task.rl._pending[0]
    (loss, slope, size, log, visit), found = results["two-stage"], results[sampling]
    assert 0 < log["truncated"] < log["rows"] < log["draws"]  # some end early, some are equal
    assert torch.allclose(found[0], loss, rtol=1e-5) and found[2] == size
    assert slope.norm() > 1e-2 and relative_error(found[1], slope) < 1e-5
    assert log.keys() - found[3].keys() == {"stages_apart"}
    for key in found[3].keys() - {"peak_gb"}:
        if not key.startswith("seconds"):
            assert float(found[3][key]) == pytest.approx(float(log[key]), rel=1e-5, abs=1e-6), key
    for name in RECORD.names:
        assert np.allclose(found[4].records[name], visit.records[name], rtol=1e-5, atol=1e-6)
    assert np.allclose(found[4].rewards, visit.rewards, atol=1e-5)


@pytest.mark.parametrize("sampling", KINDS)
@pytest.mark.parametrize("dropout", [False, True])
def test_criterion_has_one_pass(dropout, sampling):
    """It is one step after another, as the options say, and draws as it was told."""
    task = make_task(num_samples=3)
    criterion = make_criterion(task, sampling_mode=sampling, rescoring_dropout=dropout)
    criterion.draw_word = lambda logits, *_: torch.full((len(logits),), A)
    model, seen = make_model().train(), set()
    model.decoder.embed_tokens.register_forward_pre_hook(
        lambda module, args: seen.add((args[0].size(1), module.training))
    )
    _, _, log = criterion(model, make_batch())
    lengths = [1] if sampling == "standard" else [1, 2, 3, 4]
    assert seen == {(length, dropout) for length in lengths}
    assert (log["draws"], log["rows"], log["truncated"]) == (18, 6, 6)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("arch", STAGE_TWO)
def test_scores_belong_to_the_pass_that_draws(arch, cached):
    """Also with dropout, whose noise differs between rows of equal prefixes and between passes."""
    model, batch = make_model(arch), make_batch()

    def run(dropout, seed=1):
        steps = []

        def draw(logits, temperature, uniforms):
            assert torch.equal(temperature, torch.tensor(TEMPERATURES).repeat_interleave(counts))
            assert not logits.requires_grad and (0 <= uniforms).all() and (uniforms < 1).all()
            steps.append(logits.log_softmax(1))
            return logits.argmax(1)

        counts = torch.tensor(COUNTS)
        torch.manual_seed(seed)
        rows, scores, _ = standard(model, batch, cached, dropout=dropout, draw=draw)
        chosen = [step.gather(1, t.unsqueeze(1)) for step, t in zip(steps, rows.tokens.T)]
        expected = torch.cat(chosen, 1).masked_fill(~rows.scored(), 0).sum(1)
        assert torch.allclose(scores.log_probs, expected, atol=1e-5)
        assert torch.isfinite(gradients(model, scores.log_probs.sum())).all()
        return steps[0], scores.log_probs

    for training in (True, False):
        model.train(training)
        first, log_probs = run(dropout=False)
        assert torch.allclose(first[0], first[1], atol=1e-6)
        assert torch.equal(run(dropout=False, seed=2)[1], log_probs)
        first, log_probs = run(dropout=True)
        assert not torch.allclose(first[0], first[1], atol=1e-2)
        assert not torch.allclose(run(dropout=True, seed=2)[1], log_probs, atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_one_forward_and_one_encoder_pass(arch, training):
    """With references, too. Decoder, modes and dropout are as before, also after an error."""
    model, batch = make_model(arch), make_batch()
    sampler = make_sampler(model)  # to build one sets the mode
    model.train(training).encoder.eval()
    recurrent = [m for m in model.modules() if isinstance(m, torch.nn.RNNBase)]

    def state():
        modes = [m.training for m in model.modules()]
        return modes, [m.dropout for m in recurrent], "forward" in vars(model.decoder)

    before, calls = state(), []
    model.register_forward_pre_hook(lambda *_: calls.append("model"))
    model.encoder.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((args or tuple(kwargs.values()))[0].size(0)),
        with_kwargs=True,
    )
    for cached in (True, False):
        options = {"sampler": sampler, "dropout": cached}
        calls.clear()
        standard(model, batch, cached, references=batch["target"], **options)
        assert calls == ["model", 6] and state() == before
        with pytest.raises(ZeroDivisionError):
            standard(model, batch, cached, draw=lambda *_: 1 // 0, **options)
        assert state() == before


@pytest.mark.parametrize("cached", [True, False])
def test_what_a_step_decodes(cached):
    """One position with the cache, without it all; every row until all have ended."""
    model, batch, seen = make_model(), make_batch(), []
    model.decoder.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    rows, _, _ = standard(model, batch, cached)
    steps = int(rows.lengths.max())
    assert [tuple(shape[:2]) for shape in seen] == [
        (1 if cached else step + 1, sum(COUNTS)) for step in range(steps)
    ]


@pytest.mark.parametrize("cached", [True, False])
def test_decoder_keeps_its_output(cached):
    """A decoder may need what it returned in its backward pass, as tanh does."""
    model, batch = make_model("lstm", share_decoder_input_output_embed=False), make_batch()
    model.decoder.fc_out.register_forward_hook(lambda module, inputs, words: words.tanh())
    rows, scores, _ = standard(model, batch, cached, tempered=True)
    expected = rescore(model, batch["net_input"], rows, PAD, EOS, min_len=1).log_probs
    found, wanted = (gradients(model, x.sum()) for x in (scores.log_probs, expected))
    assert wanted.norm() > 1 and relative_error(found, wanted) < 1e-5


def test_no_rows():
    """All counts 0."""
    rows, scores, _ = standard(make_model(), make_batch(), counts=[0] * 6)
    assert len(rows) == len(scores.log_probs) == len(scores.entropy) == 0


def test_checkpointed_layers():
    """fairseq's are computed again in backward, which a cache does not survive: refused."""
    batch, found = make_batch(), []
    for options in ({}, {"checkpoint_activations": True}):
        model = make_model(**options)
        _, scores, _ = standard(model, batch, cached=False)
        (scores.log_probs * weights(sum(COUNTS))).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative_error(*found) < 1e-6
    with pytest.raises(EsrlError, match="standard-nocache"):
        standard(model, batch)


def distributed_worker(rank, folder):
    """One of two ranks: gradients through DistributedDataParallel."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    model = make_model().train()
    wrapped, batch = DistributedDataParallel(model), rank_batch(rank)
    sampler = make_sampler(model)
    for cached in (True, False):  # the second backward pass needs the reducer in order
        model.zero_grad()
        _, scores, references = standard(
            wrapped, batch, cached, rank_counts(rank), sampler, references=batch["target"]
        )
        objective(scores.log_probs, references.log_probs).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.save(gradient, f"{folder}/{rank}-{cached}.pt")
    dist.destroy_process_group()


def rank_batch(rank):
    return take(make_batch(), [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]][rank])


def rank_counts(rank):
    """Another number of rows on each rank."""
    return [COUNTS, [1, 0, 2, 0, 1, 3]][rank]


def objective(log_probs, references):
    return (log_probs * weights(len(log_probs))).sum() + references.sum()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    """Two gloo ranks: on both the mean of two-stage sampling's gradients."""
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if k not in os.environ}
    os.environ.update(environment)
    try:
        torch.multiprocessing.spawn(distributed_worker, (str(tmp_path),), nprocs=2)
    finally:
        for name in environment:
            del os.environ[name]
    model, expected = make_model(), 0
    for rank in range(2):
        batch, counts = rank_batch(rank), rank_counts(rank)
        drawn = make_sampler(model).sample_rows(batch, counts, TEMPERATURES, SEED)
        given = append_rows(drawn, batch["target"], PAD)
        log_probs = rescore(model, batch["net_input"], given, PAD, EOS, min_len=1).log_probs
        loss = objective(log_probs[: len(drawn)], log_probs[len(drawn) :])
        expected = expected + gradients(model, loss) / 2
    for cached in (True, False):
        first, second = (torch.load(tmp_path / f"{rank}-{cached}.pt") for rank in range(2))
        assert torch.equal(first, second) and relative_error(first, expected) < 1e-5
