"""``esrl-report SAVE_DIR…``, also ``python -m esrl_fairseq.report``: writes the page."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.report import facts, training
from esrl_fairseq.report.figures import Section
from esrl_fairseq.report.page import GENERATOR, page, plotting_script, summary_of
from esrl_fairseq.report.reading import Recorded, names_of, read_run

NAME = "report.html"


def make_parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = argparse.ArgumentParser(
        "esrl-report",
        description="Writes one HTML file about a training, or several: see docs/report.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="SAVE_DIR", help="--save-dir of a training")
    parser.add_argument("--output", help=f"the file (default: {NAME} in the first folder)")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="translate with the start model and checkpoint_best.pt, and compare them",
    )
    parser.add_argument("--subset", default="test", help="of the data, for --evaluate")
    parser.add_argument("--data", help="binarized data for --evaluate (default: the training's)")
    parser.add_argument("--start", help="checkpoint for --evaluate (default: the run's own start)")
    parser.add_argument("--beam", type=int, default=5, help="beam size of --evaluate")
    parser.add_argument(
        "--max-tokens", type=int, default=12000, help="tokens of a batch of --evaluate"
    )
    parser.add_argument("--cpu", action="store_true", help="evaluate on the CPU")
    return parser


def check_output(path: str) -> None:
    """Refuse to write over what is no report.

    Raises:
        EsrlError: naming the file, or the folder that there is not.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise EsrlError(f"there is no folder {folder} for the report: make it, or change --output")
    if os.path.isdir(path):
        raise EsrlError(f"--output {path} is a folder: give a file, such as {path}/{NAME}")
    if os.path.exists(path):
        with open(path, "rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise EsrlError(f"{path} is there already and no report: give another --output")


def main(words: Sequence[str] | None = None) -> None:
    """Write the page, and say where it is.

    Args:
        words: of the command line; None: this process's.

    Raises:
        EsrlError: what was given does not fit, or something is missing.
    """
    given = make_parser().parse_args(words)
    logging.getLogger().setLevel(logging.WARNING)  # fairseq has it tell of all that it loads
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    logging.getLogger("esrl_fairseq").setLevel(logging.INFO)
    if given.evaluate and len(given.folders) > 1:
        raise EsrlError("--evaluate compares a run with its start: give one folder")
    names = names_of(given.folders)
    runs = [read_run(f, name, not given.evaluate) for f, name in zip(given.folders, names)]
    output = given.output or os.path.join(given.folders[0], NAME)
    check_output(output)
    script = plotting_script()
    sections: list[Section] = []
    if given.evaluate:
        from esrl_fairseq.report import outcome  # imports fairseq's tasks: only where needed

        sections += outcome.sections(runs[0], given)
    recorded = [run for run in runs if run.records]
    write(output, title_of(runs), recorded, sections, script)
    print(f"{output} is written: open it in a browser")


def title_of(runs: Sequence[Recorded]) -> str:
    """Of the page."""
    return f"ESRL: {', '.join(run.name for run in runs)}"


def write(
    output: str, title: str, runs: Sequence[Recorded], sections: Sequence[Section], script: str
) -> None:
    """Make the page of what there is, and write it whole or not at all."""
    tiles = summary_of([(run.name, facts.tiles(run)) for run in runs])
    found = list(sections)
    if runs:
        found += training.sections(runs)
        found += [facts.samples(runs), facts.warnings(runs), facts.what_was_run(runs)]
    whole = page(title, tiles, found, script)
    try:
        with open(f"{output}.partial", "w", encoding="utf-8", errors="replace") as file:
            file.write(whole)
        os.replace(f"{output}.partial", output)
    except OSError as error:
        raise EsrlError(f"{output} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    main()
