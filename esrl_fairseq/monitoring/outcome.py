"""What a run came to: the validations of the start and of the best, and what to do next."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import asdict, dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Validation rewards of a run; belongs to the checkpoint.

    Attributes:
        start: of the start model; None where that was not validated.
        best: the highest after the start; None before the first validation.
        best_update: the update after which it was.
        last, last_update: the latest one.
        due: whether a validation failed or was left, and is to be made up for.
        due_best: whether that one may give the best checkpoint.
        run: name of the run in its record, see :mod:`~esrl_fairseq.monitoring.record`.
    """

    start: float | None = None
    best: float | None = None
    best_update: int = 0
    last: float | None = None
    last_update: int = 0
    due: bool = False
    due_best: bool = True
    run: str = ""

    def add(self, reward: float, update: int) -> None:
        """A validation after ``update`` updates, 0 being the start."""
        self.due, self.due_best = False, True
        if update == 0:
            self.start = reward
            return
        self.last, self.last_update = reward, update
        if self.best is None or reward > self.best:
            self.best, self.best_update = reward, update

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        vars(self).update({name: state[name] for name in asdict(self) if name in state})

    def sentence(self, folder: str, by_reward: bool, saved: bool) -> str:
        """What the run came to.

        Args:
            folder: ``--save-dir``.
            by_reward: whether checkpoint_best.pt is chosen by the reward.
            saved: whether there are checkpoints at all.
        """
        if self.best is None:
            return "validation reward: not measured after the start"
        path = os.path.join(folder, "checkpoint_best.pt")
        if self.start is None:
            told = f"validation reward: best {self.best:.4f} at update {self.best_update}"
        else:
            told = (
                f"validation reward: start {self.start:.4f} → best {self.best:.4f} at update "
                f"{self.best_update}"
            )
        if self.last_update != self.best_update:
            told += f", last {self.last:.4f} at update {self.last_update}"
        if self.start is not None and self.best <= self.start:
            told += "; no validation was better than the start"
        if not saved:
            return f"{told}; nothing was saved (--no-save)"
        if by_reward:
            return f"{told}; {path}"
        return f"{told}; {path} was chosen by another metric than the reward"


def next_command(cfg: Any, post_process: str, language_model: bool) -> str:
    """The command that translates the test set with the best checkpoint.

    Args:
        cfg: the whole configuration of the run.
        post_process: ``--reward-post-process``.
        language_model: whether the model continues prompts.
    """
    words = ["fairseq-generate", cfg.task.data, "--user-dir", cfg.common.user_dir or "esrl_fairseq"]
    words += ["--path", os.path.join(cfg.checkpoint.save_dir, "checkpoint_best.pt")]
    if language_model:
        words += ["--task", "esrl_language_modeling", "--gen-subset", cfg.dataset.valid_subset]
        words += ["--add-bos-token"] if getattr(cfg.task, "add_bos_token", False) else []
        prompt = getattr(cfg.task, "prompt_tokens", None)
        words += [] if prompt is None else ["--prompt-tokens", str(prompt)]
    words += ["--beam", "5", "--required-batch-size-multiple", "1"]
    model = getattr(cfg.model, "hf_model", None)
    if model:
        words += ["--bpe", "hf_tokenizer", "--hf-tokenizer", model]
    elif post_process != "none":
        words += ["--post-process", post_process]
    return shlex.join(words)
