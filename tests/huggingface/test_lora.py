"""--lora-rank: adapters in models of Hugging Face, alone in checkpoints, merged on export."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_causal_lm import DICTIONARY, make_prompts, save, transformers

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import adapters
from esrl_fairseq.huggingface.__main__ import export_model
from esrl_fairseq.huggingface.model import HfCausalLM, HfCausalLMConfig
from esrl_fairseq.rescoring.frozen import FrozenModel
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.start.freezing import freeze_parts

peft = pytest.importorskip("peft", reason="extra lora is not installed")

PAD, STOP = DICTIONARY.pad(), DICTIONARY.eos()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    tied = save(root / "tied", "qwen2", tie_word_embeddings=True)
    return {"llama": save(root / "llama"), "other": save(root / "other", seed=2), "tied": tied}


def build(folder, rank=2, seed=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = HfCausalLMConfig(hf_model=folder, lora_rank=rank, **options)
        return HfCausalLM(config, DICTIONARY)


def move(model, seed=3):
    """Adapters far from 0."""
    draw = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        if adapters.belongs(name):
            x.data.normal_(0, 0.5, generator=draw)
    return model


def batch():
    prompts = make_prompts()
    return prompts.collater([prompts[i] for i in range(len(prompts))])


def draw(model):
    sampler = RowSampler([model], DICTIONARY, max_len_a=0, max_len_b=5, min_len=0, eos=STOP)
    return sampler.sample(batch(), [2] * 6, np.ones(6, np.float32), 7)


def log_probs(model, rows):
    with torch.no_grad():
        return rescore(model, batch()["net_input"], rows, PAD, STOP).log_probs


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_it_begins_as_the_model_and_trains_adapters_alone(kind, folders):
    state = torch.get_rng_state()
    model, plain = build(folders[kind]), build(folders[kind], rank=0)
    assert torch.equal(torch.get_rng_state(), state)
    rows, known = draw(plain)
    assert torch.equal(draw(model)[0].tokens, rows.tokens)
    assert torch.equal(log_probs(model, rows), log_probs(plain, rows))
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if adapters.belongs(name)}
    # Each of the two layers has seven linear ones.
    assert len(trained) == 2 * 2 * 7 and all(len(model.state_dict()[name]) for name in trained)
    assert model.state_dict().keys() == trained | {"adapted"}


def test_both_stages_have_the_adapters(folders):
    """And the gradient is that of one differentiable pass."""
    model = move(build(folders["llama"]))
    rows, known = draw(model)
    scores = rescore(model, batch()["net_input"], rows, PAD, STOP)
    assert torch.allclose(known.log_probs, scores.log_probs, atol=1e-5)
    assert not torch.allclose(scores.log_probs, log_probs(build(folders["llama"]), rows), atol=0.1)
    scores.log_probs.sum().backward()
    for name, x in model.named_parameters():
        assert (x.grad is not None and x.grad.abs().sum() > 0) == adapters.belongs(name)


def test_off_is_the_start_model_and_no_second_copy(folders, caplog):
    model, plain = move(build(folders["llama"])), build(folders["llama"], rank=0)
    frozen = FrozenModel("", None)
    rows, _ = draw(model)
    adapted = log_probs(model, rows)
    for _ in range(2):  # also when it is not asked for the first time
        assert frozen.beside(model) is model and len(frozen.fingerprint) == 64
        with frozen.turn(model):
            assert torch.equal(log_probs(model, rows), log_probs(plain, rows))
        assert torch.equal(log_probs(model, rows), adapted)
    freeze_parts(model, SimpleNamespace(freeze_encoder=False, freeze_embeddings=True))
    model.decoder.model.model.layers[0].requires_grad_(False)
    before = [x.requires_grad for x in model.parameters()]
    with pytest.raises(ZeroDivisionError), frozen.turn(model):
        raise ZeroDivisionError
    assert [x.requires_grad for x in model.parameters()] == before and any(before)
    assert torch.equal(log_probs(model, rows), adapted)


def test_half_precision(folders):
    model = move(build(folders["llama"])).bfloat16()
    assert model.adapted.dtype == torch.uint8
    with model.without_adapters():
        draw(model)
    assert draw(model)[1].log_probs.isfinite().all()


def checkpoint(model, path):
    cfg = {"model": {"_name": "hf_causal_lm", **vars(model.cfg)}}
    torch.save({"model": model.state_dict(), "cfg": cfg}, path)
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 3.0, "lora_targets": "q_proj, down_proj"},
        {"lora_targets": "v_proj,lm_head,embed_tokens"},
    ],
)
def test_checkpoints_and_export(options, folders, tmp_path):
    model = move(build(folders["llama"], **options))
    rows, _ = draw(model)
    path = checkpoint(model, tmp_path / "lora.pt")
    again = build(folders["llama"], seed=9, **options)
    again.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    assert torch.equal(log_probs(again, rows), log_probs(model, rows))
    export_model(path, None, tmp_path / "out")
    merged = HfCausalLM(HfCausalLMConfig(hf_model=str(tmp_path / "out")), DICTIONARY)
    assert torch.allclose(log_probs(merged, rows), log_probs(model, rows), atol=1e-5)
    names = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert not any("base_layer" in name or adapters.belongs(name) for name in names)
    assert tuple(names) == tuple(build(folders["llama"], rank=0).decoder.model.state_dict())


def test_adapters_for_another_model(folders, tmp_path):
    model = build(folders["llama"])
    state = model.state_dict()
    with pytest.raises(SystemExit, match="for another model than .*other: give theirs as --hf-mod"):
        build(folders["other"]).load_state_dict(state)
    with pytest.raises(SystemExit, match="holds no adapters"):
        model.load_state_dict(build(folders["llama"], rank=0).state_dict())
    path = checkpoint(model, tmp_path / "lora.pt")
    with pytest.raises(EsrlError, match="adapters in .*lora.pt are for another model than .*other"):
        export_model(path, folders["other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("llama", {"lora_targets": "nosuch"}, "--lora-targets nosuch does not fit .*llama"),
        ("tied", {"lora_targets": "q_proj,lm_head"}, "shares with its output projection"),
        ("tied", {"lora_targets": "embed_tokens"}, "shares with its output projection"),
        ("llama", {"rank": 0, "lora_alpha": 3.0}, "--lora-alpha is for adapters: give --lora-rank"),
        ("llama", {"rank": 0, "lora_targets": "q_proj"}, "--lora-targets is for adapters"),
        ("llama", {"rank": -1}, "--lora-rank is 0 or more"),
        ("llama", {"lora_alpha": 0.0}, "--lora-alpha above 0"),
    ],
)
def test_refused_options(kind, options, sentence, folders):
    with pytest.raises(EsrlError, match=sentence):
        build(folders[kind], **options)


def test_peft_is_missing(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EsrlError, match="--lora-rank needs peft, .*the extra 'lora'"):
        build(folders["llama"])
    build(folders["llama"], rank=0)
