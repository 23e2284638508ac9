"""``esrl-doctor``, also ``python -m esrl_fairseq.doctor``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from esrl_fairseq.doctor.environment import look_around, without_imports
from esrl_fairseq.doctor.findings import OK, WRONG, Finding, shown, verdict

HELP = """\
usage: esrl-doctor
       esrl-doctor DATA START_MODEL [options of fairseq-train]
       esrl-doctor fairseq-train DATA [options]

Says what is wrong, and what to do about it. Nothing is trained, and nothing is written.

Alone it looks at the environment: Python, fairseq, torch and what else they need, GPU,
memory, disk, optional packages.

With a command of fairseq-train behind it, it makes the checks that the training would make
before its first update: options, data, vocabulary, architecture, sub-words, lengths, reward,
start model, memory. Of data and a start model alone it takes --task esrl_translation
--criterion esrl --batch-size 32.

The exit code is 1 where something is wrong, otherwise 0.
"""
COMMANDS = ("fairseq-train", "fairseq_cli.train", "train.py")


def main(words: Sequence[str] | None = None) -> int:
    """Look, and print what was found.

    Args:
        words: of the command line; None: this process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    training, whole = training_words(words)
    if not whole and training and training[0].startswith("fairseq"):
        says = f"{training[0]} trains nothing: give fairseq-train and its options"
        return tell([Finding("command", WRONG, says)])
    if not words:
        return tell(look_around())
    logging.getLogger().addHandler(logging.NullHandler())  # libraries talk while they are imported
    try:
        from esrl_fairseq.doctor.training import look_at_training  # imports torch and fairseq
    except (Exception, SystemExit) as error:
        says = f"not looked at, because fairseq cannot be used ({type(error).__name__}: {error})"
        bad = [finding for finding in look_around() if finding.level != OK]
        return tell([*bad, Finding("training", WRONG, says, "mend the environment first")])
    around = [*without_imports(save_dir(training)), *look_at_training(training, whole)]
    return tell([f for f in around if f.level != OK] + [f for f in around if f.level == OK])


def tell(findings: list[Finding]) -> int:
    """Print findings; the exit code."""
    print(shown(findings))
    print(f"\n{verdict(findings)}")
    return int(any(finding.level == WRONG for finding in findings))


def save_dir(words: list[str]) -> str:
    """Where checkpoints will be; the folder of this process where it is not said."""
    for word, following in zip(words, [*words[1:], ""]):
        name, _, value = word.partition("=")
        if name == "--save-dir":
            return value or following or "."
    return "."


def training_words(words: list[str]) -> tuple[list[str], bool]:
    """The words of fairseq-train, without what stands before them, and whether it stood there."""
    for place, word in enumerate(words):
        if os.path.basename(word) in COMMANDS:
            return words[place + 1 :], True
    return words, False
