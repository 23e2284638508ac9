"""The file of a model card, beside the checkpoint that it is about."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NAME = "MODEL_CARD.md"
BEST = "checkpoint_best.pt"
"""The checkpoint that it is about."""
OURS = "<!-- Written by esrl_fairseq while it trains. Without this line it is left as it is. -->"


def write(folder: str, text: str) -> bool:
    """Write the card, whole or not at all, but not over one that somebody else wrote.

    Args:
        text: has the line :data:`OURS`.

    Returns:
        Whether it is written.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(folder, NAME)
    if path.exists() and OURS not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    os.replace(partial, path)
    return True


def copy_to(checkpoint: str, out: Path) -> None:
    """Give a folder that a checkpoint was exported to its card, as the page that the Hugging Face
    hub shows."""
    card = Path(checkpoint).with_name(NAME)
    if Path(checkpoint).name == BEST and card.is_file():
        shutil.copyfile(card, out / "README.md")
