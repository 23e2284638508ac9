"""Print one table of what `score` in lib.sh left in OUT: the runs, the first being the baseline."""

import argparse
import json
import re
from pathlib import Path

MODES = ("beam5", "greedy")


def p_values(comparison: str, run: str, mode: str) -> tuple[str, str]:
    """BLEU's and chrF's p in sacreBLEU's table: on the line below the system's scores.

    (Its JSON output would be better to read, but fails with numpy 2 in sacreBLEU 2.6.0.)
    """
    lines = comparison.splitlines()
    for line, following in zip(lines, lines[1:]):
        if re.search(rf"\b{re.escape(run)}\.{mode}\.txt\s*│", line):
            found = re.findall(r"p = ([\d.]+)", following)
            if len(found) == 2:
                return found[0], found[1]
    raise SystemExit(f"error: no p-values of {run}.{mode} in sacreBLEU's comparison:\n{comparison}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", required=True, help="sacreBLEU's tables, before .MODE.txt")
    args = parser.parse_args()

    header = ["run", "search", "BLEU", "+/-", "p", "chrF2", "+/-", "p", "length ratio"]
    rows: list[list[str]] = []
    signatures = {}
    for mode in MODES:
        comparison = Path(f"{args.compare}.{mode}.txt").read_text(encoding="utf-8")
        base = {}
        for run in args.runs:
            metrics = json.loads((args.out / f"{run}.{mode}.json").read_text(encoding="utf-8"))
            bleu, chrf = metrics
            scores = {"bleu": float(bleu["score"]), "chrf": float(chrf["score"])}
            signatures.update({metric["name"]: metric["signature"] for metric in metrics})
            ratio = re.search(r"ratio = ([\d.]+)", bleu["verbose_score"])
            if run == args.runs[0]:
                base = scores
                change = ["", "", "", ""]
            elif scores == base:
                # Of equal systems sacreBLEU says p = 0.001: no resample differs by more than 0.
                change = ["+0.00", "-", "+0.00", "-"]
            else:
                p_bleu, p_chrf = p_values(comparison, run, mode)
                change = [f"{scores['bleu'] - base['bleu']:+.2f}", p_bleu]
                change += [f"{scores['chrf'] - base['chrf']:+.2f}", p_chrf]
            row = [run, mode, f"{scores['bleu']:.2f}", *change[:2], f"{scores['chrf']:.2f}"]
            rows.append([*row, *change[2:], ratio.group(1) if ratio else "?"])

    print(f"\nTest set, detokenised; +/- and p (paired bootstrap) against {args.runs[0]}:\n")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print()
    for name, signature in signatures.items():
        print(f"{name}: {signature}")


if __name__ == "__main__":
    main()
