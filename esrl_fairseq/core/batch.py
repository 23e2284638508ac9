"""What of a batch is asked for again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HOST_IDS = "host_ids"


def host_ids(batch: dict[str, Any]) -> NDArray[np.int64]:
    """``batch["id"]`` [inputs] in the host's memory: a GPU is asked for it once a batch."""
    ids = batch.get(HOST_IDS)
    if not isinstance(ids, np.ndarray):  # kept batches come back as tensors
        ids = batch[HOST_IDS] = batch["id"].cpu().numpy()
    return ids
