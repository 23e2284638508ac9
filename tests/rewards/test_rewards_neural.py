"""Rewards by pre-trained models: what surrounds the model, and what they make of its answers.

No library is needed: stand-ins answer (see ``stand_ins.py``).
"""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_batch, make_criterion, make_task
from stand_ins import install_all, overlap, sigmoid

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, command_line_options, score_rows
from esrl_fairseq.rewards.neural import NeuralReward, longest_text

MODULES = {
    "bertscore": ("bert_score", "pip install bert-score .the extra 'bertscore'.$"),
    "comet": ("comet", "pip install unbabel-comet .the extra 'comet'.$"),
    "sentence-embedding": (
        "sentence_transformers", "pip install sentence-transformers .the extra 'embedding'.$"
    ),
    "hf-reward": ("transformers", "pip install transformers .the extra 'hf'.$"),
}  # fmt: skip
OPTIONS = {
    "bertscore": {"model": "known"},
    "comet": {"model": "name"},
    "sentence-embedding": {"model": "name"},
    "hf-reward": {"model": "score"},
}


@pytest.fixture
def calls(monkeypatch):
    """The libraries' stand-ins, and versions for their signatures; what they are asked."""
    for name in ("bertscore", "comet", "hf_reward", "sentence_embedding"):
        monkeypatch.setattr(f"esrl_fairseq.rewards.{name}.version", lambda name: "0")
    return install_all(monkeypatch)


# --- what surrounds the model -----------------------------------------------------------------


class Judge(NeuralReward):
    """Overlap of letters with the reference, or with the source; remembers the triples."""

    name = "judge"
    range = (0.25, 1.25)

    def __init__(self, needs_references=True, batch_size=2, device="cpu"):
        super().__init__(device, batch_size)
        self.needs_references = needs_references
        self.asked = []

    def judge(self, sources, hypotheses, references):
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        others = sources if references is None else references
        self.asked += zip(sources, hypotheses, references or [None] * len(sources))
        return np.array([0.25 + overlap(*pair) for pair in zip(hypotheses, others)])


def test_triples_empty_hypotheses_and_the_best_reference():
    reward = Judge()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = score_rows(
            reward,
            ["s", "t"],
            ["abc", " \n", "ab", "x"],
            [["a", "ab"], ["x"]],
            [0, 0, 0, 1],
            [5, 6],
        )
    np.testing.assert_allclose(values, [0.25 + 2 / 3, 0.25, 1.25, 1.25])
    assert reward.asked == [
        ("s", "abc", "a"), ("s", "abc", "ab"), ("s", "ab", "a"), ("s", "ab", "ab"), ("t", "x", "x")
    ]  # fmt: skip


def test_without_references():
    reward = Judge(needs_references=False)
    values = score_rows(reward, ["ab", "x"], ["x", "", "a"], None, [1, 0, 0], [5, 6])
    np.testing.assert_allclose(values, [1.25, 0.25, 0.75])
    assert reward.asked == [("x", "x", None), ("ab", "a", None)]


def test_only_empty_hypotheses():
    reward = Judge()
    assert score_rows(reward, ["s"], ["", " "], [["r"]], [0, 0], [5]).tolist() == [0.25, 0.25]
    assert reward.asked == []


def test_batches_of_similar_length():
    texts = ["aaaa", "a", "aaa", "aa", "aaaaa"]
    assert list(Judge(batch_size=2).batches(texts)) == [[1, 3], [2, 0], [4]]
    assert list(Judge(batch_size=3).batches(texts, texts[::-1])) == [[1, 3, 2], [0, 4]]


class Encoder(torch.nn.Module):
    """Positions as in BERT, or as in RoBERTa, where they begin behind the padding's id."""

    def __init__(self, positions, padding):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.embeddings = torch.nn.Module()
        self.embeddings.word_embeddings = torch.nn.Embedding(9, 2, padding_idx=5)
        self.embeddings.position_embeddings = torch.nn.Embedding(9, 2, padding_idx=padding)


@pytest.mark.parametrize(
    "limit, positions, padding, expected",
    [
        (512, 514, 1, 512),
        (10**30, 40, None, 40),
        (10**30, 514, 1, 512),
        (10**30, 40, 0, 39),
        (10**30, None, None, 512),
        (10**30, -1, None, 512),
    ],
)
def test_longest_text(limit, positions, padding, expected):
    tokenizer = SimpleNamespace(model_max_length=limit)
    assert longest_text(tokenizer, Encoder(positions, padding)) == expected


@pytest.mark.parametrize("name", MODULES)
def test_missing_library(monkeypatch, name):
    module, message = MODULES[name]
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(EsrlError, match=f"^reward '{name}' needs a library.*{message}"):
        build_reward(f"bleu:0.5+{name}:0.5", {name: OPTIONS[name]})


@pytest.mark.parametrize("name", MODULES)
def test_needs_a_model(calls, name):
    with pytest.raises(EsrlError, match=f"'{name}' needs a model: give --reward-model .*such as"):
        build_reward(name)


def test_models_that_cannot_be_loaded(calls):
    message = r"'sentence-embedding' cannot load the model 'gone' \(OSError: gone is not a folder\)"
    with pytest.raises(EsrlError, match=message):
        build_reward("sentence-embedding", model="gone")


def test_loading_draws_no_random_numbers(calls):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    build_reward("sentence-embedding", model="name")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_devices_that_cannot_be_used(calls, device):
    with pytest.raises(EsrlError, match=f"'comet': --reward-device '{device}' cannot be used"):
        build_reward("comet", model="name", device=device)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("comet", dict(batch_size=0), "batch_size must be a whole number >= 1, not 0"),
        ("hf-reward", dict(batch_size="many"), "batch_size must be a whole number >= 1"),
        ("bertscore", dict(num_layers=0), "num_layers must be a whole number >= 1, not 0"),
        (
            "bertscore",
            dict(rescale_with_baseline="en"),
            "_baseline must be true or false, not 'en'",
        ),
        ("bertscore", dict(rescale_with_baseline=True), "rescale_with_baseline needs lang"),
        ("bertscore", dict(model="mine"), "knows no best layer of 'mine', so that num_layers must"),
        ("sentence-embedding", dict(against="target"), "must be one of reference, source, not"),
        ("comet", dict(references="no"), "references must be true or false, not 'no'"),
        ("comet", dict(references=False), "'name' cannot do without references"),
        ("hf-reward", dict(inputs="both"), "inputs must be one of pair, hypothesis, not 'both'"),
        ("hf-reward", dict(label="good"), "no label 'good': The model 'score' has 0 .LABEL_0.;"),
        ("hf-reward", dict(model="three"), "which label's probability.* 0 .good., 1 .bad., 2 .odd"),
        ("hf-reward", dict(model="three", label=3), "no label 3"),
        ("hf-reward", dict(label="label_o"), "no label 'label_o' .did you mean 'LABEL_0'"),
        ("hf-reward", dict(model="three", label=True), "no label True"),
        ("hf-reward", dict(model="headless"), "no trained classifier.bias, classifier.weight"),
        ("hf-reward", dict(model="no-pad"), "the tokenizer of 'no-pad' has no padding token"),
        ("hf-reward", dict(layer=3), "its options are: model, label, inputs, batch_size, device"),
    ],
)
def test_options_that_cannot_work(calls, name, options, message):
    with pytest.raises(EsrlError, match=f"^reward '{name}'.*{message}"):
        build_reward(name, **{**OPTIONS[name], **options})


# --- what they make of the library's answers --------------------------------------------------

SOURCES = ["aab", "b", "bbb"]
HYPOTHESES = ["ab", "a", "ba"]
REFERENCES = [["ab"], ["b", "a"], ["bx"]]


def ask(name, **options):
    return build_reward(name, **options)(SOURCES, HYPOTHESES, REFERENCES)


def test_sentence_embedding(calls):
    """Cosines 1, max(0, 1) and 1/√2; each text is embedded once."""
    expected = [1, 1, (1 + math.sqrt(0.5)) / 2]
    np.testing.assert_allclose(ask("sentence-embedding", model="name"), expected, rtol=1e-6)
    assert calls == [["ab", "a", "ba", "b", "bx"]]


def test_sentence_embedding_against_the_source(calls):
    reward = build_reward("sentence-embedding", model="name", against="source")
    assert not reward.needs_references
    values = reward(SOURCES, HYPOTHESES)
    expected = [(1 + 3 / math.sqrt(10)) / 2, 1 / 2, (1 + math.sqrt(0.5)) / 2]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_bertscore(calls):
    """F1, neither precision nor recall; texts are cut at the model's limit."""
    values = ask("bertscore", model="known", batch_size=7)
    np.testing.assert_allclose(values, [1, 1, 1 / 3], rtol=1e-6)
    assert calls == [(["ab", "a", "a", "ba"], ["ab", "b", "a", "bx"], 7, 40)]


def test_bertscore_rescaled(calls):
    reward = build_reward("bertscore", lang="en", rescale_with_baseline=True)
    assert reward.range == (-1, 1)
    values = reward(SOURCES, ["ab", "a", ""], REFERENCES)
    np.testing.assert_allclose(values, [1, 1, -1], rtol=1e-6)
    np.testing.assert_allclose(reward([""], ["x"], [["y"]]), [-1])
    with pytest.raises(EsrlError, match="--capability reward needs a reward in .0, 1."):
        options = "bertscore.lang=en,bertscore.rescale_with_baseline=true"
        task = make_task(capability="reward", elimination_ratio=0.5)
        make_criterion(task, reward="bertscore", reward_options=options)


def test_comet(calls):
    """1.1 times the overlap, clipped; batches of similar length; models without references."""
    values = ask("comet", model="name", batch_size=3)
    np.testing.assert_allclose(values, [1, 1, 1.1 / 3], rtol=1e-6)
    assert [len(batch) for batch in calls] == [3, 1]
    assert calls[0][0] == {"src": "b", "mt": "a", "ref": "b"}
    calls.clear()
    reward = build_reward("comet", model="kiwi")
    assert not reward.needs_references
    np.testing.assert_allclose(reward(SOURCES, HYPOTHESES), [1, 0, 0.55], rtol=1e-6)
    assert calls[0][0] == {"src": "b", "mt": "a"}
    reward = build_reward("comet", model="kiwi", references=True)
    np.testing.assert_allclose(reward(SOURCES, HYPOTHESES, REFERENCES), values, rtol=1e-6)


def test_comet_models_of_another_scale(calls):
    with pytest.raises(EsrlError, match="model 'old' gave a score of -3, but .* in .0, 1..*sample"):
        build_reward("comet", model="old")(["s"], ["x"], [["y"]])


def test_comet_takes_files_and_folders_as_they_are(calls, tmp_path):
    file = tmp_path / "checkpoints" / "model.ckpt"
    with pytest.raises(EsrlError, match="the folder has no checkpoints/model.ckpt"):
        build_reward("comet", model=str(tmp_path))
    file.parent.mkdir()
    file.touch()
    downloaded = ("name", "downloaded/name")
    for model, path in ((str(file), str(file)), (str(tmp_path), str(file)), downloaded):
        assert build_reward("comet", model=model)._model.path == path


@pytest.mark.parametrize(
    "options, logits",
    [
        (dict(model="score"), [1, 0, -3]),
        (dict(model="score", inputs="hypothesis"), [0, 1, 0]),
        (dict(model="multi", label="bad"), [-1, 0, 3]),
    ],
)
def test_hf_reward_by_sigmoid(calls, options, logits):
    reward = build_reward("hf-reward", **options)
    assert not reward.needs_references
    expected = [sigmoid(logit) for logit in logits]
    np.testing.assert_allclose(reward(SOURCES, HYPOTHESES), expected, rtol=1e-6)


@pytest.mark.parametrize("label, row", [("good", 0), (0, 0), ("odd", 2), (2, 2)])
def test_hf_reward_by_softmax(calls, label, row):
    values = ask("hf-reward", model="three", label=label, batch_size=2)
    expected = []
    for logit in (1, 0, -3):
        exps = [math.exp(logit), math.exp(-logit), 1]
        expected.append(exps[row] / sum(exps))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    # similar lengths together, and the pair, not the texts alone
    assert calls == [[("b", "a"), ("aab", "ab")], [("bbb", "ba")]]


@pytest.mark.parametrize(
    "model, text, name, row",
    [
        ("words", "true", "True", 0), ("words", "false", "false", 1), ("words", "0", "0", 2),
        ("words", "1", "false", 1), ("numbers", "1", "1", 0), ("numbers", "2", "2", 1),
        ("numbers", "0", "1", 0), ("three", "1", "bad", 1),
    ],
)  # fmt: skip
def test_hf_reward_labels_that_look_like_numbers(calls, model, text, name, row):
    """A label's name before an index, however the command line has read it."""
    options = command_line_options("hf-reward", f"hf-reward.label={text}", model, None)
    reward = build_reward("hf-reward", options)
    assert f"|label:{name}|" in reward.signature()
    logits = [1, -1, 0]  # of "a" beside ""
    total = sum(math.exp(logit) for logit in logits)
    np.testing.assert_allclose(reward([""], ["a"]), [math.exp(logits[row]) / total], rtol=1e-6)


def test_hf_reward_of_a_model_that_knows_no_padding(calls):
    """Decoder-only models refuse batches without it."""
    known, unknown = (
        build_reward("hf-reward", model=name, label="bad")._model.config.pad_token_id
        for name in ("three", "multi")
    )
    assert (known, unknown) == (3, 7)


# --- from the command line --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, given, expected",
    [
        ("bleu", (None, None, None), {"bleu": {}}),
        ("python:m.f:2+comet", (None, "m", "cpu"), {"comet": {"model": "m", "device": "cpu"}}),
        ("bleu:0.5+comet:0.5", (None, "m", None), {"bleu": {}, "comet": {"model": "m"}}),
        ("comet+hf-reward", ("hf-reward.model=h, comet.batch_size=4", "m", "cuda:1"),
         {"comet": {"batch_size": 4, "model": "m", "device": "cuda:1"},
          "hf-reward": {"model": "h", "device": "cuda:1"}}),
        ("hf-reward", ("hf-reward.device=cpu,hf-reward.label=a.b=c", None, None),
         {"hf-reward": {"device": "cpu", "label": "a.b=c"}}),
        ("chrf", ("chrf.word_order=2,chrf.lowercase=True,chrf.beta=1e0,chrf.x=None", None, None),
         {"chrf": {"word_order": 2, "lowercase": True, "beta": 1.0, "x": None}}),
        ("bleu+chrf", ("bleu.lowercase=no,chrf.lowercase=ON,chrf.whitespace=0", None, None),
         {"bleu": {"lowercase": False}, "chrf": {"lowercase": True, "whitespace": False}}),
        ("rouge+comet", ("rouge.use_stemmer=off,comet.references=yes", None, None),
         {"rouge": {"use_stemmer": False}, "comet": {"references": True}}),
    ],
)  # fmt: skip
def test_options_of_the_command_line(name, given, expected):
    assert command_line_options(name, *given) == expected


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("bleu", (None, "m", None), "--reward-model m is for one reward that.*--reward bleu has n"),
        ("comet+bertscore", (None, "m", None),
         "has several: give --reward-options comet.model=…,bertscore.model=…"),
        ("bleu+chrf", (None, None, "cpu"), "--reward-device cpu is for rewards with a model, but"),
        ("bleu", ("comet.model=m", None, None), "'comet' is no part of --reward bleu; write"),
        ("bleu+chrf", ("chfr.word_order=2", None, None),
         "'chfr' is no part of --reward bleu.chrf .did you mean 'chrf'"),
        ("chrf", ("word_order=2", None, None), "cannot read 'word_order=2'; write --reward-opt"),
        ("chrf", ("chrf.word_order", None, None), "cannot read 'chrf.word_order'"),
        ("chrf", ("chrf.=2", None, None), "cannot read 'chrf.=2'"),
        ("blue", (None, "m", None), "unknown reward 'blue' .did you mean 'bleu'"),
    ],
)  # fmt: skip
def test_options_of_the_command_line_that_cannot_work(name, given, message):
    with pytest.raises(EsrlError, match=message):
        command_line_options(name, *given)


def test_criterion_passes_options_on(calls):
    """Into a sum, and to bleu, where they come before --reward-tokenize."""
    criterion = make_criterion(
        make_task(elimination_ratio=0.5),
        reward="bleu:0.5+sentence-embedding:0.5",
        reward_model="name",
        reward_device="cpu",
        reward_options="bleu.tokenize=char,sentence-embedding.batch_size=3",
    )
    (bleu, _), (embedding, _) = criterion.scorer.reward.parts
    assert "tok:char|smooth:exp" in bleu.signature()
    assert (embedding.batch_size, embedding.device) == (3, torch.device("cpu"))
    assert "tok:char" in criterion.observer.measure.reward.signature()
    batch = make_batch()
    scored = criterion.scorer.score(batch, batch["target"].tolist(), range(len(batch["id"])))
    np.testing.assert_allclose(scored.rewards, 1, atol=1e-6)
    assert not any("_model" in name for name, _ in criterion.named_parameters())


def test_reference_free_models_say_so_to_the_task(calls):
    task = make_task()
    make_criterion(task, reward="hf-reward", reward_model="score")
    assert not task.references_for
    make_criterion(task, reward="comet", reward_model="name")
    assert task.references_for
