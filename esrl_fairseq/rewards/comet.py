"""COMET (Rei et al., EMNLP 2020 and WMT 2022) by the library unbabel-comet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.extras import require
from esrl_fairseq.rewards.neural import NeuralReward
from esrl_fairseq.rewards.ngrams import Floats

INSTALL = ("unbabel-comet", "comet")
TOLERANCE = 0.5


@register_reward("comet")
class CometReward(NeuralReward):
    """A COMET model's score, in [0, 1], the best one over the references.

    For models whose scores lie in [0, 1], as those of 2022 and later do; they regress on human
    scores and may miss the ends a little, so that values are clipped. Scores far outside stop
    training: those of 2020 and 2021 are standardised. Texts that are too long are cut by COMET.

    Args:
        model: a name on the hub, or a folder with ``hparams.yaml`` and ``checkpoints/model.ckpt``
            as COMET stores it, or the path of that ``model.ckpt``.
        references: whether the model gets references. By default it does if it cannot do without;
            models that can (XCOMET, say) then judge without.
        batch_size, device: see `NeuralReward`.

    Raises:
        EsrlError: see `NeuralReward`.
    """

    example = "Unbabel/wmt22-comet-da"
    needs_sources = True

    def __init__(
        self,
        model: str | None = None,
        references: bool | None = None,
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        super().__init__(device, batch_size)
        self.model = model
        library = require(self.name, "comet", *INSTALL)
        with self.loading(model):
            path = checkpoint_file(str(model)) or library.download_model(model)
            self._model = library.load_from_checkpoint(path).eval().to(self.device)
        required = self._model.requires_references()
        if required and references is False:
            raise EsrlError(
                f"reward {self.name!r}: the model {model!r} cannot do without references: leave "
                "out references=false, or choose a model such as Unbabel/wmt22-cometkiwi-da"
            )
        self.needs_references = required if references is None else references

    def signature(self) -> str:
        """Model, whether it sees references, and the library's version."""
        references = "best" if self.needs_references else "none"
        return (
            f"{self.name}|model:{self.model}|nrefs:{references}|"
            f"unbabel-comet:{version('unbabel-comet')}"
        )

    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """float64 [triples]; see `NeuralReward.judge`."""
        columns = {"src": sources, "mt": hypotheses}
        if references is not None:
            columns["ref"] = references
        values = np.zeros(len(hypotheses))
        # The steps of the model's own predict(), which makes a Lightning trainer for each call and
        # takes the weights off the GPU when it is done.
        for batch in self.batches(*columns.values()):
            samples = [{key: texts[i] for key, texts in columns.items()} for i in batch]
            prepared = self._model.prepare_for_inference(samples)
            prepared = self._model.transfer_batch_to_device(prepared, self.device, 0)
            values[batch] = self._model.predict_step(prepared)["scores"].double().cpu().numpy()
        low, high = self.range
        worst = values[np.abs(values - 0.5).argmax()]
        if not low - TOLERANCE <= worst <= high + TOLERANCE:
            raise EsrlError(
                f"the model {self.model!r} gave a score of {worst:.3g}, but is taken to give "
                "scores in [0, 1]: choose one of 2022 or later, such as Unbabel/wmt22-comet-da"
            )
        return np.clip(values, low, high)


def checkpoint_file(model: str) -> str | None:
    """Where a model on this machine has its weights; None if it is not on this machine.

    Raises:
        OSError: it is a folder without weights.
    """
    if not os.path.isdir(model):
        return model if os.path.exists(model) else None
    path = os.path.join(model, "checkpoints", "model.ckpt")
    if not os.path.exists(path):
        raise FileNotFoundError(f"the folder has no {os.path.join('checkpoints', 'model.ckpt')}")
    return path
