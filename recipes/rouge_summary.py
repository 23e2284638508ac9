"""Print one table of ROUGE: F1 of each run's output, and paired bootstrap against the first run.

ROUGE-1, -2, -L and -Lsum by rouge-score with Porter's stemmer, in percent, the mean over the test
documents. Of several references, REFERENCES being the first and REFERENCES1, …2 … further ones
(empty lines: none), the best one counts: for each variant on its own, as in rouge-score and in the
rewards, and once more that of the best ROUGE-1 for all variants, as SciTLDR's scripts/cal-rouge.py
has it (columns "R2 by R1" and "RL by R1").
"""

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

try:
    from rouge_score.rouge_scorer import RougeScorer
except ImportError:
    raise SystemExit(
        "error: the table of ROUGE needs rouge-score: pip install rouge-score rapidfuzz"
    ) from None

MODES = ("beam5", "greedy")
VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
COLUMNS = ("R1", "R2", "RL", "RLsum", "R2 by R1", "RL by R1")
BY_SENTENCES = ("RLsum",)  # as RL where sentences are not separated
OF_SEVERAL = ("R2 by R1", "RL by R1")  # as R2 and RL with one reference
RESAMPLES = 1000
SIGNIFICANT = 0.05


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def read_references(path: Path) -> list[list[str]]:
    """[documents] references of each."""
    further = sorted(path.parent.glob(f"{path.name}[1-9]"))
    lists = [read(file) for file in (path, *further)]
    if len({len(lines) for lines in lists}) != 1:
        raise SystemExit(f"error: {path} and its further references differ in their lines")
    return [[text for text in texts if text] for texts in zip(*lists)]


def document_scores(
    scorer: RougeScorer, hypothesis: str, references: Sequence[str]
) -> tuple[float, ...]:
    """F1 of one document, in percent, by COLUMNS."""
    found = [scorer.score(reference, hypothesis) for reference in references]
    values = 100 * np.array([[scores[name].fmeasure for name in VARIANTS] for scores in found])
    one = values[values[:, 0].argmax()]  # the first of equals, as theirs
    return (*values.max(axis=0), *one[1:3])


def run_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], separator: str = ""
) -> np.ndarray:
    """[documents, COLUMNS]; `separator` stands between the sentences of a text."""
    if len(hypotheses) != len(references):
        raise SystemExit(f"error: {len(hypotheses)} outputs for {len(references)} documents")
    scorer = RougeScorer(VARIANTS, use_stemmer=True)

    def lines(text: str) -> str:
        return text.replace(separator, "\n") if separator else text

    return np.array(
        [
            document_scores(scorer, lines(text), [lines(reference) for reference in own])
            for text, own in zip(hypotheses, references)
        ]
    )


def bootstrap_p(
    run: np.ndarray, base: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Two-sided p of each column's difference, [COLUMNS] (Koehn 2004).

    Documents are drawn with replacement, the same for both. With D the difference of the means, and
    D_b that of resample b, p = (1 + #{b: |D_b − mean(D_b)| ≥ |D|}) / (1 + resamples): moved to the
    mean 0, the differences are what chance makes where there is none.
    """
    difference = run - base
    drawn = np.random.default_rng(seed).integers(len(run), size=(resamples, len(run)))
    by_chance = np.stack([difference[documents].mean(axis=0) for documents in drawn])
    extreme = np.abs(by_chance - by_chance.mean(axis=0)) >= np.abs(difference.mean(axis=0))
    return (1 + extreme.sum(axis=0)) / (1 + resamples)


def table_row(
    run: str, mode: str, scores: np.ndarray, base: np.ndarray, shown: Sequence[int], seed: int
) -> list[str]:
    """Run, search, and for each column that is shown mean, difference to `base` and p."""
    means, change = scores.mean(axis=0), (scores - base).mean(axis=0)
    p = bootstrap_p(scores, base, seed)
    cells = [run, mode]
    for i in shown:
        against = ["", ""] if scores is base else [f"{change[i]:+.2f}", f"{p[i]:.3f}"]
        cells += [f"{means[i]:.2f}", *against]
    return cells


def read_costs(path: Path | None) -> dict[str, list[str]]:
    """{run: [minutes, peak MB]} of what costs.py printed; nothing without it."""
    if path is None:
        return {}
    costs = json.loads(path.read_text(encoding="utf-8"))
    return {
        run: [f"{cost['minutes']:.1f}", f"{cost['peak_mb'] or '?'} {cost['memory']}"]
        for run, cost in costs.items()
    }


def verdict(found: dict[tuple[str, str], np.ndarray], of: str, runs: list[str], seed: int) -> str:
    """In words: what run ``of`` has over each of the others, in the mean of ROUGE-1, -2 and -L."""
    lines = []
    for other in [run for run in runs if run != of]:
        parts, clear = [], []
        for mode in MODES:
            one, two = (found[run, mode][:, :3].mean(axis=1, keepdims=True) for run in (of, other))
            gain, p = float((one - two).mean()), float(bootstrap_p(one, two, seed)[0])
            parts.append(f"{gain:+.2f} mean ROUGE with {mode} (p = {p:.3f})")
            clear.append(("better" if gain > 0 else "worse") if p < SIGNIFICANT else "no different")
        told = " and ".join(f"{one} with {mode}" for one, mode in zip(clear, MODES))
        same = "no significant difference" if set(clear) == {"no different"} else told
        lines.append(f"{of} against {other}: {', '.join(parts)}: {same}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--separator", default="", help="between the sentences of a text")
    parser.add_argument("--seed", type=int, required=True, help="of the bootstrap")
    parser.add_argument("--of", help="the run that is compared with the others, in words")
    parser.add_argument("--costs", type=Path, help="what costs.py printed: time and memory")
    args = parser.parse_args()

    references = read_references(args.references)
    most = max(len(own) for own in references)
    left_out = (() if args.separator else BY_SENTENCES) + (() if most > 1 else OF_SEVERAL)
    shown = [i for i, column in enumerate(COLUMNS) if column not in left_out]
    rows = [["run", "search"], []]
    for i in shown:
        rows[0] += [COLUMNS[i], "+/-", "p"]
    costs = read_costs(args.costs)
    rows[0] += ["length ratio"] + ["minutes", "peak MB"] * bool(costs)
    found: dict[tuple[str, str], np.ndarray] = {}
    for mode in MODES:
        base = None
        for run in args.runs:
            hypotheses = read(args.out / f"{run}.{mode}.txt")
            scores = run_scores(hypotheses, references, args.separator)
            base = scores if base is None else base
            found[run, mode] = scores
            words = sum(len(text.split()) for text in hypotheses)
            ratio = words / sum(len(own[0].split()) for own in references)
            row = [*table_row(run, mode, scores, base, shown, args.seed), f"{ratio:.3f}"]
            rows.append(row + (costs.get(run, ["", ""]) if costs else []))
            result = {COLUMNS[i]: round(float(scores[:, i].mean()), 4) for i in shown}
            result["length_ratio"] = round(ratio, 4)
            (args.out / f"{run}.{mode}.json").write_text(json.dumps(result) + "\n")

    print(f"\nTest set, detokenised; +/- and p (paired bootstrap) against {args.runs[0]}:\n")
    widths = [max(map(len, column)) for column in zip(*filter(None, rows))]
    rows[1] = ["-" * width for width in widths]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if args.of:
        print("\n" + verdict(found, args.of, args.runs, args.seed))
        print(f"(significant: p below {SIGNIFICANT}, of both sides)")
    several = f"best of up to {most} references" if most > 1 else "one reference"
    print(f"\nF1 in percent, {several}, Porter's stemmer, rouge-score {version('rouge-score')}")
    print(f"{len(references)} documents, {RESAMPLES} resamples, seed {args.seed}")


if __name__ == "__main__":
    main()
