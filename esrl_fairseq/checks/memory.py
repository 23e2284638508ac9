"""Running out of memory in training."""

from __future__ import annotations

import gc

import torch

from esrl_fairseq.errors import EsrlError

MEMORY_ADVICE = (
    "out of memory: lower --max-sampled-tokens (less is kept for the backward pass, which takes "
    "longer; the result stays the same; --sampling standard keeps all), or --batch-size or "
    "--max-tokens with a higher --update-freq, or --num-samples"
)
VALIDATION_MEMORY_ADVICE = (
    "out of memory in validation: lower --batch-size-valid, --max-tokens-valid, --valid-beam or, "
    "if one input is too long, --sample-max-len-a"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device, for training (a reward's is the reward's)."""
    if isinstance(error, EsrlError):
        return False
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def skipped_by_fairseq(error: BaseException) -> bool:
    """Whether fairseq leaves out a batch, and its update, for this error: a GPU's."""
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def free_memory() -> None:
    """Give back what nothing needs any more, cycles and torch's own cache included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
