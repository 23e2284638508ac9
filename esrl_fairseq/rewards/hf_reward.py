"""A classifier or reward model of transformers as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.extras import require
from esrl_fairseq.rewards.neural import NeuralReward, longest_text
from esrl_fairseq.rewards.ngrams import Floats

INSTALL = ("transformers", "hf")
INPUTS = ("pair", "hypothesis")


@register_reward("hf-reward")
class HfReward(NeuralReward):
    """What an ``AutoModelForSequenceClassification`` says of a hypothesis, in [0, 1].

    σ(logit) of a model with one output (a reward model, whose logit has no bounds); otherwise the
    probability of one label, by softmax, or by σ where the model's labels exclude nothing
    (``problem_type: multi_label_classification``). References are not looked at. Texts that are
    too long are cut at the model's limit, of a pair the longer one first.

    Args:
        model: a model's name or folder; its classification head has to be trained.
        label: name of the label whose probability is the reward, for models of several, or its
            index where no label has that name.
        inputs: ``pair`` (source and hypothesis) or ``hypothesis`` alone.
        batch_size, device: see `NeuralReward`.

    Raises:
        EsrlError: see `NeuralReward`.
    """

    example = "OpenAssistant/reward-model-deberta-v3-base"
    needs_references = False

    def __init__(
        self,
        model: str | None = None,
        label: str | int | None = None,
        inputs: str = "pair",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        super().__init__(device, batch_size)
        self.check_choice("inputs", inputs, INPUTS)
        self.model = model
        self.inputs = inputs
        self.needs_sources = inputs == "pair"
        library = require(self.name, "transformers", *INSTALL)
        with self.loading(model):
            self._tokenizer = library.AutoTokenizer.from_pretrained(model)
            loaded, about = library.AutoModelForSequenceClassification.from_pretrained(
                model, output_loading_info=True
            )
            self._check_weights(about["missing_keys"])
            self._model = loaded.eval().to(self.device)
        if self._model.config.pad_token_id is None:  # decoder-only models find a text's end by it
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._index = self._find(label)
        self._limit = longest_text(self._tokenizer, self._model)

    def signature(self) -> str:
        """Model, label, what it reads, and the library's version."""
        config = self._model.config
        label = "score" if config.num_labels == 1 else config.id2label[self._index]
        return (
            f"{self.name}|{self._squash}|model:{self.model}|label:{label}|inputs:{self.inputs}|"
            f"transformers:{version('transformers')}"
        )

    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """float64 [triples]; see `NeuralReward.judge`."""
        columns = [sources, hypotheses] if self.inputs == "pair" else [hypotheses]
        values = np.zeros(len(hypotheses))
        for batch in self.batches(*columns):
            tokens = self._tokenizer(
                *([column[i] for i in batch] for column in columns),
                padding=True,
                truncation=True,
                max_length=self._limit,
                return_tensors="pt",
            )
            logits = self._model(**tokens.to(self.device)).logits.double()
            squashed = logits.softmax(-1) if self._squash == "softmax" else logits.sigmoid()
            values[batch] = squashed[:, self._index].cpu().numpy()
        return values

    @property
    def _squash(self) -> str:
        config = self._model.config
        several = config.num_labels > 1 and config.problem_type != "multi_label_classification"
        return "softmax" if several else "sigmoid"

    def _check_weights(self, missing: Any) -> None:
        if missing:
            raise EsrlError(
                f"reward {self.name!r}: the model {self.model!r} has no trained "
                f"{', '.join(sorted(missing))}: choose one that was trained to classify or to score"
            )
        if self._tokenizer.pad_token is None:
            raise EsrlError(
                f"reward {self.name!r}: the tokenizer of {self.model!r} has no padding token, so "
                "that texts cannot be scored together: add pad_token to its tokenizer_config.json"
            )

    def _find(self, label: str | int | None) -> int:
        names: dict[int, str] = self._model.config.id2label
        if len(names) == 1 and label is None:
            return 0
        # The command line has read true and 1 as what they look like; a label may be called so.
        read = isinstance(label, (bool, int, float))
        for index, name in names.items():
            if name == label or (read and name.lower() == str(label).lower()):
                return index
        if type(label) is int and label in names:
            return label
        known = ", ".join(f"{index} ({name})" for index, name in names.items())
        meant = did_you_mean(str(label), names.values())
        wanted = "which label's probability?" if label is None else f"no label {label!r}{meant}:"
        raise EsrlError(
            f"reward {self.name!r}: {wanted} The model {self.model!r} has {known}; give one by "
            "--reward-options hf-reward.label=…"
        )
