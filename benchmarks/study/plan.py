"""What a study consists of: ``study.toml`` as a list of runs."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from metrics import METRICS

HERE = Path(__file__).resolve().parent
STUDY = HERE / "study.toml"


class StudyError(Exception):
    """What is wrong with study, folder or run, and how to mend it, in one sentence."""


@dataclass(frozen=True)
class Budget:
    """How long a run trains, and which of its models are kept.

    Attributes:
        seconds: CPU time after which training ends; 0: it ends after ``updates``.
        updates: the model after exactly so many updates is kept.
        checkpoints: models evenly spaced over ``seconds`` that are kept.
    """

    seconds: float
    updates: int
    checkpoints: int


@dataclass(frozen=True)
class Pair:
    """A pair of languages, or of texts and summaries: SOURCE-TARGET.

    Attributes:
        recipe: makes its data and the model that runs start from.
        start: the recipe's step that makes that model.
        metric: of metrics.METRICS.
        language: of the target, where its name does not tell.
        generate: further options of fairseq-generate.
    """

    name: str
    recipe: str
    start: str
    metric: str = "bleu"
    language: str | None = None
    generate: str = ""

    @property
    def source(self) -> str:
        """The source language."""
        return self.name.split("-")[0]

    @property
    def target(self) -> str:
        """The target language."""
        return self.name.split("-")[1]

    def scoring(self) -> dict[str, str]:
        """What the scores depend on beside data and model, where it is not the default."""
        default = Pair(self.name, self.recipe, self.start)
        return {key: value for key, value in vars(self).items() if value != vars(default)[key]}


@dataclass(frozen=True)
class Run:
    """One training; its name is also its folder."""

    experiment: str
    pair: str
    method: str
    seed: int
    options: tuple[str, ...]
    budget: Budget
    cost_only: bool = False
    train_inputs: int = 0

    @property
    def name(self) -> str:
        """EXPERIMENT/PAIR/METHOD/SEED."""
        return f"{self.experiment}/{self.pair}/{self.method}/{self.seed}"

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, except the pair's data and start."""
        settings = {
            "pair": self.pair,
            "seed": self.seed,
            "options": shlex.join(self.options),
            "budget": asdict(self.budget),
            "cost_only": self.cost_only,
        }
        return settings | ({"train_inputs": self.train_inputs} if self.train_inputs else {})


@dataclass(frozen=True)
class Method:
    """A row of an experiment's tables.

    Attributes:
        options: of fairseq-train, all of them but paths and seed.
        same_as: (experiment, method) whose runs it shows; it has none of its own then.
    """

    name: str
    options: tuple[str, ...] = ()
    same_as: tuple[str, str] | None = None


@dataclass(frozen=True)
class Experiment:
    """Runs that one table compares; ``train_inputs``: on the first so many of training's alone."""

    name: str
    title: str
    pairs: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    against: str | None
    cost_only: bool
    train_inputs: int = 0
    methods: dict[str, Method] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Pairs and experiments, in the order of the file."""

    pairs: dict[str, Pair]
    experiments: dict[str, Experiment]

    def run(self, experiment: str, pair: str, method: str, seed: int) -> Run:
        """The run that a table shows for these."""
        chosen = self.experiments[experiment]
        found = chosen.methods[method]
        if found.same_as:
            other, method = found.same_as
            return self.run(other, pair, method, seed)
        return Run(
            experiment,
            pair,
            method,
            seed,
            found.options,
            chosen.budget,
            chosen.cost_only,
            chosen.train_inputs,
        )

    def runs(self) -> list[Run]:
        """All runs, each once. The first seed of all methods comes first, then the second, …"""
        return [run for name in self.experiments for run in self._runs_of(name)]

    def _runs_of(self, name: str) -> Iterator[Run]:
        experiment = self.experiments[name]
        for seed in experiment.seeds:
            for pair in experiment.pairs:
                for method in experiment.methods.values():
                    if not method.same_as:
                        yield self.run(name, pair, method.name, seed)

    def select(self, patterns: list[str]) -> list[Run]:
        """Runs whose name fits one of the patterns (``*`` also covers ``/``); all without any."""
        runs = self.runs()
        for pattern in patterns:
            if not any(fnmatchcase(run.name, pattern) for run in runs):
                raise StudyError(
                    f"--only {pattern} fits no run; a run is called {runs[0].name}, for example"
                )
        return [
            run
            for run in runs
            if not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns)
        ]


def results_of(path: Path) -> Path:
    """Where the results of a study are kept: beside it, or in a folder of its name."""
    return path.parent if path.name == STUDY.name else path.with_suffix("")


def load(path: Path) -> Study:
    """Read a study.

    Raises:
        StudyError: an entry is unknown or refers to nothing.
    """
    with path.open("rb") as file:
        try:
            table = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise StudyError(f"{path} is not TOML: {error}") from None
    try:
        study = _study(table)
        _check(study)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    except (KeyError, TypeError) as error:
        reason = f"an entry is missing, unknown or of a wrong kind: {error}"
        raise StudyError(f"{path}: {reason}") from None
    return study


def _study(table: dict[str, Any]) -> Study:
    budget = Budget(**table["budget"])
    options = {group: shlex.split(text) for group, text in table["options"].items()}
    pairs = {name: Pair(name, **entry) for name, entry in table["pairs"].items()}
    experiments = {
        name: _experiment(name, dict(entry), budget, options)
        for name, entry in table["experiments"].items()
    }
    return Study(pairs, experiments)


def _experiment(
    name: str, entry: dict[str, Any], budget: Budget, groups: dict[str, list[str]]
) -> Experiment:
    shared = shlex.split(entry.pop("options", ""))
    variants = entry.pop("variants", {"": ""})
    methods = {}
    for method, given in entry.pop("methods").items():
        for variant, more in variants.items():
            full = f"{method} {variant}".strip()
            own = {"options": given} if isinstance(given, str) else dict(given)
            group = groups["all"] + groups[own.pop("group", "rl")]
            words = group + shared + shlex.split(own.pop("options", "")) + shlex.split(more)
            if "same_as" in own:
                own["same_as"] = tuple(own["same_as"].split("/"))
            methods[full] = Method(full, tuple(words), **own)
    return Experiment(
        name=name,
        title=entry.pop("title"),
        pairs=tuple(entry.pop("pairs")),
        seeds=tuple(entry.pop("seeds")),
        budget=replace(budget, **entry.pop("budget", {})),
        against=entry.pop("against", None),
        cost_only=entry.pop("cost_only", False),
        methods=methods,
        **entry,
    )


def _check(study: Study) -> None:
    for pair in study.pairs.values():
        if pair.metric not in METRICS:
            raise StudyError(f"pair {pair.name}: metric {pair.metric!r} is not of {[*METRICS]}")
    for experiment in study.experiments.values():
        about = f"experiment {experiment.name}"
        budget, methods = experiment.budget, experiment.methods
        if unknown := set(experiment.pairs) - set(study.pairs):
            raise StudyError(f"{about} has the pair {unknown.pop()!r}, which is not in [pairs]")
        if experiment.against not in (None, *methods):
            raise StudyError(f"{about} is against {experiment.against!r}, not one of its methods")
        if budget.updates < 1 or budget.seconds < 0 or (budget.seconds and budget.checkpoints < 1):
            raise StudyError(f"{about} has a budget that leaves no model: {budget}")
        for method in methods.values():
            if "/" in method.name or method.name == "start":
                raise StudyError(
                    f"{about} has a method {method.name!r}: a name has no slash and is not start"
                )
            if method.same_as:
                _check_same(study, experiment, method)


def _check_same(study: Study, experiment: Experiment, method: Method) -> None:
    """The runs that stand in exist: the other's pairs and seeds cover the experiment's."""
    about = f"experiment {experiment.name}: {method.name} is the same as {method.same_as}"
    try:
        name, other_method = method.same_as or ("", "")
        other = study.experiments[name]
        found = other.methods[other_method]
    except (KeyError, ValueError):
        raise StudyError(f"{about}, which is not EXPERIMENT/METHOD of this study") from None
    if found.same_as:
        raise StudyError(f"{about}, which has no runs of its own: name {found.same_as} itself")
    for mine, theirs in ((experiment.pairs, other.pairs), (experiment.seeds, other.seeds)):
        if not set(mine) <= set(theirs):
            raise StudyError(f"{about}, which does not have all its pairs and seeds")
    for what in ("budget", "train_inputs"):
        if getattr(other, what) != getattr(experiment, what):
            raise StudyError(f"{about}, which has another {what}")
