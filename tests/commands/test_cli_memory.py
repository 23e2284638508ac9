"""A batch that runs out of memory, with one rank and with two, in any part of an update."""

import pytest
import torch
from command_lines import JOINED, MODEL, USER_DIR, esrl_options

FAULTS = """
import os, sys
sys.path.insert(0, {parent!r})
import esrl_fairseq, torch
from esrl_fairseq.core import token_scores
from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.objective import Objective
from esrl_fairseq.sampling_task import SamplingTask

PLACES = dict(pair.split("=") for pair in os.environ["FAULTS"].split())  # batch=place
KIND = {{"gpu": torch.OutOfMemoryError, "cpu": RuntimeError}}[os.environ.get("KIND", "gpu")]
TEXT = {{"gpu": "CUDA out of memory. Tried to allocate", "cpu": "not enough memory: you tried"}}
batches = 0

def fails_in(owner, name, place, late=False):
    stock = getattr(owner, name)
    def method(*given, **more):
        wanted = PLACES.get(str(batches)) == place or PLACES.get("all") == place
        if wanted and os.environ.get("RANK", "0") == os.environ.get("WHO", "0"):
            if late:
                stock(*given, **more)
            PLACES.pop(str(batches), None)
            raise KIND(TEXT[os.environ.get("KIND", "gpu")])
        return stock(*given, **more)
    setattr(owner, name, method)

train_step = SamplingTask.train_step

def count(self, *given, **more):
    global batches
    batches += 1
    return train_step(self, *given, **more)

SamplingTask.train_step = count
fails_in(EsrlCriterion, "sample_rows", "stage_one")
fails_in(Objective, "term", "stage_two", late=True)
fails_in(EsrlCriterion, "result", "end_of_forward", late=True)
fails_in(torch.Tensor, "backward", "backward", late=True)
fails_in(SamplingTask, "best_hypotheses", "validation")
"""
TRAIN = "--num-samples 2 --disable-validation --max-epoch 1 --max-sampled-tokens 64"


@pytest.fixture(scope="module")
def user_dir(tmp_path_factory):
    """Ours, which runs out of memory where ``FAULTS`` says."""
    folder = tmp_path_factory.mktemp("memory") / "memory_faults"
    folder.mkdir()
    (folder / "__init__.py").write_text(FAULTS.format(parent=str(USER_DIR.parent)))
    return folder


@pytest.fixture
def train(corpus, mle, user_dir, tmp_path):
    """Gives the words of a training of 10 batches of 20 inputs."""

    def command(*more):
        return [
            *["fairseq-train", *esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED],
            *["--user-dir", user_dir, "--finetune-from-model", mle, TRAIN, *more],
        ]

    return command


def state(folder):
    """Of the last checkpoint: the task's state, and how many inputs were visited."""
    loaded = torch.load(folder / "run" / "checkpoint_last.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in loaded["model"].values())
    return loaded["extra_state"]["EsrlTranslationTask"], loaded


def test_one_rank(commands, train, tmp_path):
    """fairseq leaves the updates out; nothing is remembered of their batches."""
    faults = "1=stage_one 3=stage_two 5=end_of_forward 7=backward"
    running = commands.start(*train("--objective reinforce"), environment={"FAULTS": faults})
    result = running.wait()
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("attempting to recover from OOM") == 4
    assert result.stdout.count("lower --max-sampled-tokens") == 4
    task, loaded = state(tmp_path)
    assert loaded["optimizer_history"][-1]["num_updates"] == 6
    assert len(task["rl"]["baseline"]["state"]["rewards"]) == 6 * 20 * 2
    assert task["monitor"]["rows"] == 6 * 20 * 2


@pytest.mark.parametrize(
    "backend, faults, inputs",
    [
        ("pytorch_ddp", "1=stage_one 4=stage_two", [20, 20, 40, 20, 40]),
        pytest.param(
            "legacy_ddp",
            "1=stage_two 4=stage_two 5=end_of_forward",
            [20, 20, 40, 20, 20],
            marks=pytest.mark.long,
        ),
    ],
)
def test_two_ranks(backend, faults, inputs, commands, train, tmp_path):
    """The rank has no part in the update, which the other one makes; also in PPO's passes."""
    command = train(f"--ddp-backend {backend} --objective ppo --ppo-passes 2")
    running = commands.ranks(2, *command, environment={"FAULTS": faults, "WHO": "1"})
    results = [rank.wait(60) for rank in running]
    assert all(result.returncode == 0 for result in results), results[1].stderr[-3000:]
    said = results[1].stdout
    assert said.count("its batch is left out, and the others go on") == len(faults.split())
    assert "rank 1 of 2 ran out of memory in update 4:" in said
    logged = results[0].logged("train_inner")
    assert [line["bsz"] for line in logged] == inputs
    rewards = state(tmp_path)[0]["rl"]["baseline"]["state"]["rewards"]
    assert len(rewards) == 2 * sum(inputs[::2])  # of the first passes


@pytest.mark.long
@pytest.mark.parametrize(
    "faults, why",
    [("3=backward", "in the backward pass"), ("all=stage_one", "also for a single sample")],
)
def test_two_ranks_end_in_a_sentence(faults, why, commands, train):
    """Where the other rank may have a part of the gradient, or no batch is small enough."""
    running = commands.ranks(2, *train(), environment={"FAULTS": faults, "WHO": "1"})
    other, own = [rank.wait(60) for rank in running]
    assert own.returncode == other.returncode == 1
    last = own.stderr.strip().splitlines()[-1]
    assert why in last and "lower --max-sampled-tokens" in last
    assert "rank 1 of 2 ran out of memory in update" in other.stderr.strip().splitlines()[-1]
    assert "Traceback" not in own.stderr + other.stderr


@pytest.mark.parametrize("kind, tries", [("gpu", 2), ("cpu", 1)])
def test_a_validation_ends_in_a_sentence(kind, tries, commands, train):
    """Where a batch fails again when fairseq tries it once more."""
    environment = {"FAULTS": "all=validation", "KIND": kind}
    options = [
        str(x).replace("--disable-validation", "--valid-beam 1")
        for x in train("--check-start warn --cpu")
    ]
    result = commands.start(*options, environment=environment).wait()
    assert result.stdout.count("ran out of memory in validation step") == tries - 1
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "out of memory in validation: lower" in result.stderr.strip().splitlines()[-1]


def test_a_cpus_memory_ends_the_run_in_a_sentence(commands, train):
    """fairseq knows a GPU's only."""
    environment = {"FAULTS": "3=stage_two", "KIND": "cpu"}
    result = commands.start(*train(), environment=environment).wait()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "out of memory: lower" in last and "the state after update 2 is in" in last
