"""Frozen parts get no gradient and stay as they are; the others learn as if these were thrown
away."""

import logging
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    TARGET,
    make_criterion,
    make_language_model,
    make_language_task,
    make_model,
    make_task,
)
from torch import nn

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.freezing import freeze_parts, refuse_other_parts

JOINED = dict(source=TARGET, share_all_embeddings=True)


def options(*parts):
    return SimpleNamespace(
        freeze_encoder="encoder" in parts, freeze_embeddings="embeddings" in parts
    )


def make(arch, **kinds):
    language = arch.endswith("_lm")
    return (make_language_model if language else make_model)(arch, **kinds), language


def belongs(name, parts):
    """Whether a parameter of a model that shares nothing is of a frozen part."""
    return ("encoder" in parts and name.startswith("encoder.")) or (
        "embeddings" in parts and "embed_" in name
    )


def updates(model, language, keep, sampling="two-stage", number=3):
    """SGD, on the parameters whose names are kept; gradients of the others are thrown away."""
    task = make_language_task() if language else make_task()
    more = dict(reward="repetition", reward_scaling="batch") if language else dict(mle_weight=0.3)
    criterion = make_criterion(task, sampling_mode=sampling, **more)
    batch = task.datasets["train"].collater([task.datasets["train"][i] for i in range(6)])
    task.open_store()
    kept = [x for name, x in model.named_parameters() if keep(name)]
    optimizer = torch.optim.SGD(kept, lr=0.1)
    for update in range(number):
        torch.manual_seed(update)
        model.train(), criterion.train()
        loss, _, _ = criterion(model, batch)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        task.rl.commit()


@pytest.mark.parametrize("sampling", ["two-stage", "standard"])
@pytest.mark.parametrize(
    ("arch", "parts"),
    [
        ("transformer", ["encoder"]),
        ("transformer", ["embeddings"]),
        ("lstm", ["encoder", "embeddings"]),
        ("bart", ["encoder"]),
        ("transformer_lm", ["embeddings"]),
        ("lstm_lm", ["embeddings"]),
    ],
)
def test_others_learn_as_if_these_were_thrown_away(arch, parts, sampling):
    if arch == "lstm_lm" and sampling == "standard":
        pytest.skip("one of them is enough")
    model, language = make(arch)
    start = {name: x.detach().clone() for name, x in model.named_parameters()}
    freeze_parts(model, options(*parts))
    frozen = [name for name, x in model.named_parameters() if not x.requires_grad]
    assert frozen == [name for name in start if belongs(name, parts)] and frozen
    built = []
    if "encoder" in parts:
        model.encoder.register_forward_hook(lambda *given: built.append(given[2]))
    updates(model, language, lambda name: not belongs(name, parts), sampling)
    other, _ = make(arch)
    updates(other, language, lambda name: not belongs(name, parts), sampling)
    for (name, own), expected in zip(model.named_parameters(), other.parameters()):
        if name in frozen:
            assert torch.equal(own, start[name]) and own.grad is None
        else:
            assert torch.allclose(own, expected, rtol=1e-4, atol=1e-5), name
            if not name.endswith("k_proj.bias"):  # its gradient is rounding
                assert not torch.equal(own, start[name]), name
    for output in built:  # backward never reaches the encoder
        tensors = [x for x in _tensors(output) if x.is_floating_point()]
        assert tensors and not any(x.requires_grad for x in tensors)


def _tensors(output):
    if torch.is_tensor(output):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [x for value in values if value is not None for x in _tensors(value)]


@pytest.mark.parametrize(
    ("kinds", "parts", "sentences"),
    [
        (
            JOINED,
            ["encoder"],
            ["freezes decoder.embed_tokens.weight, decoder.output_projection.weight, too"],
        ),
        (JOINED, ["embeddings"], ["freezes the output projection, too"]),
        ({"arch": "lstm"}, ["embeddings"], ["freezes the output projection, too"]),
        ({"share_decoder_input_output_embed": False}, ["embeddings"], []),
    ],
)
def test_what_is_frozen_beside_is_said(kinds, parts, sentences, caplog):
    model = make_model(**kinds)
    total = sum(x.numel() for x in model.parameters())
    with caplog.at_level(logging.INFO):
        freeze_parts(model, options(*parts))
    left = sum(x.numel() for x in model.parameters() if x.requires_grad)
    assert f"frozen: {total - left:,} of {total:,} parameters" in caplog.text
    assert all(sentence in caplog.text for sentence in sentences)
    assert caplog.text.count(", too") == len(sentences)


def test_an_encoder_whose_weights_the_decoder_holds(caplog):
    """As in models of Hugging Face."""
    transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
    config = transformers.M2M100Config(
        vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
        decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = nn.Module()
    model.encoder, model.decoder = nn.Module(), nn.Module()
    model.decoder.model = transformers.M2M100ForConditionalGeneration(config)
    with caplog.at_level(logging.INFO):
        freeze_parts(model, options("encoder"))
    assert "model.shared.weight" in caplog.text and "lm_head.weight, too" in caplog.text
    for name, x in model.named_parameters():
        assert x.requires_grad == (".encoder." not in name and "shared" not in name)


def test_no_such_part():
    with pytest.raises(EsrlError, match="--freeze-encoder: .* has no encoder"):
        freeze_parts(make_language_model(), options("encoder"))
    model = make_model()
    model.decoder.requires_grad_(False)
    with pytest.raises(EsrlError, match="nothing is left to train"):
        freeze_parts(model, options("encoder"))
    model = make_model()
    freeze_parts(model, SimpleNamespace())  # another criterion
    assert all(x.requires_grad for x in model.parameters())


def test_optimizer_of_other_parts():
    refuse_other_parts(options("encoder"), options("encoder"), "last.pt")
    with pytest.raises(EsrlError, match="last.pt was trained without --freeze-encoder, and this"):
        refuse_other_parts(options("encoder"), SimpleNamespace(), "last.pt")
    with pytest.raises(EsrlError, match="trained with --freeze-embeddings, and this run is withou"):
        refuse_other_parts(options(), options("embeddings"), "last.pt")
