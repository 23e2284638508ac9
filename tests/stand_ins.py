"""Small stand-ins for the libraries of neural rewards: the same calls and shapes, no weights.

They tell what the rewards make of a library's answers where it is not installed, as in CI.
``tests/test_rewards_libraries.py`` asks the libraries themselves.
"""

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

BASELINE = 0.5  # of the stand-in for bert-score


def install(monkeypatch, name, **content):
    """Make `import name` give a module of this content."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def install_all(monkeypatch):
    """All four libraries; returns the calls that they got, in order."""
    calls = []
    install(monkeypatch, "sentence_transformers", SentenceTransformer=_encoder(calls))
    utils = SimpleNamespace(model2layers={"known": 5})
    install(monkeypatch, "bert_score", BERTScorer=_bert_scorer(calls), utils=utils)
    install(
        monkeypatch,
        "comet",
        download_model=lambda name: f"downloaded/{name}",
        load_from_checkpoint=lambda path: _Comet(path, calls),
    )
    install(
        monkeypatch,
        "transformers",
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda name: _Tokenizer(name, calls)),
        AutoModelForSequenceClassification=SimpleNamespace(from_pretrained=_classifier),
    )
    return calls


class _Frozen:
    """A model that has to be put into evaluation mode, and asked without gradients."""

    ready = False

    def named_modules(self):
        return []

    def eval(self):
        self.ready = True
        return self

    def to(self, device):
        assert isinstance(device, torch.device)
        return self

    def check(self):
        assert self.ready and not torch.is_grad_enabled()


def overlap(one, other):
    """Common letters over all letters, in [0, 1]."""
    return len(set(one) & set(other)) / max(len(set(one) | set(other)), 1)


def _encoder(calls):
    class SentenceTransformer(_Frozen):
        """Counts a and b; normalised."""

        def __init__(self, name, device):
            if name == "gone":
                raise OSError("gone is not a folder\nand much more")
            torch.rand(3)  # as an initialised head would

        def encode(
            self, texts, batch_size, show_progress_bar, convert_to_numpy, normalize_embeddings
        ):
            self.check()
            assert normalize_embeddings and convert_to_numpy and not show_progress_bar
            calls.append(list(texts))
            counts = np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1e-9)

    return SentenceTransformer


def _bert_scorer(calls):
    class BERTScorer:
        """F1 is the overlap of letters."""

        def __init__(self, model_type, num_layers, lang, rescale_with_baseline, batch_size, device):
            self.model_type, self.num_layers = model_type or f"default-{lang}", num_layers or 5
            self.lang, self.rescale_with_baseline = lang, rescale_with_baseline
            self.baseline_vals = torch.full((3,), BASELINE)
            self._tokenizer = SimpleNamespace(model_max_length=int(1e30))
            self._model = _Frozen()
            self._model.config = SimpleNamespace(max_position_embeddings=40)

        def score(self, cands, refs, batch_size):
            assert type(cands) is type(refs) is list and len(cands) == len(refs)
            assert not torch.is_grad_enabled()
            calls.append((cands, refs, batch_size, self._tokenizer.model_max_length))
            f1 = torch.tensor([overlap(*pair) for pair in zip(cands, refs)])
            if self.rescale_with_baseline:
                f1 = (f1 - BASELINE) / (1 - BASELINE)
            return f1 + 1, f1 - 1, f1

    return BERTScorer


class _Comet(_Frozen):
    """The overlap with source or reference; models named kiwi need no reference, old ones shift."""

    def __init__(self, path, calls):
        self.path, self.calls = path, calls

    def requires_references(self):
        return "kiwi" not in self.path

    def prepare_for_inference(self, samples):
        self.calls.append(samples)
        return ({key: [sample[key] for sample in samples] for key in samples[0]},)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        assert isinstance(device, torch.device) and dataloader_idx == 0
        return batch

    def predict_step(self, batch):
        self.check()
        (batch,) = batch
        others = batch.get("ref", batch["src"])
        scores = [1.1 * overlap(*pair) for pair in zip(batch["mt"], others)]
        return {"scores": torch.tensor(scores) - (3 if "old" in self.path else 0)}


class _Tokenizer:
    """One token a text: its number of a less its number of b; a pair adds up."""

    model_max_length = int(1e30)

    def __init__(self, name, calls):
        self.pad_token = None if name == "no-pad" else "[PAD]"
        self.pad_token_id = None if name == "no-pad" else 7
        self.calls = calls

    def __call__(self, *columns, padding, truncation, max_length, return_tensors):
        assert padding and truncation and max_length == 40 and return_tensors == "pt"
        self.calls.append(list(zip(*columns)))
        scores = [sum(t.count("a") - t.count("b") for t in texts) for texts in zip(*columns)]
        return _Encoding(scores=torch.tensor(scores, dtype=torch.float32))


class _Encoding(dict):
    def to(self, device):
        assert isinstance(device, torch.device)
        return self


LABELS = {
    "score": ["LABEL_0"],
    "multi": ["good", "bad"],
    "words": ["True", "false", "0"],
    "numbers": ["1", "2", "3"],
}


class _Classifier(_Frozen):
    """Logits (s, −s, 0, …) of the tokenizer's s."""

    def __init__(self, name):
        labels = LABELS.get(name, ["good", "bad", "odd"])
        self.config = SimpleNamespace(
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            problem_type="multi_label_classification" if name == "multi" else None,
            max_position_embeddings=40,
            pad_token_id=None if name == "multi" else 3,
        )

    def __call__(self, scores):
        self.check()
        columns = [scores, -scores, 0 * scores][: self.config.num_labels]
        return SimpleNamespace(logits=torch.stack(columns, dim=1))


def _classifier(name, output_loading_info):
    assert output_loading_info
    missing = {"classifier.weight", "classifier.bias"} if name == "headless" else set()
    return _Classifier(name), {"missing_keys": missing}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))
