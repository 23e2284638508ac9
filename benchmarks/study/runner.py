"""A study's runs in their work folder: what is done there, and how a run is carried out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan import Budget, Pair, Run, StudyError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from about import about  # noqa: E402

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
LAST_LINES = 15  # of the log of what failed
DIGITS = 12  # of digests
DATA_STEP = "binarize"  # of the recipes: the last one of the data
# Of every training. Data is loaded in the process itself, so that its CPU time counts; the models
# are only evaluated, so that they need no optimizer state.
TRAIN_OPTIONS = shlex.split(
    "--no-save-optimizer-state --num-workers 0 "
    "--required-batch-size-multiple 1 --log-format json --log-interval 10"
)


class Failed(Exception):
    """A run's process failed: what happened, and the last lines of its log."""


@dataclass(frozen=True)
class PairFolder:
    """A language pair's data and start model, in a work folder (ESRL_WORK_DIR) of its recipe."""

    pair: Pair
    folder: Path

    @property
    def start(self) -> Path:
        """The model that runs start from."""
        return self.folder / self.pair.start / "checkpoint_best.pt"

    def ready(self, step: str) -> bool:
        """Whether the recipe finished a step, ``DATA_STEP`` or ``pair.start`` (its last here)."""
        return (self.folder / "steps" / f"{step}.done").exists()

    def digests(self) -> dict[str, str]:
        """What tells other data or another start model apart, of what is there."""
        found = {}
        if self.ready(self.pair.start):
            found["start"] = model_digest(self.start)
        if self.ready(DATA_STEP):
            patterns = [f"clean/{split}.{self.pair.target}*" for split in ("valid", "test")]
            patterns.insert(0, "data-bin/*.bin")
            data = [file for pattern in patterns for file in sorted(self.folder.glob(pattern))]
            found["data"] = file_digest(data)
        return found


def file_digest(files: Sequence[Path]) -> str:
    """The first digits of the files' SHA-256."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()[:DIGITS]


def model_digest(checkpoint: Path) -> str:
    """The same of the model in a checkpoint, whose file also has times of its training."""
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    from esrl_fairseq.core.fingerprint import fingerprint

    return fingerprint(load_checkpoint_to_cpu(str(checkpoint))["model"])[:DIGITS]


class Runner:
    """Carries out runs in a work folder.

    A run's folder ``runs/NAME`` has ``run.json`` (settings, command, machine and commit; written
    first), ``train.json`` and ``evaluation.json`` (written when that step is over) and
    ``result.json`` (all of these together; written last).
    """

    def __init__(
        self, work: Path, pairs: dict[str, PairFolder], jobs: int, results: Path, lock: int
    ):
        self.work, self.pairs, self.jobs = work, pairs, jobs
        self.lock = lock  # see take_lock
        self.digests = {name: pair.digests() for name, pair in pairs.items()}
        recorded = read_json(results / "results.json") or {"runs": []}
        self.recorded = {row["run"]: row["settings"] for row in recorded["runs"]}

    # Before the runs

    async def prepare(self, name: str, redo: bool, start: bool) -> None:
        """Have the recipe make what the pair's runs need, and score their start if it is needed."""
        pair = self.pairs[name]
        needed = pair.pair.start if start else DATA_STEP
        if not pair.ready(needed):
            say(f"{pair.folder} has no {needed} yet: recipes/{pair.pair.recipe}/run.sh makes it")
            # More threads add up in another order: with one, the same model is made again.
            variables = {"ESRL_WORK_DIR": str(pair.folder), "ESRL_STOP_AFTER": "mle", **ONE_THREAD}
            recipe = ROOT / "recipes" / pair.pair.recipe / "run.sh"
            await self.call([recipe], None, {**os.environ, **variables})
        if not pair.ready(needed):
            raise StudyError(f"recipes/{pair.pair.recipe} did not leave {needed} in {pair.folder}")
        self.digests[name] = pair.digests()
        if start:
            await self.score_start(pair, redo)

    async def score_start(self, pair: PairFolder, redo: bool) -> None:
        """The start model as a run that trained for no update, in ``start/PAIR``."""
        folder = self.work / "start" / pair.pair.name
        settings = {"pair": pair.pair.name, **pair.pair.scoring(), **self.digests[pair.pair.name]}
        result = read_json(folder / "result.json")
        if result and result["settings"] == settings:
            return
        if result and not redo:
            raise StudyError(
                f"{self.work} has runs from other data or another start model than {pair.folder} "
                "has now: choose another --work, or give --redo to repeat them"
            )
        say(f"scoring the start of {pair.pair.name}")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "checkpoint_0.pt").symlink_to(pair.start)
        state = {"updates": 0, "seconds": 0}
        write_json(folder / "train.json", {"candidates": [state], "equal_updates": None})
        await self.step("evaluate", folder, self.evaluate_command(folder, pair))
        evaluation = read_json(folder / "evaluation.json")
        result = {"settings": settings, "about": conditions(self.jobs), "evaluation": evaluation}
        write_json(folder / "result.json", result)

    def prepare_subset(self, run: Run) -> None:
        """Make the data of a run that does not train on all inputs."""
        if run.train_inputs and not self.data(run).exists():
            from subset import first_inputs  # imports fairseq, which few studies need here

            first_inputs(self.pairs[run.pair].folder / "data-bin", run.train_inputs, self.data(run))

    # One run

    def folder(self, run: Run) -> Path:
        """Where a run is."""
        return self.work / "runs" / run.name

    def settings(self, run: Run) -> dict[str, Any]:
        """All that the run's result depends on."""
        scoring = self.pairs[run.pair].pair.scoring()
        settings = {**run.settings(), **scoring, **self.digests[run.pair]}
        if run.cost_only:  # from random weights
            settings.pop("start", None)
        return settings

    def state(self, run: Run) -> str:
        """``done`` (here or in results.json), ``changed`` (with other settings) or ``to do``."""
        result = read_json(self.folder(run) / "result.json")
        if not result:
            return "done" if self.recorded.get(run.name) == self.settings(run) else "to do"
        return "done" if result["settings"] == self.settings(run) else "changed"

    async def carry_out(self, run: Run) -> None:
        """Train and evaluate; a step that is complete is not repeated.

        Raises:
            Failed: a process failed.
        """
        folder, settings = self.folder(run), self.settings(run)
        started = read_json(folder / "run.json")
        if not (started and started["settings"] == settings and (folder / "train.json").exists()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            command = self.train_command(run)
            shown = self.shown(command, self.pairs[run.pair])
            started = {"settings": settings, "about": conditions(self.jobs), "command": shown}
            write_json(folder / "run.json", started)
            await self.step("train", folder, command)
        result = {**started, "training": read_json(folder / "train.json")}
        if run.cost_only:
            shutil.rmtree(folder / "train")
        else:
            if not (folder / "evaluation.json").exists():
                command = self.evaluate_command(folder, self.pairs[run.pair])
                await self.step("evaluate", folder, command)
            result["evaluation"] = read_json(folder / "evaluation.json")
        write_json(folder / "result.json", result)

    def train_command(self, run: Run) -> list[str]:
        """Cost-only runs start from random weights."""
        pair, folder = self.pairs[run.pair], self.folder(run)
        command = [sys.executable, HERE / "train.py", *budget_options(run.budget)]
        command += ["--report", folder / "train.json", self.data(run)]
        command += ["--user-dir", ROOT / "esrl_fairseq", "--save-dir", folder / "train"]
        command += ["--source-lang", pair.pair.source, "--target-lang", pair.pair.target]
        if not run.cost_only:
            command += ["--finetune-from-model", pair.start]
        # train.py validates nothing. Where validation is not disabled, the start model is judged
        # before the first update, which one reward needs: it begins with the counts found there.
        first = [] if "corpus-bleu" in run.options else ["--disable-validation"]
        command += ["--seed", run.seed, *first, *TRAIN_OPTIONS, *run.options]
        return [str(word) for word in command]

    def data(self, run: Run) -> Path:
        """Where the run's training data is, or is to be."""
        if not run.train_inputs:
            return self.pairs[run.pair].folder / "data-bin"
        digest = self.digests[run.pair]["data"]
        return self.work / "data" / run.pair / f"{run.train_inputs}-{digest}"

    def evaluate_command(self, folder: Path, pair: PairFolder) -> list[str]:
        """Of a run's folder."""
        command = [sys.executable, HERE / "evaluate.py", "--run", folder, "--pair", pair.folder]
        command += ["--source", pair.pair.source, "--target", pair.pair.target]
        command += ["--language", pair.pair.language or pair.pair.target]
        command += ["--metric", pair.pair.metric, "--", *shlex.split(pair.pair.generate)]
        return [str(word) for word in command]

    def shown(self, command: list[str], pair: PairFolder) -> str:
        """A command without this machine's folders."""
        text = shlex.join(["python", *command[1:]])
        names = {str(pair.folder): "$PAIR", str(self.work): "$WORK", f"{ROOT}/": ""}
        for folder in sorted(names, key=len, reverse=True):  # one may lie in the other
            text = text.replace(folder, names[folder])
        return text

    async def step(self, name: str, folder: Path, command: list[str]) -> None:
        """Run a step with its output in ``NAME.log``; it has to leave what its name promises."""
        log = folder / f"{name}.log"
        status = await self.call(command, log, {**os.environ, **ONE_THREAD})
        if status:
            reason = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            raise Failed("\n    ".join([f"{reason}; the last lines of {log}:", *lines]))

    async def call(self, command: Sequence[Any], log: Path | None, variables: Any) -> int:
        """Exit status of a command, which ends with this runner and holds its lock until then."""
        output = log.open("wb") if log else None
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=ROOT,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT if log else None,
            start_new_session=True,
            pass_fds=(self.lock,),
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
                await process.wait()
            if output:
                output.close()


def budget_options(budget: Budget) -> list[str]:
    """Of train.py."""
    return [word for name, value in vars(budget).items() for word in (f"--{name}", f"{value}")]


def conditions(jobs: int) -> dict[str, Any]:
    """Machine, commit and versions, and what else can make CPU time differ."""
    return {**about(), "threads": 1, "jobs": jobs, "load": os.getloadavg()[0]}


def read_json(file: Path) -> Any:
    """None where there is no such file."""
    return json.loads(file.read_text()) if file.exists() else None


def write_json(file: Path, value: Any) -> None:
    """At once: a file is whole or not there."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(file)


def say(text: str) -> None:
    """A line with the time of day."""
    print(time.strftime("%H:%M:%S"), text, flush=True)
