"""The estimate of a run's memory against what is measured on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from esrl_fairseq.monitoring.memory import Batch, Shape, shape_of, stage_one, training_state

MEASURE = """
import argparse, json, os, sys
sys.path.insert(0, {benchmarks!r})
import common, torch
from methods import make_bench, run_update
from workload import random
from esrl_fairseq.monitoring import memory
from esrl_fairseq.sampling.branching import SCORED_AT_ONCE, rows_at_once
from esrl_fairseq.rescoring.row_scorer import LEARNED_TOKENS

torch.set_num_threads(1)
INPUTS, LENGTH, K = 48, 50, 16
given = dict(dtype="fp32", device="cpu", seed=1)

def bench_of(size, inputs, length, k):
    work = random(size, argparse.Namespace(inputs=inputs, length=length, **given))
    return work, make_bench(work, k, "inverse_cdf", 4096)

work, bench = bench_of("tiny", 2, 3, 2)
run_update(bench, "two_stage", work.batches[0], 1)
work, bench = bench_of("3M", INPUTS, LENGTH, K)
batch = work.batches[0]
source = int(batch["net_input"]["src_lengths"].max())
rows = min(INPUTS * K, rows_at_once(work.model.decoder))
sizes = memory.Batch(INPUTS, source, LENGTH + 1, rows, min(rows, SCORED_AT_ONCE), LEARNED_TOKENS)
shape = memory.shape_of(work.model, len(work.task.target_dictionary))

def sample():
    sampler = work.task.build_sampler(work.model)
    sampler.sample(batch, [K] * INPUTS, [1.0] * INPUTS, 1)

def measured(run):
    sys.stdout.flush()
    read, write = os.pipe()
    if not os.fork():
        peak = common.PeakMemory("cpu")
        run()
        os.write(write, str(peak.bytes()).encode())
        os._exit(0)
    os.wait()
    return int(os.read(read, 99))

one, two = memory.stage_one(shape, sizes), memory.stage_two(shape, sizes)
state = memory.training_state(shape.parameters, "adam", "fp32") - 4 * shape.parameters
print(json.dumps({{
    "stage one": [one, measured(sample)],
    # Parameters are there already; what stage one had is free by then.
    "update": [
        max(one, two + state), measured(lambda: run_update(bench, "two_stage", batch, 1))
    ],
}}))
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_estimate_is_right_within_a_factor_of_two():
    """Of stage one alone, and of a whole update with Adam."""
    benchmarks = Path(__file__).resolve().parents[2] / "benchmarks"
    code = MEASURE.format(benchmarks=str(benchmarks))
    # What is freed goes back to the system: the heap's leftovers are no part of the estimate.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for name, (estimate, measured) in json.loads(done.stdout.splitlines()[-1]).items():
        assert measured > 2e7 and measured / 2 < estimate < 2 * measured, (name, done.stdout)


def test_training_state_by_hand():
    assert training_state(10, "adam", "fp32") == 10 * (4 + 4 + 8)
    assert training_state(10, "adam", "half") == 10 * (2 + 2 + 4 + 4 + 8)
    assert training_state(10, "nag", "memory_efficient") == 10 * (2 + 2 + 4)


def test_stage_one_by_hand():
    """Without an encoder there is no cross-attention to keep keys for."""
    batch = Batch(inputs=2, source=3, length=5, rows=7, scored=4, piece=9)
    with_encoder = Shape(1, 6, 6, 8, 8, 16, 100)
    alone = Shape(1, 6, 0, 8, 8, 16, 100)
    assert stage_one(alone, batch) == 6 * 2 * 8 * (7 * 5) * 4 + 4 * 100 * 12
    assert stage_one(with_encoder, batch) - stage_one(alone, batch) == 6 * 2 * 8 * 2 * 3 * 4


def test_shapes():
    """Of Hugging Face, with fewer keys than heads; and of a model that is no Transformer."""
    inner = nn.Linear(2, 3, dtype=torch.bfloat16)
    config = dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=64,
                  intermediate_size=96, num_hidden_layers=5)  # fmt: skip
    model = nn.Module()
    model.decoder = nn.Module()
    model.decoder.model = inner
    inner.config = SimpleNamespace(**config)
    assert shape_of(model, 50) == Shape(9, 5, 0, 64, 32, 96, 50, 2)
    model.decoder.model = None
    model.decoder.lstm = nn.LSTM(2, 2)
    assert shape_of(model, 50) is None
