"""The soak refuses what it is there to find."""

import numpy as np
import pytest
from soak import Soak, Use


def soaked(
    folder, memory=0.0, files=0.0, threads=0.0, seconds=0.0, disk=0.0, kinds=False, record=600
):
    """2,000 updates, whose uses grow by so much in each."""
    soak = Soak([None], folder)
    noise = np.random.default_rng(1)
    for update in range(1, 2001, 10):
        soak.uses[0].append(
            Use(
                update,
                300 + memory * update + noise.normal(0, 1),
                int(20 + files * update),
                int(3 + threads * update),
                0,
                0.04 * update + seconds * update**2,
            )
        )
        found = {"checkpoint_last.pt": 1000 + int(disk * update)}
        found["training_record.jsonl"] = 20_000 + record * update
        if kinds and update > 1500:
            found[f"store.{update}.tmp"] = 10
        soak.disk.append((update, found))
    return soak


def test_a_run_that_stays_as_it_is(tmp_path):
    soaked(tmp_path).check()
    assert "2" in next(soaked(tmp_path).figures())


@pytest.mark.parametrize(
    "growth",
    [dict(memory=0.01), dict(files=0.01), dict(threads=0.01), dict(seconds=5e-5), dict(disk=1),
     dict(kinds=True), dict(record=2000)],
)  # fmt: skip
def test_a_run_that_grows(growth, tmp_path):
    with pytest.raises(AssertionError):
        soaked(tmp_path, **growth).check()
