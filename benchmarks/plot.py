"""The scaling plot: time, memory and speed against K, parameters and length, from JSON rows.

Takes rows of stage_one.py and update.py, several files if need be. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
AXES = {"k": "samples per input", "parameters": "parameters", "length": "tokens of a sample"}
PANELS = (  # value, what names a line, label
    ("seconds", "method", "seconds of an update"),
    ("peak_bytes", "method", "peak bytes above the model"),
    ("tokens_per_s", "engine", "stage one, tokens/s"),
)
BOUND = "gemm"


def main() -> None:
    """One row of panels a value, one column an axis."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", help="of --json, by stage_one.py and update.py")
    parser.add_argument("--output", default="scaling.png", help="the plot")
    parser.add_argument("--k", type=int, default=16, help="where another axis varies")
    parser.add_argument("--params", default="3M", help="likewise")
    parser.add_argument("--length", type=int, default=16, help="likewise")
    options = parser.parse_args()
    rows = [row for file in options.files for row in json.loads(Path(file).read_text())]
    fixed = {"k": options.k, "params": options.params, "length": options.length}
    draw(rows, fixed, options.output)


def draw(rows: list[Row], fixed: Row, output: str) -> None:
    """Write the picture; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the plot needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(PANELS), len(AXES), figsize=(13, 11), squeeze=False)
    for panels, (value, by, label) in zip(grid, PANELS):
        for panel, (axis, axis_label) in zip(panels, AXES.items()):
            for name, points in lines(rows, axis, value, by, fixed).items():
                bound = name == BOUND
                text = "matrix products alone" if bound else name
                panel.plot(*zip(*points), "k--" if bound else "o-", label=text)
            panel.set(xlabel=axis_label, ylabel=label, xscale="log", yscale="log")
            if panel.lines:
                panel.legend(fontsize="small")
                at = sorted({x for line in panel.lines for x in line.get_xdata()})
                panel.set_xticks(at, [short(x) for x in at])
                panel.set_xticks([], minor=True)
    about = sorted({f"{row['machine']}, {row['dtype']}, commit {row['commit']}" for row in rows})
    figure.suptitle("\n".join(about), fontsize="small")
    figure.tight_layout()
    figure.savefig(output, dpi=150)


def short(number: float) -> str:
    """3123456 -> 3.1M."""
    return f"{number / 1e6:.2g}M" if number >= 1e6 else f"{number:g}"


def lines(
    rows: list[Row], axis: str, value: str, by: str, fixed: Row
) -> dict[str, list[tuple[float, float]]]:
    """Points (axis, value) by name, of rows that lie at ``fixed`` on the other axes."""
    own = {"parameters": "params"}.get(axis, axis)
    others = {key: at for key, at in fixed.items() if key != own}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        here = all(row.get(key) in (at, None) for key, at in others.items())
        if here and by in row and row.get(value) is not None and row.get(axis) is not None:
            found.setdefault(row[by], []).append((row[axis], row[value]))
    return {name: sorted(points) for name, points in found.items()}


if __name__ == "__main__":
    main()
