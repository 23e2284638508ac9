"""The frozen model that the KL penalty is measured from (docs/method.md 5)."""

from __future__ import annotations

import copy
import logging
import textwrap
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from fairseq import checkpoint_utils

from esrl_fairseq.checks.numbers import refuse_bad_parameters
from esrl_fairseq.core.fingerprint import fingerprint
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.reading import read_checkpoint

logger = logging.getLogger(__name__)


class FrozenModel:
    """The model of a checkpoint, or the one that the run's model was before any training, in eval
    mode; loaded when it is first asked for, used without gradients.

    It is neither a module nor a part of one: fairseq gives it neither to the optimizer nor to
    distributed wrappers nor to checkpoints. A resumed run reads the file again; the fingerprint
    tells whether it is the same model.

    Its parameters require a gradient where the run's do: without that, torch takes other kernels,
    whose rounding would be a KL above 0 between equal models.

    Of a run that trains adapters it is the run's model, with these off.

    Args:
        path: of a fairseq checkpoint whose model has the dictionaries of ``task``; empty for what
            the run's model was before any training, which that has to know (``as_pretrained``).
        task: builds the model.
    """

    def __init__(self, path: str, task: Any):
        self.path = path
        self.task = task
        self.model: Any = None
        self.fingerprint = ""

    def beside(self, model: Any) -> Any:
        """The frozen model, on the device and in the precision of ``model``.

        Raises:
            EsrlError: the file cannot be loaded, or does not fit the data.
        """
        adapted = getattr(model, "adapted", None)
        if self.model is None and not self.path and adapted is not None:
            self.model, self.fingerprint = model, bytes(adapted.tolist()).hex()
            logger.info(
                "the KL penalty is measured from the model in %s: this one with its adapters off",
                model.pretrained,
            )
        if self.model is None:
            frozen = load_model(self.path, self.task) if self.path else model.as_pretrained()
            refuse_bad_parameters(frozen, f"the frozen model ({self.path or model.pretrained})")
            self.fingerprint = fingerprint(frozen.state_dict())
            parameter = next(model.parameters())
            frozen.to(device=parameter.device, dtype=parameter.dtype)
            trained = {name: x.requires_grad for name, x in model.named_parameters()}
            for name, own in frozen.named_parameters():
                own.requires_grad_(trained.get(name, True))
            self.model = frozen.eval()
            where = self.path or model.pretrained
            logger.info("the KL penalty is measured from the model in %s", where)
        return self.model

    def turn(self, model: Any) -> AbstractContextManager[None]:
        """Around the scoring by what :meth:`beside` gave for ``model``: where that is the same, its
        adapters are off meanwhile."""
        own = self.model is model
        found: AbstractContextManager[None] = model.without_adapters() if own else nullcontext()
        return found


def load_model(path: str, task: Any) -> Any:
    """The model in the checkpoint ``path``, on the CPU; draws no random numbers.

    Raises:
        EsrlError: there is no such file, it is no checkpoint, or its model does not fit the data.
    """
    mend = "give --kl-reference the checkpoint of a fairseq model with the data's dictionaries"
    read_checkpoint(path, "the frozen model of --kl-weight,", mend)
    # A copy, because with --eval-bleu the translation task validates the model that it built last.
    builder = copy.copy(task)
    try:
        with torch.random.fork_rng(devices=[]):
            (model,), _ = checkpoint_utils.load_model_ensemble([path], task=builder)
    except (Exception, SystemExit) as error:  # whatever a model of other data or code leads to
        # torch lists missing parameters one a line.
        why = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        raise EsrlError(
            f"the frozen model of --kl-weight cannot be loaded from {path} ({why}): {mend}"
        ) from error
    return model
