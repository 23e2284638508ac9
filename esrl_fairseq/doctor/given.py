"""A command of fairseq-train: from its words to fairseq's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fairseq import options
from fairseq.dataclass.initialize import add_defaults
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import open_dict

from esrl_fairseq.checks.hints import explain
from esrl_fairseq.doctor.findings import OK, WARNING, WRONG
from esrl_fairseq.doctor.road import Road
from esrl_fairseq.processes import launch

PACKAGE = Path(__file__).resolve().parents[1]
USER_DIR = "--user-dir"
TAKEN = {"--criterion": "esrl", "--task": "esrl_translation", "--optimizer": "adam"}
"""What is taken of data and a start model alone."""
BATCH = ("--batch-size", "--max-sentences", "--max-tokens")
STAND_IN = ("transformer_tiny", "transformer_lm")
"""Architectures of translation, and of language models: so that the rest can be looked at where the
start model tells none."""


def values(words: list[str], option: str) -> list[str]:
    """What an option is given, each time."""
    found = []
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name == option:
            found.append(value if equals else following)
    return found


def without(words: list[str], option: str) -> list[str]:
    """The words without an option and its value."""
    found, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] != option:
            found.append(word)
        skip = not skip and word == option
    return found


def completed(road: Road, words: list[str], whole: bool) -> list[str]:
    """The words, with what data and a start model alone leave out.

    Args:
        whole: whether they are a command, to which nothing is added.
    """
    own = values(words, USER_DIR)
    first = [word for word in words[:2] if not word.startswith("-")]
    if not whole and len(first) == 2:  # data, start model
        words = [words[0], "--finetune-from-model", *words[1:]]
    elif whole or values(words, "--criterion"):
        return check_user_dir(road, words, own)
    taken = dict(TAKEN)
    if Path(words[0], "dict.txt").exists():  # of one side alone
        taken["--task"] = "esrl_language_modeling"
    added = [w for option, x in taken.items() if not values(words, option) for w in (option, x)]
    if not any(values(words, option) for option in BATCH):
        added += ["--batch-size", "32"]
    if added:
        road.add("command", OK, f"taken, as they are not given: {' '.join(added)}")
    return check_user_dir(road, [*words, *added], own or [str(PACKAGE)])


def check_user_dir(road: Road, words: list[str], given: list[str]) -> list[str]:
    """Look at ``--user-dir``; the words without it where it is this package, which is loaded."""
    what = "command"
    if not given:
        mend = f"add {USER_DIR} {PACKAGE}"
        road.add(what, WRONG, f"{USER_DIR} is missing: fairseq does not know this package", mend)
        return words
    folder = Path(given[-1])
    if not folder.is_dir():
        mend = f"give {USER_DIR} {PACKAGE}"
        road.add(what, WRONG, f"{USER_DIR} {folder} is no folder", mend)
        return without(words, USER_DIR)
    copies = [f for f in (folder, folder / "esrl_fairseq") if (f / "sampling_task.py").exists()]
    if not copies:
        return words  # a package of the user's own, which fairseq imports
    if copies[0].resolve() != PACKAGE:
        says = f"{USER_DIR} {folder} is another copy of esrl_fairseq than this one, {PACKAGE}"
        mend = f"run python -m esrl_fairseq.doctor in {copies[0].resolve().parent}"
        road.add(what, WARNING, says, mend)
    return without(words, USER_DIR)


def configuration(road: Road, words: list[str]) -> tuple[Any, bool]:
    """fairseq's, and whether the architecture is that of the command; None where the command
    cannot be read."""
    args = road.step("command", lambda: parse(road, words))
    known = args is not None
    tasks = values(words, "--task")
    if not known and tasks and not values(words, "--arch"):
        arch = STAND_IN["language" in tasks[-1]]
        args = road.step("command", lambda: parse(road, [*words, "--arch", arch]))
    if args is None:
        return None, False
    return road.step("command", lambda: prepared(road, args)), known


def parse(road: Road, words: list[str]) -> Any:
    """The options; those that are not known are a finding."""
    parser = options.get_training_parser()
    args, unknown = options.parse_args_and_arch(parser, input_args=words, parse_known=True)
    if unknown:
        message = f"unrecognized arguments: {' '.join(unknown)}"
        road.add("command", WRONG, explain(message, parser, vars(args)))
    return args


def prepared(road: Road, args: Any) -> Any:
    """The configuration, with nothing in it that would be written or started."""
    cfg = convert_namespace_to_omegaconf(args)
    add_defaults(cfg)
    road.step("ranks", lambda: launch.prepare(cfg))
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        says = "neither --batch-size nor --max-tokens is given, of which fairseq needs one"
        road.add("command", WRONG, says, "try --batch-size 32")
        cfg.dataset.batch_size = cfg.dataset.batch_size_valid = 32
    if not cfg.checkpoint.no_save:
        road.step("save folder", lambda: check_save_dir(road, cfg.checkpoint.save_dir))
    with open_dict(cfg):
        cfg.checkpoint.no_save = True
        cfg.dataset.num_workers = 0
        common, ranks = cfg.common, cfg.distributed_training
        common.log_format, common.no_progress_bar = "none", True
        common.tensorboard_logdir = common.wandb_project = common.log_file = None
        common.azureml_logging, common.aim_repo = False, None
        ranks.distributed_world_size, ranks.distributed_rank = 1, 0
        ranks.distributed_init_method, ranks.distributed_no_spawn = None, True
        ranks.device_id = 0
        if getattr(cfg.task, "capability_store", None):
            cfg.task.capability_store = None
        if hasattr(cfg.criterion, "show_samples"):
            cfg.criterion.show_samples = 0
    return cfg


def check_save_dir(road: Road, folder: str) -> None:
    """Whether checkpoints can be written there, without writing any."""
    place = os.path.abspath(folder)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        why = "not writable" if os.path.isdir(place) else "a file"
        says = f"--save-dir {folder} cannot be written to ({place} is {why}): choose another one"
        road.add("save folder", WRONG, says)
    else:
        road.fits("save folder", f"{folder} can be written to")
