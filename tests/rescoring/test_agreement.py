"""Stage one and stage two give a row the same log-probability, whatever the architecture."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, REFUSED, build, model_name
from fairseq.models import MODEL_REGISTRY, transformer_from_pretrained_xlm
from fairseq.models.transformer import TransformerDecoder
from fairseq.modules.dynamic_convolution import DynamicConv_scripatable
from helpers import (
    EOS,
    SEED,
    TARGET,
    make_batch,
    make_language_model,
    make_language_task,
    make_model,
    make_prompts,
    make_task,
    plain_token_scores,
)

from esrl_fairseq.checks.models import check_model
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring.agreement import (
    INPUTS,
    LONGEST,
    TOLERANCE,
    check_stages,
    some_inputs,
    stage_difference,
)
from esrl_fairseq.rescoring.standard import sample_with_graph
from esrl_fairseq.sampling.conditioning import is_decoder_only
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import DecoderSteps, TransformerSteps

SPEECH = """
CodeHiFiGANVocoder convtransformer fastspeech2 hubert hubert_ctc hubert_seq2seq s2spect2_conformer
s2spect_conformer s2spect_transformer s2t_berard s2t_conformer s2t_transformer s2ut_conformer
s2ut_transformer speech_dlm tacotron_2 transformer_ulm tts_transformer unity_conformer
unity_xm_transformer wav2vec wav2vec2 wav2vec2_laser wav2vec_classification wav2vec_ctc
wav2vec_seq2seq xm_transformer
""".split()
"""They read or write speech, and are built for tasks of their own."""
ELSEWHERE = {
    "dummy_model": "a benchmark; no incremental decoder",
    "multilingual_transformer": "refused, see tests/checks/test_models.py",
    "pipeline_parallel_transformer": "fairscale; its decoder is in pieces",
    "model_parallel_roberta": "Megatron",
    "model_parallel_transformer": "Megatron",
    "model_parallel_transformer_lm": "Megatron",
    **dict.fromkeys(("camembert", "gottbert", "xlmr", "xmod"), "RoBERTa by another name"),
}


def sampler_of(model, max_len_b=10):
    return RowSampler(
        [model], model.decoder.dictionary, max_len_a=0, max_len_b=max_len_b, min_len=1
    )


def batch_for(model):
    return make_batch(make_prompts()) if is_decoder_only(model) else make_batch()


def test_no_architecture_is_forgotten():
    """Each of fairseq's models is below, or has its reason not to be."""
    tried, refused = ({model_name(text) for text in kind} for kind in (ARCHITECTURES, REFUSED))
    kinds = (tried, refused, SPEECH, ELSEWHERE.keys())
    found = sorted(name for kind in kinds for name in kind)
    own = {name for name, kind in MODEL_REGISTRY.items() if kind.__module__.startswith("fairseq.")}
    assert found == sorted(own)


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_stages_agree(text, monkeypatch):
    """To 1e-4 a token; and stage one draws the rows that the decoder's whole pass would draw."""
    monkeypatch.setattr(
        transformer_from_pretrained_xlm,
        "upgrade_state_dict_with_xlm_weights",
        lambda state_dict, pretrained_xlm_checkpoint: state_dict,
    )
    if text.startswith("hf"):
        pytest.importorskip("transformers", reason="extra hf is not installed")
    model = build(text)
    batch, sampler = batch_for(model), sampler_of(model)
    check_model(model)
    assert stage_difference(model, batch, sampler) < 1e-4
    counts, temperatures = [4, 1, 0, 3, 2, 6], [2.0, 1.0, 1.0, 3.0, 1.5, 2.5]
    drawn, known = sampler.sample(batch, counts, temperatures, SEED)
    with torch.no_grad():
        rows, scores, _ = sample_with_graph(
            model, batch, sampler, counts, temperatures, SEED, cached=False
        )
    assert torch.equal(drawn.tokens, rows.tokens) and len(rows.lengths.unique()) > 1
    assert torch.allclose(known.log_probs, scores.log_probs, atol=1e-4)


@pytest.mark.parametrize("text", REFUSED)
def test_others_are_refused(text):
    with pytest.raises(EsrlError, match="samples word by word, but .*choose"):
        check_model(build(text))


@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_steps_give_the_plain_pass(arch):
    """Of rows that end early, were cut, and may not be empty."""
    model, batch = make_model(arch).eval(), make_batch()
    sampler = RowSampler([model], TARGET, max_len_a=0, max_len_b=4, min_len=2)
    rows, known = sampler.sample(batch, [3, 0, 1, 5, 2, 4], [1.0] * 6, SEED)
    assert 0 < rows.truncated.sum() < len(rows)
    with torch.no_grad():
        expected = plain_token_scores(model, batch, rows, min_len=2)
    assert torch.allclose(known.token_log_probs, expected, atol=1e-5)


def shifted(model, monkeypatch):
    """Steps give one word more than the whole pass does."""
    decode = model.decoder.forward

    def forward(*args, incremental_state=None, **kwargs):
        words, extra = decode(*args, incremental_state=incremental_state, **kwargs)
        if incremental_state is not None:
            words[..., EOS] += 0.1
        return words, extra

    monkeypatch.setattr(
        type(model.decoder), "forward", lambda _, *args, **kwargs: forward(*args, **kwargs)
    )


def looking_ahead(model, monkeypatch):
    """The whole pass has no mask."""
    kind = type(model.decoder)
    monkeypatch.setattr(kind, "buffered_future_mask", lambda _, x: x.new_zeros(len(x), len(x)))


def by_length(model, monkeypatch):
    """The whole pass depends on the length of the row, as fairseq's dynamic convolution does."""
    stock = DynamicConv_scripatable._forward_unfolded.__wrapped__
    monkeypatch.setattr(DynamicConv_scripatable, "_forward_unfolded", stock)


def no_number(model, monkeypatch):
    """A run that has diverged."""
    model.decoder.embed_tokens.weight.data.fill_(torch.nan)


LONG_KERNELS = dict(decoder_conv_type="dynamic", decoder_kernel_size_list=[7, 7])
DIFFERENT = {
    shifted: dict(arch="lstm"),
    looking_ahead: dict(arch="transformer"),
    by_length: dict(arch="lightconv", **LONG_KERNELS),
    no_number: dict(arch="transformer"),
}


@pytest.mark.parametrize("fault", DIFFERENT)
def test_difference_is_refused(fault, monkeypatch):
    """One sentence with the number, which no model has that is right."""
    model, batch = make_model(**DIFFERENT[fault]), make_batch()
    check_stages(model, batch, make_task())
    fault(model, monkeypatch)
    with pytest.raises(EsrlError, match=r"another policy.* differ by (0\.\d+|nan) nats a token"):
        check_stages(model, batch, make_task())


def test_language_models_too(monkeypatch):
    batch = make_batch(make_prompts())
    for arch in ("transformer_lm", "lstm_lm"):
        model = make_language_model(arch)
        check_stages(model, batch, make_language_task())
        if arch == "transformer_lm":
            looking_ahead(model, monkeypatch)
            with pytest.raises(EsrlError, match="nats a token"):
                check_stages(model, batch, make_language_task())


class Audio(torch.nn.Module):
    """Reads no tokens."""

    def forward(self, *_, **__):
        raise ValueError("expected 80 features\nfor each frame")

    forward_torchscript = forward


class ForgetfulDecoder(TransformerDecoder):
    """Keeps what other rows read."""

    def reorder_incremental_state_scripting(self, *_):
        pass


@pytest.mark.parametrize("fault", ["reads audio", "forgets its rows"])
def test_failure_is_one_sentence(fault):
    """Which says what failed, and where."""
    model = make_model()
    if fault == "reads audio":
        model.encoder = Audio()
        words = r"\(ValueError: expected 80 features for each frame; test_agreement.py, line \d+\)"
    else:
        model.decoder.__class__ = ForgetfulDecoder
        words = r"\(\w+Error: .*\.py, line \d+\)"
    with pytest.raises(EsrlError, match=f"TransformerModel fails where .*{words}"):
        check_stages(model, make_batch(), make_task())


def draw_something(*_):
    """As a model of a user may, in eval mode, too."""
    torch.rand(1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_check_leaves_no_trace(kind):
    """Neither in modes, weights and random numbers, nor of a precision that is not the model's."""
    model = make_model().to(kind)
    model.encoder.eval()
    model.decoder.register_forward_pre_hook(draw_something)
    task, batch = make_task(), make_batch()
    task.build_sampler(model)

    def state():
        weights = [(x.data_ptr(), x.dtype) for x in (*model.parameters(), *model.buffers())]
        modes = [module.training for module in model.modules()]
        return weights, modes, torch.get_rng_state().tolist(), torch.is_autocast_enabled("cpu")

    values = copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = state()
        assert stage_difference(model, batch, task.sampler) < 1e-5 < TOLERANCE
        assert state() == before
        model.decoder.layers = torch.nn.ModuleList([*model.decoder.layers, Audio()])
        before = state()
        with pytest.raises(EsrlError, match="fails where"):
            check_stages(model, batch, task)
        assert state() == before
    assert all(torch.equal(values[name], model.state_dict()[name]) for name in values)


@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_check_is_cheap(arch, monkeypatch):
    """Of a large batch with long outputs, a few short rows; by the steps that stage one takes."""
    model, sizes = make_model(arch, max_target_positions=500), []
    batch = make_batch(ids=[0] * 40)
    task = make_task(sample_max_len_b=400, sample_min_len=300)
    kind = TransformerSteps if arch == "transformer" else DecoderSteps
    step = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, previous: sizes.append(len(previous)) or step(self, previous)
    )
    assert len(some_inputs(batch)["id"]) == INPUTS
    check_stages(model, batch, task)
    assert max(sizes) == 2 * INPUTS and len(sizes) == LONGEST + 1
