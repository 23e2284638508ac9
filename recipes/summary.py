"""Print one table of what `score` in lib.sh left in OUT: the runs, the first being the baseline."""

import argparse
import json
import re
from pathlib import Path

MODES = ("beam5", "greedy")
SIGNIFICANT = 0.025  # of one side


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


def read_costs(path: Path | None) -> dict[str, list[str]]:
    """{run: [minutes, peak MB]} of what costs.py printed; nothing without it."""
    if path is None:
        return {}
    costs = json.loads(path.read_text(encoding="utf-8"))
    return {
        run: [f"{cost['minutes']:.1f}", f"{cost['peak_mb'] or '?'} {cost['memory']}"]
        for run, cost in costs.items()
    }


def tokenised_bleu(log: Path) -> str:
    """fairseq-generate's own, on tokens, from its last line."""
    found = re.findall(r"BLEU4 = ([\d.]+)", log.read_text(encoding="utf-8"))
    return found[-1] if found else "?"


def scores_of(folder: Path, run: str, mode: str) -> list[float]:
    """BLEU and chrF2."""
    metrics = json.loads((folder / f"{run}.{mode}.json").read_text(encoding="utf-8"))
    return [float(metric["score"]) for metric in metrics]


def verdict(compare: str, folder: Path, of: str, runs: list[str]) -> list[str]:
    """In words: what run ``of`` has over the start, and over each of the others, in BLEU."""
    lines = []
    for other in [run for run in runs if run != of]:
        # sacreBLEU compares with its first run: the start in one table, `of` in the other.
        table, row = (compare, of) if other == runs[0] else (f"{compare}.others", other)
        parts, clear = [], []
        for mode in MODES:
            own, theirs = scores_of(folder, of, mode), scores_of(folder, other, mode)
            if own == theirs:  # see main: p would say nothing
                parts.append(f"equal scores with {mode}")
                clear.append(0)
                continue
            comparison = Path(f"{table}.{mode}.txt").read_text(encoding="utf-8")
            p, gain = p_values(comparison, row, mode)[0], own[0] - theirs[0]
            parts.append(f"{gain:+.2f} BLEU with {mode} (p = {p})")
            clear.append(0 if float(p) >= SIGNIFICANT else 1 if gain > 0 else -1)
        lines.append(f"{of} against {other}: {', '.join(parts)}: {in_words(clear)}.")
    return lines


def in_words(clear: list[int]) -> str:
    """Of 1 (significantly better), −1 (worse) and 0 for each way to search."""
    if all(one == 1 for one in clear):
        return "better, significantly with both"
    if all(one == -1 for one in clear):
        return "worse, significantly with both"
    if not any(clear):
        return "no significant difference"
    told = [
        f"significantly {'better' if one > 0 else 'worse'} with {mode}"
        for one, mode in zip(clear, MODES)
        if one
    ]
    return f"{' and '.join(told)}{'' if all(clear) else ' alone'}"


def print_table(rows: list[list[str]]) -> None:
    """The first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", required=True, help="sacreBLEU's tables, before .MODE.txt")
    parser.add_argument("--of", help="the run that is compared with the others, in words")
    parser.add_argument("--costs", type=Path, help="what costs.py printed: time and memory")
    parser.add_argument("--test-set", help="which of sacreBLEU's: it is said")
    parser.add_argument("--tokenised", action="store_true", help="BLEU on tokens, too")
    args = parser.parse_args()

    costs = read_costs(args.costs)
    header = ["run", "search", "BLEU", "+/-", "p", "chrF2", "+/-", "p", "length ratio"]
    header += ["tokenised BLEU"] * args.tokenised + ["minutes", "peak MB"] * bool(costs)
    rows: list[list[str]] = [header]
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
            header[5] = chrf["name"]  # with words, too: chrF2++
            row = [run, mode, f"{scores['bleu']:.2f}", *change[:2], f"{scores['chrf']:.2f}"]
            row += [*change[2:], ratio.group(1) if ratio else "?"]
            if args.tokenised:
                row.append(tokenised_bleu(args.out / f"{run}.{mode}.log"))
            rows.append(row + (costs.get(run, ["", ""]) if costs else []))

    print(f"\nTest set, detokenised; +/- and p (paired bootstrap) against {args.runs[0]}:\n")
    print_table(rows)
    print()
    if args.of:
        print("\n".join(verdict(args.compare, args.out, args.of, args.runs)))
        print(f"(p is sacreBLEU's, of one side: significant is below {SIGNIFICANT}.)")
    if costs:
        print("minutes: of training from the start model on, with validation.")
    if args.test_set:
        print(f"test set: sacreBLEU's {args.test_set}")
    for name, signature in signatures.items():
        print(f"{name}: {signature}")


if __name__ == "__main__":
    main()
