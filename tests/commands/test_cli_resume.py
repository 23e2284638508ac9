"""A run killed in mid-epoch and resumed is bit for bit the run that was never interrupted."""

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import JOINED, MODEL, Result, esrl_options

from esrl_fairseq.monitoring.record import FILE, read_record
from esrl_fairseq.state.capability import EARLIER_RECORD, RECORD, restored

EVERY = 6  # updates between checkpoints; an epoch has 10
LAST = 26
OF_THE_MACHINE = ("wall", "wps", "ups", "seconds_", "peak_gb", "gb_free")


def options(corpus, mle, save_dir):
    """The same command starts and resumes a run."""
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", mle],
        "--num-samples 5 --elimination-ratio 0.5 --min-sample-temperature 0.8",
        "--baseline-queue-size 300 --rescoring-dropout",
        f"--save-interval-updates {EVERY} --max-update {LAST}",
    ]


def comparable(result, after):
    """All JSON log lines after update ``after``, without time and memory."""
    lines = []
    for line in result.stdout.splitlines():
        fields = line.split(" | ", 3)
        if len(fields) < 4 or fields[2] not in ("train", "train_inner", "valid"):
            continue
        name, values = fields[2], json.loads(fields[3])
        values = {k: v for k, v in values.items() if not any(s in k for s in OF_THE_MACHINE)}
        updates = values.get("num_updates") or values.get(f"{name}_num_updates")
        if int(updates) > after:
            lines.append((name, values))
    return lines


def load(checkpoint):
    return torch.load(checkpoint, weights_only=True)


@dataclass
class Killed:
    """A run ended by SIGKILL: its folder, what it had written, and its checkpoint's update."""

    save_dir: Path
    result: Result
    updates: int


@pytest.fixture(scope="module")
def killed(commands, corpus, mle):
    """Killed in the second epoch, after the checkpoint of update 12."""
    save_dir = commands.folder / "killed"
    running = commands.start("fairseq-train", *options(corpus, mle, save_dir))
    while not (lines := running.logged("train_inner")) or lines[-1]["num_updates"] < 2 * EVERY + 1:
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    result = running.wait()
    assert result.returncode == -signal.SIGKILL
    state = load(save_dir / "checkpoint_last.pt")
    return Killed(save_dir, result, state["optimizer_history"][-1]["num_updates"])


@pytest.fixture(scope="module")
def uninterrupted(commands, corpus, mle):
    save_dir = commands.folder / "uninterrupted"
    return save_dir, commands.succeed("fairseq-train", *options(corpus, mle, save_dir))


def test_the_kill_came_in_mid_epoch_with_dynamic_sampling(killed):
    assert killed.updates == 2 * EVERY
    last = killed.result.logged("train_inner")[-1]
    assert killed.updates < last["num_updates"] < 20 and last["samples"] < 5


def resume(commands, corpus, mle, killed, save_dir, edit=lambda rl: None):
    """Resume a copy of the killed run, the RL state in its checkpoint edited."""
    shutil.copytree(killed.save_dir, save_dir)
    state = load(save_dir / "checkpoint_last.pt")
    edit(state["extra_state"]["EsrlTranslationTask"]["rl"])
    torch.save(state, save_dir / "checkpoint_last.pt")
    return commands.succeed("fairseq-train", *options(corpus, mle, save_dir))


def stored(save_dir):
    """What the last checkpoint has in it of the capability store."""
    state = load(save_dir / "checkpoint_last.pt")["extra_state"]["EsrlTranslationTask"]
    return state["rl"]["stores"][0]["packed"]


def recorded(save_dir):
    """The run's record, without time and memory, and where it was resumed."""
    return [
        {key: value for key, value in record.items() if not key.startswith(OF_THE_MACHINE)}
        for record in read_record(save_dir / FILE)
        if record["kind"] not in ("begin", "end")
    ]


def same_parameters(one, other):
    assert load(one / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == LAST
    return same_model(one, other)


def same_model(one, other):
    one, other = (load(folder / "checkpoint_last.pt")["model"] for folder in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_is_over_makes_no_update_more(commands, corpus, mle, uninterrupted, tmp_path):
    """It may have been killed between its last checkpoint and its end."""
    shutil.copytree(uninterrupted[0], tmp_path / "again")
    result = commands.succeed("fairseq-train", *options(corpus, mle, tmp_path / "again"))
    assert not result.logged("train_inner") and "nothing is left of --max-update" in result.stdout
    assert same_model(uninterrupted[0], tmp_path / "again")


def test_resumed_equals_uninterrupted(commands, corpus, mle, killed, uninterrupted, tmp_path):
    save_dir, result = uninterrupted
    resumed = resume(commands, corpus, mle, killed, tmp_path / "resumed")
    expected = comparable(result, killed.updates)
    assert len(expected) > LAST - killed.updates
    assert comparable(resumed, killed.updates) == expected
    assert same_parameters(save_dir, tmp_path / "resumed")
    stores = [stored(folder) for folder in (save_dir, tmp_path / "resumed")]
    assert torch.equal(*stores)
    records = [recorded(folder) for folder in (save_dir, tmp_path / "resumed")]
    assert records[0] == records[1] and len(records[0]) > LAST
    assert len(recorded(killed.save_dir)) > killed.updates + 2  # more than was kept


@pytest.mark.parametrize("part", ["rewards", "stores"])
def test_queue_and_store_matter(part, commands, corpus, mle, killed, uninterrupted, tmp_path):
    """What the test above shows would fail if either were not restored."""

    def forget(rl):
        if part == "rewards":
            rl["baseline"]["state"]["rewards"] = torch.zeros(0)
        else:
            rl["stores"] = {}

    result = resume(commands, corpus, mle, killed, tmp_path / "forgot", forget)
    assert comparable(result, killed.updates) != comparable(uninterrupted[1], killed.updates)
    assert not same_parameters(uninterrupted[0], tmp_path / "forgot")


def test_a_checkpoint_of_an_earlier_version(commands, corpus, mle, killed, uninterrupted, tmp_path):
    """It holds the queue where the kinds of baseline are now, and all records of the store with an
    entropy each; it resumes all the same."""

    def make_older(rl):
        rl["rewards"] = rl.pop("baseline")["state"]["rewards"]
        store = restored(rl["stores"][0], [])
        earlier = np.zeros(store.size, EARLIER_RECORD)
        for name in RECORD.names:
            earlier[name] = store.records[name]
        content = torch.frombuffer(bytearray(earlier.tobytes()), dtype=torch.uint8)
        rl["stores"] = {0: {"fingerprint": store.fingerprint[:64], "records": content}}

    result = resume(commands, corpus, mle, killed, tmp_path / "older", make_older)
    assert "--reward-baseline" not in result.stdout + result.stderr
    assert comparable(result, killed.updates) == comparable(uninterrupted[1], killed.updates)
    assert same_parameters(uninterrupted[0], tmp_path / "older")


def begin_at_6(whole, folder):
    """A run of its own, with the checkpoint that ``whole`` made after update 6."""
    folder.mkdir()
    shutil.copy(whole / "checkpoint_1_6.pt", folder / "checkpoint_last.pt")
    return folder


def test_kl_penalty_resumes(commands, corpus, mle, tmp_path):
    """λ goes on, the frozen model is read again from the file of --finetune-from-model.

    The checkpoint holds no second model; with another frozen model the run is refused.
    """

    def options(folder, *more):
        return [
            *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED, "--lr 1e-2"],
            *["--objective rloo --num-samples 4 --rescoring-dropout"],
            *["--kl-weight 0.05 --kl-target 0.5 --save-interval-updates 6 --max-update 14", *more],
        ]

    start = ["--finetune-from-model", mle]
    whole = commands.succeed(*options(tmp_path / "whole", *start))
    copies = [begin_at_6(tmp_path / "whole", tmp_path / name) for name in ("resumed", "forgot")]
    resumed = commands.succeed(*options(copies[0], *start))
    expected = comparable(whole, 6)
    assert len(expected) > 8 and comparable(resumed, 6) == expected
    assert same_model(tmp_path / "whole", copies[0])
    lines = whole.logged("train_inner")
    assert lines[0]["kl"] == 0 and lines[-1]["kl"] > 0.1
    weights = [line["kl_weight"] for line in lines]
    assert weights[0] == 0.05 and weights[1] == 0.049 and len(set(weights)) > 10

    state = load(copies[1] / "checkpoint_last.pt")
    assert state["criterion"] is None and state["model"].keys() == load(mle)["model"].keys()
    state["extra_state"]["EsrlTranslationTask"]["rl"]["kl"]["weight"] = 0.05
    torch.save(state, copies[1] / "checkpoint_last.pt")
    assert comparable(commands.succeed(*options(copies[1], *start)), 6) != expected

    own = ["--restore-file", tmp_path / "whole" / "checkpoint_1_6.pt"]
    refused = commands.run(*options(begin_at_6(tmp_path / "whole", tmp_path / "own"), *own))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "not the one that this run began with" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "kind",
    [
        "ema --baseline-decay 0.8 --reward-control shuffled",
        pytest.param("window --baseline-window 3 --capability-noise 0.2", marks=pytest.mark.long),
    ],
)
def test_other_baselines_resume(kind, commands, corpus, mle, tmp_path):
    """From the checkpoint after update 6 of 14, in the first of two epochs, to the same end."""

    def run(folder, kind, *more):
        return commands.succeed(
            *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED],
            *["--finetune-from-model", mle, "--objective reinforce --num-samples 4"],
            *[f"--reward-baseline {kind}", "--save-interval-updates 6 --max-update 14", *more],
        )

    whole = run(tmp_path / "whole", kind)
    resumed = run(begin_at_6(tmp_path / "whole", tmp_path / "resumed"), kind)
    expected = comparable(whole, 6)
    assert len(expected) > 8 and comparable(resumed, 6) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")

    changed = run(begin_at_6(tmp_path / "whole", tmp_path / "changed"), "fifo")
    text = changed.stdout + changed.stderr
    assert f"trained with --reward-baseline {kind.split()[0]}, this run has fifo" in text
    first = changed.logged("train_inner")[0]
    assert first["baseline"] == pytest.approx(first["reward"], abs=1e-3)


def test_auto_resumes_in_the_second_epoch(commands, corpus, mle, tmp_path):
    """--elimination-ratio auto, from the checkpoint after update 12 of 14 to the same end.

    Without the mean variance, as in an earlier version's checkpoint, the epoch ends with K samples.
    """

    def run(folder):
        return commands.succeed(
            *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED],
            *["--finetune-from-model", mle, "--num-samples 6 --elimination-ratio auto"],
            "--save-interval-updates 6 --max-update 14",
        )

    def resumed(name, edit=lambda rl: None):
        (tmp_path / name).mkdir()
        state = load(tmp_path / "whole" / "checkpoint_2_12.pt")
        edit(state["extra_state"]["EsrlTranslationTask"]["rl"])
        torch.save(state, tmp_path / name / "checkpoint_last.pt")
        return run(tmp_path / name)

    whole = run(tmp_path / "whole")
    samples = [line["samples"] for line in whole.logged("train_inner")]
    assert samples[:10] == [6] * 10 and all(3 <= k < 6 for k in samples[10:])
    same = resumed("resumed")
    expected = comparable(whole, 12)
    assert len(expected) >= 4 and comparable(same, 12) == expected
    one, other = (load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "resumed"))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    earlier = resumed("earlier", lambda rl: rl.pop("mean_variance"))
    assert [line["samples"] for line in earlier.logged("train_inner")] == [6, 6]
