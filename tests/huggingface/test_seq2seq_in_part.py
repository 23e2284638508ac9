"""``--arch hf_seq2seq`` of which a part is trained: adapters, or all but the encoder."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SEED, make_batch
from tiny_seq2seq import SOURCES, WORDS, build, load, make_dataset, save

from esrl_fairseq.huggingface import adapters
from esrl_fairseq.huggingface.__main__ import export_model
from esrl_fairseq.rescoring.frozen import FrozenModel
from esrl_fairseq.rescoring.rescoring import learn, rescore
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.start.freezing import freeze_parts

KINDS = ["m2m_100", "marian two", "t5", "bart", "fsmt"]
TIED = {"tie_word_embeddings": True, "vocab_size": len(WORDS)}
COUNTS = [3] * len(SOURCES)


def draw(model, batch):
    dictionary = model.decoder.dictionary
    sampler = RowSampler([model], dictionary, max_len_a=0, max_len_b=6, min_len=0)
    return sampler.sample(batch, COUNTS, np.ones(len(SOURCES), np.float32), SEED)


def score(model, batch, rows):
    words = model.decoder.dictionary
    return rescore(model, batch["net_input"], rows, words.pad(), words.eos())


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in KINDS), ("fsmt", TIED)])
def test_adapters(kind, more, tmp_path):
    """They are what is trained, kept and exported; without them the model is the start."""
    pytest.importorskip("peft", reason="extra lora is not installed")
    where = save(tmp_path / "start", kind, **more)
    model, plain = build(where, lora_rank=2), build(where)
    batch = make_batch(make_dataset(where))
    rows, known = draw(plain, batch)
    assert torch.equal(draw(model, batch)[0].tokens, rows.tokens)
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained and all(map(adapters.belongs, trained))
    assert {name.split(".")[-4] for name in trained} >= {"q_proj" if kind != "t5" else "q"}
    assert model.state_dict().keys() == trained | {adapters.ADAPTED}
    with torch.no_grad():
        start = score(model, batch, rows).log_probs
        for name, x in model.named_parameters():
            if name in trained:
                x.normal_(0, 0.3)
        rows, known = draw(model, batch)
        own = score(model, batch, rows).log_probs
        assert torch.allclose(known.log_probs, own, rtol=0, atol=1e-5)
        frozen = FrozenModel("", None)
        assert frozen.beside(model) is model
        with frozen.turn(model):
            rows, _ = draw(plain, batch)
            assert torch.equal(score(model, batch, rows).log_probs, start)
    torch.save(
        {"model": model.state_dict(), "cfg": {"model": {"_name": "hf_seq2seq", **vars(model.cfg)}}},
        tmp_path / "checkpoint.pt",
    )
    export_model(str(tmp_path / "checkpoint.pt"), None, tmp_path / "out")
    merged = build(str(tmp_path / "out"))
    with torch.no_grad():
        found, expected = score(merged, batch, rows).log_probs, score(model, batch, rows).log_probs
    assert torch.allclose(found, expected, rtol=0, atol=1e-4) and not torch.equal(found, start)
    names = {name.removeprefix("decoder.model.") for name in plain.state_dict()}
    assert load(str(tmp_path / "out")).state_dict().keys() >= names - {"ids", "start"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_gets_no_gradient(kind, tmp_path):
    """The rest has the gradient that it would have anyway."""
    where = save(tmp_path, kind)
    batch = make_batch(make_dataset(where))

    def gradient(model):
        words, (rows, _) = model.decoder.dictionary, draw(model, batch)

        def term(places, scores):
            return (scores.log_probs * torch.arange(1.0, len(rows) + 1)[places]).sum()

        learn(model, batch["net_input"], rows, term, words.pad(), words.eos())[1].backward()
        return {name: x.grad for name, x in model.named_parameters()}

    model, plain = build(where), build(where)
    freeze_parts(model, SimpleNamespace(freeze_encoder=True, freeze_embeddings=False))
    encoder = {id(x) for x in model.encoder.family.encoder.parameters()}
    frozen = {name for name, x in model.named_parameters() if id(x) in encoder}
    assert any("layer" in name or "block" in name for name in frozen)
    found, expected = gradient(model), gradient(plain)
    assert {name for name, x in found.items() if x is None} >= frozen
    rest = [name for name, x in found.items() if x is not None]
    assert rest and all(
        torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in rest
    )
