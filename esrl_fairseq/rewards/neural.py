"""What rewards by a pre-trained model of another library have in common."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.hub import hub_or_cache
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.ngrams import Floats, RowReferences

NO_LIMIT = 10**9
"""Tokenizers that know no maximum length say a number far above this one."""
DEFAULT_LIMIT = 512


class NeuralReward(Reward):
    """A model's judgement of hypotheses, beside the source or a reference.

    The model is loaded when the reward is made, onto a device of its own. It judges without
    gradients and in its own precision, whatever training's is, and belongs neither to the trained
    model nor to checkpoints. An empty hypothesis is not shown to it and gets the smallest value; of
    several references the best one counts. The order and the number of texts in a batch change
    values by rounding errors alone (but see `BertScoreReward`).

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, …; by default a GPU if torch finds one.
        batch_size: texts that go through the model together.

    Raises:
        EsrlError: an option is wrong, a library is missing, or the model cannot be loaded.
    """

    range = (0.0, 1.0)
    in_workers = False
    example = ""
    """A model that the reward can be made with, for messages."""

    def __init__(self, device: str | None, batch_size: int) -> None:
        self.check_count("batch_size", batch_size)
        self.batch_size = batch_size
        self.device = self._usable(device)

    @abc.abstractmethod
    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """Score triples, none of whose hypotheses is empty.

        Args:
            sources: [triples] texts.
            hypotheses: [triples] texts.
            references: [triples] texts, or None if `needs_references` is False.

        Returns:
            float64 [triples] within `range`.
        """

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows] within `range`; see `Reward.score`."""
        values = np.full(len(hypotheses), self.range[0])
        rows = [row for row, text in enumerate(hypotheses) if text.strip()]
        if not rows:
            return values
        texts = [hypotheses[row] for row in rows]
        inputs = [row_input[row] for row in rows]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if not self.needs_references:
                values[rows] = self.judge([sources[i] for i in inputs], texts, None)
                return values
            pairs = RowReferences(references, inputs)
            found = self.judge(
                [sources[inputs[row]] for row in pairs.row],
                [texts[row] for row in pairs.row],
                [pairs.texts[reference] for reference in pairs.reference],
            )
        values[rows] = pairs.best(found)
        return values

    def batches(self, *columns: Sequence[str]) -> Iterator[list[int]]:
        """Indices of texts in batches of similar length, so that little is padded.

        Args:
            columns: each [texts]; what the model reads together.
        """
        lengths = [sum(map(len, texts)) for texts in zip(*columns)]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    @contextlib.contextmanager
    def loading(self, model: str | None) -> Iterator[None]:
        """Around the code that loads `model`; draws no random numbers.

        Raises:
            EsrlError: there is no model, or loading it raised.
        """
        if not model:
            raise EsrlError(
                f"reward {self.name!r} needs a model: give --reward-model a folder or a name on "
                f"the Hugging Face hub, such as {self.example} (in a program, model=…)"
            )
        try:
            with torch.random.fork_rng(devices=[]), hub_or_cache(model):
                yield
        except EsrlError:
            raise
        except Exception as error:  # whatever libraries and files lead to
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise EsrlError(
                f"reward {self.name!r} cannot load the model {model!r} "
                f"({type(error).__name__}: {why}): give --reward-model a folder or a name on the "
                f"Hugging Face hub, such as {self.example}; without network, download it before"
            ) from error

    def check_count(self, option: str, value: Any) -> None:
        """Refuse what is no whole number above 0."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EsrlError(
                f"reward {self.name!r}: {option} must be a whole number >= 1, not {value!r}"
            )

    def check_choice(self, option: str, value: Any, choices: Sequence[Any]) -> None:
        """Refuse what is not among `choices`."""
        if value not in choices:
            known = list(map(str, choices))
            raise EsrlError(
                f"reward {self.name!r}: {option} must be one of {', '.join(known)}, not {value!r}"
                f"{did_you_mean(str(value), known)}"
            )

    def _usable(self, device: str | None) -> torch.device:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except Exception as error:  # torch raises four kinds
            why = str(error).splitlines()[0]
            raise EsrlError(
                f"reward {self.name!r}: --reward-device {device!r} cannot be used ({why}): "
                "give it cpu, cuda or cuda:0"
            ) from error
        return chosen


def longest_text(tokenizer: Any, model: Any) -> int:
    """Tokens that a transformers model reads at most, special ones included; texts are cut there.

    Where the tokenizer knows no limit, the model's positions are one, and 512 where there are none.
    RoBERTa and its relatives count positions from the padding's id on, and have so many fewer.
    """
    limit = int(tokenizer.model_max_length)
    if limit < NO_LIMIT:
        return limit
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return DEFAULT_LIMIT
    padding = [
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return positions - (padding[0] + 1 if padding else 0)
