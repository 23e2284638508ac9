"""What tells one model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of a model's parameters and buffers, on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
