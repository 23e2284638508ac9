"""Which checkpoint a run starts from, as fairseq chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq.dataclass.configs import CheckpointConfig

from esrl_fairseq.checkpoints.reading import own_last

RESUMED, STARTED, NONE = "resumed", "started", "none"


@dataclass
class Start:
    """Where a run's parameters come from.

    Attributes:
        path: of the checkpoint; empty where there is none, and the model begins at random (or, of
            Hugging Face, pre-trained).
        option: the option that names it; empty for a run's own last checkpoint.
        kind: RESUMED: the run goes on from its own last checkpoint; STARTED: from a model that the
            user names; NONE.
    """

    path: str
    option: str
    kind: str


def find_start(cfg: Any, suffix: str = "") -> Start:
    """The start of a run with fairseq's checkpoint options.

    Args:
        cfg: ``cfg.checkpoint``.
        suffix: of this rank's checkpoint files.

    Raises:
        EsrlError: the run's last checkpoint is damaged, and so are all others.
    """
    own = cfg.restore_file == CheckpointConfig.restore_file
    if not own:
        path = cfg.restore_file.replace(".pt", f"{suffix}.pt")
        return Start(path, "--restore-file", STARTED)
    last = own_last(cfg.save_dir, suffix)
    if last:
        return Start(last, "", RESUMED)
    if getattr(cfg, "continue_once", None) is not None:
        return Start(cfg.continue_once, "--continue-once", STARTED)
    if cfg.finetune_from_model is not None:
        return Start(cfg.finetune_from_model, "--finetune-from-model", STARTED)
    return Start("", "", NONE)
