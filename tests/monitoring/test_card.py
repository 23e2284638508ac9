"""The model card: what it says of a record, and when it is written."""

from types import SimpleNamespace

import pytest
import torch

from esrl_fairseq.checkpoints.card import BEST, NAME, OURS, copy_to, write
from esrl_fairseq.monitoring import card as module
from esrl_fairseq.monitoring.card import Card, best_update, card
from esrl_fairseq.monitoring.record import FILE, as_line


def begin(**changes):
    """A record of a run's beginning."""
    configuration = {
        "task": {"data": "data-bin"},
        "model": {"_name": "transformer"},
        "criterion": {"valid_beam": 1},
        "checkpoint": {"best_checkpoint_metric": "reward"},
    }
    return {
        "kind": "begin",
        "at": 0,
        "wall": 0.0,
        "configuration": configuration,
        "parameters": 12345,
        "generate": "fairseq-generate data-bin --path run/checkpoint_best.pt",
        "reward": "bleu|v:2.6",
        "start": {"path": "mle.pt", "option": "--finetune-from-model", "sha256": "ab12"},
        "data": {
            "languages": ["de", "en_XX"],
            "sizes": {"train": 2000, "valid": 100},
            "fingerprint": "ffee",
        },
        "command": "fairseq-train data-bin",
        "options": ["--num-samples 4"],
        "versions": {"torch": "2.13"},
        "device": "cpu",
        "ranks": 1,
        "time": "2026-11-30 09:00:00",
        **changes,
    }


def validation(at, first=True, **stats):
    return {"kind": "validation", "at": at, "wall": 3.6 * at, "subset": "valid", "first": first} | {
        "stats": stats
    }


RECORDS = [
    begin(),
    validation(0, reward=0.25, ppl=8.0),
    {"kind": "warning", "at": 3, "wall": 9.0, "message": "samples\nrepeat"},
    validation(500, reward=0.5, ppl=9.0, reward_chrf=0.6),
    validation(500, first=False, reward=0.9),
    validation(1000, reward=0.4, ppl=9.5),
]


def test_what_it_says():
    text = card(RECORDS, 500, "my-run")
    for part in (
        "---\nlanguage: [de]\ntags:",  # en_XX is no code of a language
        "# my-run",
        "`--arch transformer` with 12,345 parameters, which translates de to en_XX",
        "| validation | start | update 500 |\n|---|---:|---:|\n| reward | 0.2500 | 0.5000 |",
        "| reward_chrf | – | 0.6000 |",
        "100 inputs of `valid`, with greedy outputs; the best was chosen by its reward",
        "`mle.pt` (--finetune-from-model), SHA-256 `ab12`",
        "- `train`: 2,000 inputs",
        "- fingerprint of the training data: `ffee`",
        "```sh\nfairseq-train data-bin\n```",
        "- 1,000 updates in 1.00 hours; this is update 500",
        "the run has not come to its end",
        "- update 3: samples repeat",
        "fairseq-generate data-bin --path run/checkpoint_best.pt",
    ):
        assert part in text, text
    assert OURS in text and "0.9000" not in text


@pytest.mark.parametrize(
    "change, words",
    [
        ({"start": {"path": "", "option": ""}}, "The run began with random weights"),
        ({"data": None, "generate": None}, "folder: `data-bin`"),  # of earlier versions
        ({"options": []}, "options beside the defaults: `none`"),
        ({"reward": "a `b`\nc"}, "`a 'b' c`"),
    ],
)
def test_other_runs(change, words):
    first = begin(**change)
    first = {name: value for name, value in first.items() if value is not None}
    text = card([first, *RECORDS[1:]], 500, "run")
    assert words in text and "None" not in text.split("## Warnings")[0]


def test_the_end_and_a_best_without_validation():
    end = {"kind": "end", "at": 1000, "wall": 4000.0, "outcome": "better"}
    assert "- state: better" in card([*RECORDS, end], 500, "run")
    assert "no validation of it is recorded" in card([*RECORDS, end], 777, "run")
    many = [{"kind": "warning", "at": i, "wall": 1.0, "message": f"w{i}"} for i in range(50)]
    text = card([*RECORDS, *many], 500, "run")
    assert text.count("- update ") == module.MOST_WARNINGS and f"and 31 more, in {FILE}" in text


def save(path, run, update=500):
    state = {
        "model": {},
        "extra_state": {"EsrlTranslationTask": {"outcome": {"run": run}}, "epoch": 1},
        "optimizer_history": [{"num_updates": update}],
    }
    torch.save(state, path)


@pytest.fixture
def kept(tmp_path):
    """A card of a run with a record and a best checkpoint."""
    save(tmp_path / BEST, "mine")
    (tmp_path / FILE).write_bytes(b"".join(map(as_line, RECORDS)))
    outcome = SimpleNamespace(outcome=SimpleNamespace(run="mine"))
    record = SimpleNamespace(folder=str(tmp_path), path="there", trainer=SimpleNamespace())
    record.trainer.task = outcome
    return Card(record)


def test_it_is_written_when_there_is_something_new(kept, tmp_path):
    file = tmp_path / NAME
    kept.refresh()
    assert "update 500" in file.read_text() and not kept.due
    file.unlink()
    kept.refresh()
    assert not file.exists()
    kept.due = True
    save(tmp_path / BEST, "mine", 1000)
    kept.refresh()
    assert "| reward | 0.2500 | 0.4000 |" in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BEST, FILE, NAME])


def test_best_checkpoints_of_others(kept, tmp_path):
    """Of another run in the folder, damaged, or missing: no card."""
    save(tmp_path / BEST, "another")
    kept.refresh()
    (tmp_path / BEST).write_bytes(b"PK")
    kept.due = True
    kept.refresh()
    (tmp_path / BEST).unlink()
    kept.due = True
    kept.refresh()
    assert not (tmp_path / NAME).exists()
    save(tmp_path / BEST, "")
    assert best_update(str(tmp_path / BEST), "mine") is None


def test_nothing_is_written_without_a_folder(kept, tmp_path):
    """--no-save, and ranks other than the first."""
    kept.record.folder = None
    kept.refresh()
    assert not (tmp_path / NAME).exists()


def test_a_card_by_somebody_else_stays(kept, tmp_path, caplog):
    (tmp_path / NAME).write_text("mine")
    for _ in range(2):
        kept.due = True
        kept.refresh()
    assert (tmp_path / NAME).read_text() == "mine"
    assert [record.message for record in caplog.records] == [
        f"{NAME} in {tmp_path} was written by somebody else, and is left as it is"
    ]


def test_a_folder_that_cannot_be_written_to(kept, tmp_path, caplog):
    """A full disk or rights that are missing end no run; here a folder has the file's name."""
    (tmp_path / f"{NAME}.partial").mkdir()
    kept.refresh()
    (record,) = caplog.records
    assert "cannot be written to" in record.message and "the run goes on" in record.message


def test_a_record_that_lacks_something(kept, tmp_path, caplog):
    (tmp_path / FILE).write_bytes(as_line({"kind": "begin", "at": 0, "wall": 0.0}))
    kept.refresh()
    (record,) = caplog.records
    assert "KeyError: 'configuration'" in record.message and "the run goes on" in record.message


def test_export_takes_it_along(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    copy_to(str(run / BEST), out)
    assert not list(out.iterdir())
    assert write(str(run), f"{OURS}\nmodel")
    copy_to(str(run / "checkpoint_last.pt"), out)
    assert not list(out.iterdir())  # of which it says nothing
    copy_to(str(run / BEST), out)
    assert (out / "README.md").read_text() == f"{OURS}\nmodel"
