"""The parts of gpu.sh that are no benchmark: environment, results of tests and demo, report.

See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from about import Row, about

CASE = (
    "method",
    "engine",
    "peer",
    "check",
    "setting",
    "beta",
    "precision",
    "decoding",
    "params",
    "k",
)
"""Of a benchmark's row, what names its case."""
COLUMNS = {"seconds": "seconds", "tokens_per_s": "tokens/s", "peak_mb": "peak MB"}
FURTHER = (
    "two_stage_time", "esrl_speedup", "gemm_share", "to_beta_0", "to_trl_time", "gradient",
    "cosine", "apart", "apart_most", "bias", "from_fp32", "gradient_cosine", "launches",
    "synchronisations", "copies", "operators", "device_seconds", "idle",
    "tests", "failures", "skipped", "names", "BLEU", "chrF", "reason",
)  # fmt: skip
TABLES = (
    "update", "stage_one", "epoch", "precision", "peers", "profile_update", "compiled", "tests",
    "demo",
)  # fmt: skip


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("device", "check", "tests", "demo", "report"):
        part = parts.add_parser(name)
        if name != "device":
            part.add_argument("folder", type=Path, help="gpu.sh's --output")
        if name in ("device", "check"):
            part.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.part == "device":
        refuse_missing(options.device)
    elif options.part == "check":
        check(options.folder, options.device)
    else:
        {"tests": tests, "demo": demo, "report": report}[options.part](options.folder)


# Environment


def refuse_missing(device: str) -> None:
    """End with one sentence where there is no such device."""
    if device == "cpu":
        return
    import torch

    if torch.cuda.is_available():
        return
    driver = nvidia("name,driver_version")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    sys.exit(
        f"error: torch {torch.__version__} (built with {built}) finds no GPU, and "
        f"{f'nvidia-smi shows {driver}' if driver else 'there is no nvidia-smi that shows one'}: "
        "run this on a machine with a GPU and a torch for it (make env TORCH=...), or try the "
        "script with --device cpu --quick"
    )


def check(folder: Path, device: str) -> None:
    """Device, driver and versions → check.json, and one tiny product on the device."""
    import torch

    refuse_missing(device)
    found: Row = {"device": device, "driver": None, "cuda": torch.version.cuda}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found.update(
            device=properties.name,
            devices=torch.cuda.device_count(),
            memory_gb=round(properties.total_memory / 1e9, 1),
            capability="{}.{}".format(*torch.cuda.get_device_capability(0)),
            driver=nvidia("driver_version"),
            clocks=nvidia("clocks.max.sm,power.limit"),
            in_use=nvidia("memory.used,utilization.gpu"),
            bf16=torch.cuda.is_bf16_supported(),
        )
    else:
        found["device"] = f"CPU ({platform.machine()})"
    x = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
    found["product"] = float((x @ x).sum())
    found.update(about(found["device"] if device == "cuda" else ""))
    write(folder / "check.json", found)
    for key, value in found.items():
        print(f"{key:>10}: {value}")
    if found["product"] != 512:
        sys.exit(f"error: a product of ones in bf16 is {found['product']} there, not 512")


def nvidia(fields: str) -> str | None:
    """What nvidia-smi says of the first GPU."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


# Results that are no JSON yet


def tests(folder: Path) -> None:
    """pytest's tests.xml → tests.json: how many, and the names of those that failed."""
    file = folder / "tests.xml"
    if not file.exists():
        sys.exit("error: pytest has left no tests.xml: it did not come to its end")
    suite = next(ElementTree.parse(file).getroot().iter("testsuite"))
    names = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    row: Row = {
        "tests": int(suite.get("tests", 0)),
        "failures": len(names),
        "skipped": int(suite.get("skipped", 0)),
        "seconds": float(suite.get("time", 0)),
        "names": names,
    }
    write(folder / "tests.json", [row])


def demo(folder: Path) -> None:
    """sacreBLEU's files of the demo → demo.json."""
    rows = []
    for file in sorted((folder / "demo" / "out").glob("*.json")):
        scores = json.loads(file.read_text())
        run, mode = file.stem.rsplit(".", 1)
        row = {score["name"]: score["score"] for score in scores}
        row["chrF"] = row.pop("chrF2", None)
        rows.append({"method": run, "setting": mode, **row})
    models = sorted(path.parent.name for path in (folder / "demo").glob("*/checkpoint_last.pt"))
    if not models:
        sys.exit("error: the demo has left no model: see logs/demo.log")
    rows = rows or [{"method": name} for name in models]
    write(folder / "demo.json", rows)


# Report


def report(folder: Path) -> None:
    """All that is there → RESULTS.md: where it ran, and one table."""
    parts = ("check", "tests", "tables", "profile", "compiled", "demo")
    done = [read(folder / f"{part}.part.json") for part in parts]
    done = [part for part in done if part]
    if not done:
        sys.exit(f"error: {folder} has no results: run the other parts first")
    found = read(folder / "check.json") or {}
    lines = ["# Results on a GPU", ""]
    if any(part["quick"] for part in done):
        lines += ["**Tiny sizes (`--quick`): no figures to be quoted.**", ""]
    for key in ("device", "driver", "cuda", "memory_gb", "machine", "commit"):
        if found.get(key):
            lines.append(f"- {key}: {found[key]}")
    versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
    lines += [f"- versions: {versions}"] if versions else []
    took = (f"{p['part']} {p['seconds']} s{' (failed)' if p['failed'] else ''}" for p in done)
    lines += [f"- parts: {', '.join(took)}", ""]
    lines += ["| part | case | " + " | ".join(COLUMNS.values()) + " | further |"]
    lines += ["|---" * (len(COLUMNS) + 3) + "|"]
    for name in TABLES:
        lines += [line_of(name, row) for row in read(folder / f"{name}.json") or []]
    text = "\n".join(lines) + "\n"
    (folder / "RESULTS.md").write_text(text)
    print(text)


def line_of(name: str, row: Row) -> str:
    """A row of the table."""
    case = " ".join(f"{key}={cell(row[key])}" if key in ("beta", "k") else cell(row[key])
                    for key in CASE if row.get(key) not in (None, ""))  # fmt: skip
    further = ", ".join(
        f"{key} {cell(row[key])}" for key in FURTHER if row.get(key) not in (None, [])
    )
    cells = [name, case, *(cell(row.get(key)) for key in COLUMNS), further]
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def cell(value: Any) -> str:
    """A value as the table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def read(path: Path) -> Any:
    """A JSON file's content; None without it."""
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
