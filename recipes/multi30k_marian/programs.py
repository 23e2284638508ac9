"""The same translations by several programs: how many lines are equal, and each one's scores.

Of each program there is a folder with RUN.{beam5,greedy}.txt. Lines that differ from the first
program's are written down, for whoever wants to know why.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

MODES = ("beam5", "greedy")
HEADER = ["run", "search", "program", "equal lines", "BLEU", "+/-", "p", "chrF2", "+/-", "p"]
# Several of the outputs may be equal, which sacreBLEU's bootstrap would call significant.
SAME = ["+0.00", "-"]


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def scores_of(systems: Sequence[tuple[str, list[str]]], reference: list[str]) -> list[list[str]]:
    """Cells of each system; the first one is what the others are compared with."""
    metrics = {"BLEU": BLEU(references=[reference]), "chrF2": CHRF(references=[reference])}
    _, found = PairedTest(systems, metrics, references=None, test_type="bs")()
    rows = []
    for place, (_, lines) in enumerate(systems):
        cells = []
        for name in metrics:
            base, own = found[name][0], found[name][place]
            change = [f"{own.score - base.score:+.2f}", f"{own.p_value or 0:.4f}"]
            if not place:
                change = ["", ""]
            elif lines == systems[0][1]:
                change = SAME
            cells += [f"{own.score:.2f}", *change]
        rows.append(cells)
    return rows


def differences(name: str, lines: list[str], own: list[str]) -> list[str]:
    """Lines about those that are not equal."""
    pairs = enumerate(zip(lines, own), 1)
    return [f"{name}, line {i}:\n    {a}\n    {b}\n" for i, (a, b) in pairs if a != b]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--program", nargs=2, action="append", metavar=("NAME", "FOLDER"))
    parser.add_argument("--differences", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    reference, rows, told = read(given.reference), [HEADER], []
    for mode in MODES:
        of: dict[str, list[list[str]]] = {}
        for program, folder in given.program:
            lines = [(run, read(Path(folder) / f"{run}.{mode}.txt")) for run in given.runs]
            for (run, texts), cells in zip(lines, scores_of(lines, reference)):
                first = of.setdefault(run, [texts])[0]
                equal = sum(a == b for a, b in zip(texts, first, strict=True))
                told += differences(f"{run}, {mode}, {program}", first, texts)
                rows.append([run, mode, program, f"{equal} of {len(texts)}", *cells])
    given.differences.write_text("".join(told), encoding="utf-8")
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    print("\nThe same test set by other programs, from the exported folders; equal: to the line of")
    print(f"{given.program[0][0]}. +/- and p against {given.runs[0]} by the same program:\n")
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\n{len(told)} lines differ: {given.differences}" if told else "\nNo line differs.")


if __name__ == "__main__":
    main()
