"""``--show-samples``: which inputs, and where they are shown."""

import logging
import random
from types import SimpleNamespace

import pytest
from fairseq.logging import progress_bar

from esrl_fairseq.monitoring import shown as module
from esrl_fairseq.monitoring.shown import Shown, hash_of

SIDE = {"text": "a | b\nc", "reward": 0.5, "parts": {"bleu": 0.25}}
EXAMPLE = {
    "input": "valid, line 1",
    "source": "s",
    "reference": "r",
    "output": SIDE,
    "sample": SIDE,
}
COMMON = SimpleNamespace(tensorboard_logdir=None, wandb_project=None)


class Task:
    """Draws nothing."""

    def build_sampler(self, model):
        tokens = SimpleNamespace(tolist=lambda: [])
        rows = SimpleNamespace(tokens=tokens)
        return SimpleNamespace(sample_rows=lambda sample, counts, ones, seed: rows)


def validate(shown, batches, monkeypatch):
    """Ids that a validation in these batches shows, and how many it looked at."""
    looked = []

    def examples(scorer, sample, rows, places):
        looked.extend(places)
        return [{**EXAMPLE, "id": int(sample["host_ids"][place])} for place in places]

    monkeypatch.setattr(module, "examples", examples)
    shown.begin()
    for ids in batches:
        sample = {"host_ids": module.np.array(ids)}
        shown.see(None, sample, Task(), None, [[]] * len(ids), 1)
    return {example["id"] for example in shown.end(SimpleNamespace(common=COMMON), 0)}, len(looked)


@pytest.mark.parametrize("number", [1, 3, 50])
def test_the_same_inputs_however_they_are_batched(number, monkeypatch):
    ids, rng = list(range(40)), random.Random(1)
    expected = set(sorted(ids, key=hash_of)[:number])
    shown = Shown(number)
    for first in (True, False):
        rng.shuffle(ids)
        size = rng.randint(1, 15)
        found, looked = validate(
            shown, [ids[i : i + size] for i in range(0, 40, size)], monkeypatch
        )
        assert found == expected
        if not first:  # it knows them by then
            assert looked == len(expected)


def test_nothing_is_shown_unless_asked_for(monkeypatch):
    assert validate(Shown(0), [[1, 2]], monkeypatch) == (set(), 0)
    shown = Shown(2)
    validate(shown, [[1, 2]], monkeypatch)
    shown.see(None, {"host_ids": module.np.array([1])}, Task(), None, [[]], 1)
    assert shown.end(SimpleNamespace(common=COMMON), 0) == []  # a second subset


def test_a_table_where_fairseq_logs(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    written, logged = [], []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_text(self, *given):
            written.append((self.folder, *given))

        def flush(self):
            pass

    wandb = SimpleNamespace(
        run=1,
        Table=lambda columns, data: (columns, data),
        log=lambda what, step: logged.append(what),
    )
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {}, raising=False)
    monkeypatch.setattr(progress_bar, "SummaryWriter", Writer, raising=False)
    monkeypatch.setattr(progress_bar, "wandb", wandb, raising=False)
    for folder, project in ((None, None), (str(tmp_path), "project")):
        shown = Shown(1)
        shown.open, shown.examples = True, {1: EXAMPLE}
        common = SimpleNamespace(tensorboard_logdir=folder, wandb_project=project)
        shown.end(SimpleNamespace(common=common), 7)
    ((place, name, text, step),) = written
    assert place == str(tmp_path / "samples") and (name, step) == ("samples", 7)
    assert text.splitlines()[2].startswith("| valid, line 1 | s | r | a \\| b c | 0.5000: bleu")
    ((columns, rows),) = [table["samples"] for table in logged]
    assert len(columns) == len(rows[0]) == 7
    assert "valid, line 1 after update 7\n  source:    s" in caplog.text
