"""``--optimizer torch_adam`` against fairseq's own."""

import pytest
import torch
from fairseq import utils
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.fp16_optimizer import MemoryEfficientFP16Optimizer
from helpers import make_model

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.optimizer import TorchAdam


def optimizer(name, model, **options):
    cfg = FairseqAdamConfig(adam_betas="(0.8, 0.95)", weight_decay=0.1, lr=[1e-2], **options)
    params = [p for p in model.parameters() if p.requires_grad]
    return {"adam": FairseqAdam, "torch_adam": TorchAdam}[name](cfg, params)


def updates(name, numbers, state=None):
    """Parameters and norms after some updates with made-up gradients, and the state."""
    model, norms = make_model(), []
    own = optimizer(name, model, adam_eps=1e-12)
    if state is not None:
        own.load_state_dict(state["optimizer"])
        model.load_state_dict(state["model"])
    for seed in numbers:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        norms.append(float(own.clip_grad_norm(1.0)))
        own.step()
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    return parameters, norms, {"optimizer": own.state_dict(), "model": model.state_dict()}


def test_same_as_fairseq():
    ours, norms, state = updates("torch_adam", [1, 2, 3])
    theirs, expected, _ = updates("adam", [1, 2, 3])
    assert norms == pytest.approx(expected, rel=1e-5) and min(norms) > 1
    assert torch.allclose(ours, theirs, atol=1e-6)
    more, _, _ = updates("torch_adam", [4], state)
    whole, _, _ = updates("torch_adam", [1, 2, 3, 4])
    assert torch.equal(more, whole)


def test_norm_in_half_precision():
    """In float32, as fairseq's; without clipping gradients stay as they are."""
    model = make_model().to(torch.bfloat16)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in model.parameters()]
    norm = optimizer("torch_adam", model).clip_grad_norm(0)
    assert norm.dtype == torch.float32
    assert norm == pytest.approx(float(utils.clip_grad_norm_(model.parameters(), 0)), rel=1e-5)
    assert all(torch.equal(p.grad, x) for p, x in zip(model.parameters(), before))


def test_what_it_has_not():
    with pytest.raises(EsrlError, match="torch_adam has neither"):
        TorchAdam(FairseqAdamConfig(fp16_adam_stats=True), make_model().parameters())
    with pytest.raises(EsrlError, match="neither --memory-efficient-fp16 nor .* --optimizer adam"):
        MemoryEfficientFP16Optimizer(None, [], optimizer("torch_adam", make_model()))
