"""On a device that is not the CPU: nothing mixes the two, results are the same, and the host is
asked for no more launches and synchronisations than today.

There is no such device: benchmarks/pretended_device.py pretends it. Cases run in a process of their
own, because a process that has met it keeps it.
"""

import sys
import traceback
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from helpers import make_batch, make_language_model, make_model
from test_criterion import Run as TranslationRun
from test_language_models import Run as LanguageRun
from test_language_models import ShareOfA, prompts

from esrl_fairseq.rescoring import frozen
from esrl_fairseq.rescoring.agreement import stage_difference
from esrl_fairseq.rewards import base

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = dict(params=["6x"], inputs=16, length=12, seed=1, lines=0)
"""Of the model and the batch whose counts these are; 8 samples an input."""
STEP = {"equal": (149.1, 1.09), "ragged": (146.3, 1.09)}
"""Most launches and synchronisations of the mean decoding step, by how samples end."""
COMPILED = {"equal": (1.0, 0.1), "ragged": (1.0, 0.1)}
"""The same with --compile-decoding."""
COMPILED_STAGE_ONE = 400
"""Most launches of stage one with it."""
UPDATE = {"equal": (3250, 39), "ragged": (3242, 39)}
"""The same of a whole update, with --optimizer torch_adam."""
RNG = 0
"""Most calls that concern the state of the device's random numbers, in an update."""

OBJECTIVES = {
    "fused": {},
    "mrt": dict(objective="mrt"),
    "rloo": dict(objective="rloo"),
    "reinforce": dict(objective="reinforce"),
    "ppo by token": dict(objective="ppo", ppo_level="token"),
    "ppo by sequence": dict(objective="ppo", ppo_level="sequence"),
}
OPTIONS = {
    "kl": dict(kl_weight=0.3, kl_reference="other.pt"),
    "mle": dict(mle_weight=0.3),
    "tempered": dict(temperature_correction="tempered"),
    "importance": dict(temperature_correction="importance"),
    "a share, unbiased": dict(rescored_share=0.5, selection="unbiased"),
    "a share, ppo, mle": dict(rescored_share=0.5, objective="ppo", mle_weight=0.3),
    "dropout": dict(rescoring_dropout=True),
    "no length normalisation": dict(length_normalization=False),
    "group": dict(reward_baseline="group", reward_scaling="batch", input_baseline=True),
    "standard": dict(sampling_mode="standard", mle_weight=0.3),
    "standard, kl, tempered, dropout": dict(
        sampling_mode="standard-nocache",
        temperature_correction="tempered",
        rescoring_dropout=True,
        kl_weight=0.3,
        kl_reference="other.pt",
    ),
    "pieces": dict(max_sampled_tokens=8),
}
CASES = {**OBJECTIVES, **OPTIONS}


@pytest.fixture(scope="module")
def child():
    """Runs functions of this file where the device is."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        reason = pool.submit(begin).result(timeout=300)
        if reason:
            pytest.skip(reason)

        def run(call, *given):
            result, error = pool.submit(attempt, call, *given).result(timeout=300)
            assert not error, error
            return result

        yield run


def attempt(call, *given):
    """What it gives, and how it failed: this process does not know the device's exceptions."""
    try:
        return call(*given), ""
    except Exception:
        return None, traceback.format_exc()


def begin():
    """Make the device known, before any backward pass; returns why that is not possible."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(BENCHMARKS))
    base._REWARDS[ShareOfA.name] = ShareOfA
    try:
        import pretended_device  # noqa: F401
    except ImportError as error:
        return str(error)


TASKS = {
    "translation": (TranslationRun, make_model, make_batch),
    "language_modeling": (LanguageRun, make_language_model, prompts),
}


def two_updates(kind, options, arch=None, half=False, on_device=False):
    """Of the trainer, with equal parameters: losses, logs and the sum of both gradients."""
    import pretended_device as device

    make, make_kind, batch = TASKS[kind]
    frozen.load_model = lambda path, task: make_kind(seed=5)
    run, batch = make(**options), batch()
    if arch:
        run.model = make_kind(arch).train()
    if half:
        run.model.half()
    if on_device:
        device.move_module(run.model)
        batch = device.move(batch)
    losses, logs = [], []
    for seed in (3, 4):
        run.criterion.train()
        loss, _, log = run.loss(batch, seed)
        loss.backward()
        run.task.rl.commit()
        run.task.rl.replay.update += 1
        losses.append(float(loss.detach()))
        logs.append({key: float(value) for key, value in log.items() if "seconds" not in key})
    gradient = [p.grad.cpu().flatten() for p in run.model.parameters() if p.grad is not None]
    return losses, logs, torch.cat(gradient)


def both(*case):
    """On the CPU and on the device; what they give as plain numbers."""
    from pretended_device import PretendedDevice

    expected = two_updates(*case)
    with PretendedDevice() as device, device.paused():
        found = two_updates(*case, on_device=True)
    return [(losses, logs, gradient.numpy()) for losses, logs, gradient in (expected, found)]


def check(child, *case, rel=1e-3, abs=1e-5):
    (losses, logs, gradient), found = child(both, *case)
    assert found[0] == pytest.approx(losses, rel=rel, abs=abs) and any(losses)
    for one, other in zip(found[1], logs):
        one.pop("peak_gb"), other.pop("peak_gb")
        assert one == pytest.approx(other, rel=rel, abs=abs)
    assert gradient.std() > 1e-3
    assert found[2] == pytest.approx(gradient, rel=rel, abs=abs)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", TASKS)
def test_update_is_that_of_the_cpu(child, kind, options):
    check(child, kind, options)


@pytest.mark.parametrize(
    ("kind", "arch"),
    [("translation", "lstm"), ("translation", "lightconv"), ("language_modeling", "lstm_lm")],
)
def test_other_architectures(child, kind, arch):
    check(child, kind, {}, arch)


@pytest.mark.parametrize("kind", TASKS)
def test_pieces_that_backward_computes_again(child, kind):
    """In half precision, whose gradients bring a loss scale. Without dropout, since pieces may
    differ by device."""
    check(child, kind, dict(max_sampled_tokens=8), None, True, rel=0.05, abs=0.01)


@torch.no_grad()
def other_work(kind):
    """Validation, and what a run checks before its first update."""
    from pretended_device import PretendedDevice, move, move_module

    make, _, batch = TASKS[kind]
    run, batch = make(), move(batch())
    run.criterion.eval()
    move_module(run.model).eval()
    with PretendedDevice():
        for run.criterion.cfg.valid_beam in (0, 2):
            run.criterion(run.model, batch)
        return stage_difference(run.model, batch, run.task.build_sampler(run.model))


@pytest.mark.parametrize("kind", TASKS)
def test_validation_and_the_check_of_the_stages(child, kind):
    assert 0 < child(other_work, kind) < 1e-4


def refusals():
    """Names of what the device takes and should not, and of what it should take and does not."""
    from pretended_device import PretendedDevice, move
    from pretended_rules import Mixed

    host = torch.arange(4.0)
    there, place = move(host), torch.tensor([1])
    refused = {
        "add": lambda: there + host,
        "matrix": lambda: torch.outer(host, there),
        "cat": lambda: torch.cat([there, host]),
        "where": lambda: torch.where(there > 1, host, there),
        "index": lambda: host[there > 1],
        "values": lambda: there.index_put_((place,), host[:1]),
        "in place": lambda: host.add_(there),
        "index_add": lambda: there.index_add(0, place, host[:1]),
        "numpy": lambda: there.numpy(),
        "array": lambda: __import__("numpy").asarray(there),
    }
    taken = {
        "scalar": lambda: there * torch.tensor(2.0),
        "number": lambda: there.masked_fill(there > 1, 3.0),
        "host index": lambda: there[place],
        "copy": lambda: host.clone().copy_(there) + there.cpu(),
        "to": lambda: there + host.to(there.device),
        "factory": lambda: there + torch.tensor([1.0, 2, 3, 4], device=there.device),
        "list": lambda: there.tolist() == host.tolist() or 1 / 0,
    }
    wrong = []
    with PretendedDevice():
        for calls, error in ((refused, Mixed), (taken, None)):
            for name, call in calls.items():
                try:
                    call()
                    wrong += [name] * (error is not None)
                except Exception as found:
                    wrong += [name] * (error is None or not isinstance(found, error))
    return wrong


def test_device_refuses_what_cuda_refuses(child):
    assert child(refusals) == []


def arrivals():
    """What the host reads of a copy that it does not wait for, and afterwards."""
    from pretended_device import PretendedDevice, move

    there = move(torch.arange(3))
    with PretendedDevice():
        copy = there.to("cpu", non_blocking=True)
        early = copy.tolist()
        there.sum().item()
        return early, copy.tolist()


def test_copies_arrive_when_they_are_waited_for(child):
    early, late = child(arrivals)
    assert early != late == [0, 1, 2]


def costs():
    """Of single operations."""
    from pretended_device import DEVICE, PretendedDevice, move

    x, mask = move(torch.arange(4.0)), move(torch.tensor([True, False, True, True]))
    calls = {
        "view": lambda: x.view(2, 2).t(),
        "add": lambda: x + 1,
        "matmul": lambda: x @ x,
        "item": lambda: x[0].item(),
        "places": lambda: mask.nonzero(),
        "masked": lambda: x[mask],
        "fill": lambda: x.masked_fill_(mask, 0),
        "indexed": lambda: x[torch.tensor([0, 1])],
        "to host": lambda: x.cpu(),
        "to device": lambda: torch.zeros(2).to(DEVICE),
        "beside": lambda: torch.zeros(2).to(DEVICE, non_blocking=True),
        "made there": lambda: torch.zeros(2, device=DEVICE),
        "wait": lambda: torch.cuda.synchronize(),
        "random": lambda: torch.utils.checkpoint.get_device_states(x),
    }
    found = {}
    for name, call in calls.items():
        with PretendedDevice() as device:
            call()
        found[name] = [tuple(event.cost) for event in device.events if any(event.cost)]
    return found


def test_costs_by_hand(child):
    """Launches, synchronisations, copies to the device and to the host, random states, views."""
    assert child(costs) == {
        "view": [(0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1)],
        "add": [(1, 0, 0, 0, 0, 0)],
        "matmul": [(1, 0, 0, 0, 0, 0)],
        "item": [(0, 0, 0, 0, 0, 1), (0, 1, 0, 1, 0, 0)],
        "places": [(1, 1, 0, 0, 0, 0)],
        "masked": [(1, 1, 0, 0, 0, 0)],
        "fill": [(1, 0, 0, 0, 0, 0)],
        "indexed": [(1, 1, 1, 0, 0, 0)],
        "to host": [(0, 1, 0, 1, 0, 0)],
        "to device": [(0, 1, 1, 0, 0, 0)],
        "beside": [(0, 0, 1, 0, 0, 0)],
        "made there": [(1, 0, 0, 0, 0, 0)],
        "wait": [(0, 1, 0, 0, 0, 0)],
        "random": [(0, 0, 0, 0, 1, 0)],
    }


def counted(compiled=False):
    import launches

    size = dict(SIZE, compiled=compiled, device="cpu", dtype="fp32", checkpoint=None)
    return launches.measure(Namespace(**size), 8)


def test_a_compiled_step_is_one_launch(child):
    """Beside it, steps share the host's looks at the ends, and what a smaller batch takes."""
    rows = child(counted, True)
    for ends, (most_launches, most_syncs) in COMPILED.items():
        (step,) = [row for row in rows if row["what"] == "step" and row["ends"] == ends]
        assert 1 <= step["launches"] <= most_launches and step["syncs"] <= most_syncs
        (one,) = [row for row in rows if row.get("part") == "stage one" and row["ends"] == ends]
        assert one["launches"] <= COMPILED_STAGE_ONE


def test_launches_and_synchronisations(child):
    """Of a decoding step and of an update; each event of the update belongs to a part."""
    rows = child(counted)
    for ends, (most_launches, most_syncs) in STEP.items():
        (step,) = [row for row in rows if row["what"] == "step" and row["ends"] == ends]
        assert 50 < step["launches"] <= most_launches and step["syncs"] <= most_syncs
    for ends, (most_launches, most_syncs) in UPDATE.items():
        update = [row for row in rows if row["what"] == "update" and row["ends"] == ends]
        *parts, whole = update
        assert whole["part"] == "all" and 1000 < whole["launches"] <= most_launches
        assert whole["syncs"] <= most_syncs and whole["rng"] <= RNG
        assert sum(row["launches"] for row in parts) == whole["launches"]
