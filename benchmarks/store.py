"""The capability store of a large data set: time of each access, bytes a sample, checkpoints.

Samples are made up; nothing is trained. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset

from esrl_fairseq.data.fingerprint import data_fingerprint
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.rl_state import RLState, Visit

COLUMNS = ("what", "seconds", "computing", "spread", "bytes", "note")
CHUNK = 1 << 20
WORDS = 32_000


def main() -> None:
    """One row for each thing that is measured."""
    parser = common.bare_parser(__doc__)
    add = parser.add_argument
    add("--samples", type=float, default=5e7, help="of the data set")
    add("--inputs", type=int, default=4096, help="of an update")
    add("--between", type=int, default=250, help="updates from checkpoint to checkpoint")
    add("--tokens", type=int, default=20, help="of a line, for the fingerprint; 0 leaves it out")
    add("--rounds", type=int, default=5, help="repeats of what can be repeated")
    add("--folder", default=None, help="where a temporary folder is made (some GB)")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--json", metavar="FILE", help="write the rows here, as one JSON list")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.device, options.dtype, options.checkpoint = "cpu", "fp32", None
    head = common.header(options)
    del head["lengths"]
    common.print_header(head)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rows = measure_store(folder, int(options.samples), options)
        if options.tokens:
            rows.append(measure_fingerprint(folder, int(options.samples), options))
    finally:
        shutil.rmtree(folder)
    common.finish(rows, head, COLUMNS, options.json)


def timed(call: Callable[[], Any], rounds: int = 1) -> common.Row:
    """Median seconds of a call, those of the processor alone too, and how far they are apart."""
    found = []
    for _ in range(rounds):
        begin, computed = time.perf_counter(), time.process_time()
        call()
        row = {"seconds": time.perf_counter() - begin, "computing": time.process_time() - computed}
        found.append(row)
    return {**common.medians(found), "spread": common.spread(found, "seconds")}


def measure_store(folder: Path, samples: int, options: argparse.Namespace) -> list[common.Row]:
    """From an empty store to checkpoints in the second epoch."""
    draw, state = np.random.default_rng(1), RLState(str(folder))
    row = timed(lambda: state.open_store(0, samples, "0" * 128))
    rows = [{"what": "empty store", **row}]
    for start in range(0, samples, CHUNK):
        ids = np.arange(start, min(start + CHUNK, samples))
        state.store.write(ids, made_up(draw, len(ids)))
    memory = state.store.records.nbytes + state.store.changed.nbytes
    rows.append({"what": "memory a sample", "bytes": memory / samples})

    def refresh() -> None:
        state.begin_epoch(state.epoch + 1)

    rows.append({"what": "refresh of an epoch", **timed(refresh, options.rounds)})

    def look_up() -> None:
        ids = torch.from_numpy(draw.integers(0, samples, options.inputs))
        state.store.capability(ids.numpy())
        state.quantiles(ids), state.variances(ids), state.offsets(ids)

    def update() -> None:
        ids = np.unique(draw.integers(0, samples, options.inputs))
        state.add(Visit(ids, made_up(draw, len(ids)), np.ones(8, np.float32)))
        state.commit()

    for what, call in (("look-up", look_up), ("update", update)):
        row = timed(call, 20 * options.rounds)
        note = f"{row['seconds']:.2%} of an update of 1 s with {options.inputs} inputs"
        rows.append({"what": what, **row, "note": note})

    def save(name: str) -> common.Row:
        row = timed(lambda: torch.save({"rl": state.state_dict()}, folder / f"{name}.pt"))
        (file,) = state.store.files[-1:]
        size = (folder / f"{name}.pt").stat().st_size
        note = f"and {size:,} in the checkpoint itself"
        return {"what": f"checkpoint, {name}", **row, "bytes": file.bytes, "note": note}

    rows.append(save("all samples changed"))
    rows[-1]["note"] += f"; {state.store.files[0].bytes / samples:.2f} bytes a sample"
    for _ in range(options.between):
        update()
    rows.append(save(f"{options.between} updates later"))
    saved = torch.load(folder / f"{options.between} updates later.pt", weights_only=True)["rl"]
    content = state.store.records.tobytes() if samples < 10 * CHUNK else b""
    state.stores.clear()
    resumed = RLState(str(folder))
    rows.append({"what": "resume", **timed(lambda: resumed.load_state_dict(saved))})
    assert not content or resumed.stores[0].records.tobytes() == content
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows.append({"what": "peak memory, with torch", "bytes": peak})
    return rows


def made_up(draw: np.random.Generator, number: int) -> np.ndarray:
    """Records of visited inputs."""
    records = np.zeros(number, RECORD)
    records["capability"] = records["reward_mean"] = draw.random(number, dtype=np.float32)
    records["reward_std"] = draw.random(number, dtype=np.float32)
    records["samples"], records["epoch"] = 8, 1
    return records


def measure_fingerprint(folder: Path, samples: int, options: argparse.Namespace) -> common.Row:
    """Of pairs of lines that lie on the disk as fairseq-preprocess writes them."""
    words = Dictionary()
    for number in range(WORDS):
        words.add_symbol(f"w{number}")
    sides = []
    for language in ("de", "en"):
        prefix = str(folder / f"train.de-en.{language}")
        write_lines(prefix, samples, options.tokens)
        sides.append(MMapIndexedDataset(prefix))
    size = sum(os.path.getsize(path) for path in folder.glob("train*"))
    data = LanguagePairDataset(sides[0], sides[0].sizes, words, sides[1], sides[1].sizes, words)
    row = timed(lambda: data_fingerprint(data))
    speed = size / row["seconds"] / 1e9
    note = f"{speed:.1f} GB/s; {options.tokens} tokens a line"
    return {"what": "fingerprint", **row, "bytes": size, "note": note}


def write_lines(prefix: str, samples: int, tokens: int) -> None:
    """Random lines of equal length, and their index."""
    draw = np.random.default_rng(2)
    with open(f"{prefix}.bin", "wb") as file:
        for start in range(0, samples, CHUNK):
            number = min(CHUNK, samples - start)
            draw.integers(4, WORDS, (number, tokens), np.uint16).tofile(file)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(MMapIndexedDataset.Index._HDR_MAGIC + struct.pack("<QBQ", 1, 8, samples))
        np.full(samples, tokens, np.int32).tofile(file)
        (np.arange(samples, dtype=np.int64) * tokens * 2).tofile(file)


if __name__ == "__main__":
    main()
