"""The record of a run, beside its checkpoints: what ``esrl-report`` draws (docs/report.md).

One JSON object a line, of the first rank. Each has its ``kind`` and ``at``, the number of updates
before it. Lines are written whole, so that a run that is killed leaves at most one that is cut.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shlex
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics
from omegaconf import OmegaConf

from esrl_fairseq.checkpoints.reading import sha256
from esrl_fairseq.monitoring import logs
from esrl_fairseq.monitoring.epochs import histograms
from esrl_fairseq.monitoring.outcome import next_command
from esrl_fairseq.monitoring.summary import data_of, given_options
from esrl_fairseq.rescoring.rescoring import unwrap
from esrl_fairseq.sampling.conditioning import is_decoder_only

logger = logging.getLogger(__name__)

FILE = "training_record.jsonl"
SPACING = ((1_000, 1), (10_000, 10), (math.inf, 100))
"""Up to which update how many updates become one line, their mean."""
PACKAGES = ("fairseq-fixed", "fairseq", "sacrebleu", "numpy", "transformers", "unbabel-comet")
MOST_WARNINGS = 200
"""Of a process; the same words count once."""


class Record:
    """Writes the record of a run.

    Nothing that happens to it ends the run: where it cannot be written, one warning says so.

    Args:
        trainer: fairseq's; its task samples.
        folder: ``--save-dir``; None: nothing is written (ranks other than 0, ``--no-save``).
    """

    def __init__(self, trainer: Any, folder: str | None):
        self.trainer, self.folder, self.path = trainer, folder, ""
        self.warned = self.cut = False
        self.subset = 0  # the number of the one that was validated last
        self.waiting: list[dict[str, Any]] = []  # records from before there is a file
        self.epochs: set[int] = set()  # that there are records of
        self.watch = _Warnings(self)
        if folder is not None:
            logging.getLogger().addHandler(self.watch)
        self._begin_mean()
        self.begun = time.perf_counter()

    def begin(self, start: Any) -> None:
        """All is loaded: the run goes on behind its own records, or begins anew.

        Nothing is written before the first epoch, since the start may still be refused.

        Args:
            start: what it starts from.
        """
        if self.folder is None:
            return
        outcome, updates = self.trainer.task.outcome, self.trainer.get_num_updates()
        folders = [self.folder, self.trainer.task.rl.resumed_from]
        kept = kept_records(folders, outcome.run, updates) if updates else []
        if not kept:
            outcome.run = uuid.uuid4().hex
        self.epochs = {record["epoch"] for record in kept if record["kind"] == "epoch"}
        warnings, self.waiting = self.waiting, kept
        self.add("begin", run=outcome.run, resumed=bool(kept), **description(self.trainer, start))
        told = {record["message"] for record in kept if record["kind"] == "warning"}
        self.watch.seen |= told
        now = {"at": updates, "wall": self.waiting[-1]["wall"]}
        self.waiting += [{**w, **now} for w in warnings if w["message"] not in told]

    def _open(self) -> None:
        """Begin the file with what waits for it; where that fails, the next epoch tries again."""
        assert self.folder is not None
        path = os.path.join(self.folder, FILE)
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(f"{path}.partial", "wb") as file:
                file.writelines(as_line(record) for record in self.waiting)
            os.replace(f"{path}.partial", path)
        except OSError as error:
            self._warn(error)
        else:
            self.path, self.waiting = path, []

    def add(self, kind: str, **values: Any) -> None:
        """Write a record."""
        if self.folder is None:
            return
        seconds = self.trainer.cumulative_training_time()
        record = {"kind": kind, "at": self.trainer.get_num_updates(), "wall": seconds, **values}
        if not self.path:
            self.waiting.append(record)
            return
        line = as_line(record)
        try:
            # Opened anew: the folder may be moved, and other processes inherit no file.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                whole = b"\n" + line if self.cut else line
                self.cut = os.write(file, whole) < len(whole)
            finally:
                os.close(file)
        except OSError as error:
            self.cut = True
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self.warned:
            self.warned = True
            logger.warning(
                "the run's record cannot be written to %s (%s): the run goes on, and esrl-report "
                "will not show what is missing there",
                *(os.path.join(self.folder or "", FILE), error.strerror),
            )

    def begin_update(self) -> None:
        """The batches of an update follow; what came before it is not the update's time."""
        self.begun = time.perf_counter()

    def updated(self, outputs: list[dict[str, Any]]) -> None:
        """An update is over; ``outputs`` are the sums that its batches logged, of all ranks."""
        if self.folder is None:
            return
        for log in outputs:
            for key, value in log.items():
                self.sums[key] = self.sums.get(key, 0) + value
        self.updates += 1
        self.seconds += time.perf_counter() - self.begun
        update = self.trainer.get_num_updates()
        if update % next(every for most, every in SPACING if update <= most) == 0:
            self._end_mean()

    def _begin_mean(self) -> None:
        self.sums: dict[str, Any] = {}
        self.updates, self.seconds = 0, 0.0

    def _end_mean(self) -> None:
        """Means of the updates since the last record of them."""
        if not self.updates:
            return
        with metrics.aggregate(new_root=True) as meters:
            logs.reduce([self.sums])
        values = dict(meters.get_smoothed_values())
        values.update(lr=self.trainer.get_lr(), seconds_update=self.seconds / self.updates)
        self.add("update", updates=self.updates, **values)
        self._begin_mean()

    def validated(self, stats: Mapping[str, Any], first: bool) -> None:
        """A subset was validated.

        Args:
            stats: what fairseq logs of it.
            first: whether it is a validation's first.
        """
        self.subset = 0 if first else self.subset + 1
        names = self.trainer.cfg.dataset.valid_subset.split(",")
        name = names[self.subset] if self.subset < len(names) else str(self.subset)
        self.add("validation", subset=name, first=first, stats=dict(stats))

    def add_epoch(self, rl: Any, options: Any) -> None:
        """An epoch begins: what the capability store knows, and what its inputs get of it."""
        if self.folder is None:
            return
        if not self.path:
            self._open()
        if rl.epoch not in self.epochs:  # a run that is resumed in its middle has told of it
            self.epochs.add(rl.epoch)
            self.add("epoch", epoch=rl.epoch, **histograms(rl, options))

    def add_examples(self, examples: list[dict[str, Any]]) -> None:
        """What ``--show-samples`` shows of a validation."""
        if examples:
            self.add("samples", samples=examples)

    def end(self, outcome: str) -> None:
        """The run has come to its end, and to this."""
        self._end_mean()
        self.add("end", outcome=outcome)
        logging.getLogger().removeHandler(self.watch)


class _Warnings(logging.Handler):
    """Records what is warned of, with the update that it came at."""

    def __init__(self, record: Record):
        super().__init__(logging.WARNING)
        self.owner, self.seen = record, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.seen and len(self.seen) < MOST_WARNINGS:
            self.seen.add(message)
            self.owner.add(kind="warning", level=record.levelname, message=message)


def description(trainer: Any, start: Any) -> dict[str, Any]:
    """What is trained: the command, options, versions, signature of the reward."""
    cfg, task, criterion = trainer.cfg, trainer.task, trainer.get_criterion()
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("esrl-fairseq", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = trainer.device.type == "cuda"
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "options": given_options(cfg),
        "configuration": OmegaConf.to_container(OmegaConf.create(cfg), resolve=True),
        "versions": found,
        "reward": criterion.scorer.reward.signature(),
        "start": {**vars(start), "sha256": sha256(start.path) if start.option else ""},
        "parameters": sum(p.numel() for p in unwrap(trainer.model).parameters()),
        "data": data_of(task),
        "generate": generate_command(trainer),
        "inputs": len(task.datasets[cfg.dataset.train_subset]),
        "ranks": cfg.distributed_training.distributed_world_size,
        "device": torch.cuda.get_device_name(trainer.device) if cuda else "cpu",
    }


def generate_command(trainer: Any) -> str:
    """See :func:`~esrl_fairseq.monitoring.outcome.next_command`."""
    post_process = trainer.get_criterion().cfg.reward_post_process
    return next_command(trainer.cfg, post_process, is_decoder_only(unwrap(trainer.model)))


def kept_records(folders: list[str], run: str, updates: int) -> list[dict[str, Any]]:
    """Those that ``run`` has written up to a checkpoint after ``updates`` updates.

    Args:
        folders: where the record may be; the checkpoint may come from another one than the run's.
        run: its name, from the checkpoint; empty where that has none.
    """
    for folder in folders if run else []:
        records = list(read_record(os.path.join(folder, FILE)))
        if any(record.get("run") == run for record in records):
            return [record for record in records if record["at"] <= updates]
    return []


def read_record(path: str) -> Iterator[dict[str, Any]]:
    """The records of a file, without lines that are cut; nothing of a file that is not there."""
    try:
        with open(path, "rb") as file:
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # a kill came in between, or the disk was full
            continue
        if isinstance(record, dict) and "kind" in record and "at" in record:
            yield record


def as_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON."""
    return (json.dumps(plain(record), ensure_ascii=False) + "\n").encode("utf-8", "replace")


def plain(value: Any) -> Any:
    """The same in JSON's kinds: numbers to six digits, those that are not finite as null."""
    value = vars(value) if isinstance(value, Namespace) else value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
