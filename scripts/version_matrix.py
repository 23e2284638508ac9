"""Try the wheel on several versions of Python and torch, and write the table of docs/versions.md.

    make test-versions VERSIONS='3.11:2.13.0 3.12:2.13.0'

Each pair gets an environment of its own (scripts/setup_env.sh), the wheel in dist/ and the tests of
the sdist in dist/, which find the installed package in place of their own. Each takes some minutes
for fairseq's build and some for the tests. Rows of other pairs stay as they are.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "versions.md"
PAIRS = ["3.11:2.13.0"]
# What depends on versions of Python, torch, fairseq and numpy, in a few minutes.
TESTS = [
    *["tests/commands/test_cli_train.py", "tests/commands/test_cli_report.py"],
    *["tests/project/test_compat.py", "tests/project/test_options.py"],
    *["tests/checkpoints", "tests/core", "tests/rescoring", "tests/sampling", "tests/state"],
]
QUICK = "not slow and not long"


def interpreter(version: str) -> str:
    """The command of a Python, of the path or pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    for folder in sorted(pyenv.glob(f"{version}.*")):
        return str(folder / "bin" / "python")
    sys.exit(f"version_matrix: there is no Python {version}: install it, or leave it out")


def only(pattern: str) -> Path:
    """The one file in dist/ of that pattern."""
    files = list((ROOT / "dist").glob(pattern))
    if len(files) != 1:
        sys.exit(f"version_matrix: dist/ has {len(files)} files {pattern}: run make dist")
    return files[0]


def environment(folder: Path, python: str, torch: str, log: Path) -> Path:
    """The Python of a new environment with the wheel in it.

    Raises:
        CalledProcessError: it could not be made; the log says why.
    """
    chosen = {"PYTHON": python, "TORCH": f"torch=={torch}", "WHEEL": str(only("*.whl"))}
    command = ["scripts/setup_env.sh", str(folder / "venv")]
    if (folder / "venv").exists():  # of an earlier run; pip would leave a wheel of the same version
        own = [folder / "venv" / "bin" / "python", "-m", "pip", "uninstall", "-yq", "esrl-fairseq"]
        subprocess.run(own, check=True)
    with open(log, "a") as out:
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, **chosen}, stdout=out, stderr=out, check=True
        )
    return folder / "venv" / "bin" / "python"


def tests_of(folder: Path, python: Path) -> Path:
    """The sdist, unpacked, whose package is the installed one."""
    source = folder / "esrl_fairseq"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    unpack = ["tar", "-xzf", only("*.tar.gz"), "-C", source, "--strip-components=1"]
    subprocess.run(unpack, check=True)
    shutil.rmtree(source / "esrl_fairseq")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (source / "esrl_fairseq").symlink_to(Path(output(python, "-c", code)) / "esrl_fairseq")
    return source


def output(python: Path, *words: str) -> str:
    return subprocess.run(
        [python, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def tried(folder: Path, version: str, torch: str, tests: list[str]) -> list[str]:
    """A row of the table: Python, torch, fairseq-fixed, NumPy, what came out, and the day."""
    log = folder / "log"
    day = date.today().isoformat()
    try:
        python = environment(folder, interpreter(version), torch, log)
    except subprocess.CalledProcessError:
        return [version, torch, "", "", f"not installed: {last_line(log)}", day]
    names = ("torch", "fairseq-fixed", "numpy")
    code = f"import importlib.metadata as m; print(*map(m.version, {names}))"
    versions = output(python, "-c", code).split()
    command = [python, "-m", "pytest", "-q", "-m", QUICK, "-p", "no:cacheprovider", *tests]
    with open(log, "a") as out:
        subprocess.run(
            command,
            cwd=tests_of(folder, python),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
        )
    result = re.sub(r" in [\d.]+s.*| \([\d:]+\)|, \d+ (deselected|warnings?)", "", last_line(log))
    full = output(python, "-c", "import platform; print(platform.python_version())")
    result = result.strip("= ")
    if tests != TESTS:
        result += f" (of {', '.join(tests)})"
    return [full, *versions, result, day]


def last_line(log: Path) -> str:
    return log.read_text().rstrip().rpartition("\n")[2].replace("|", "/")


def write(row: list[str]) -> None:
    """Put a row into the page's table, in the place of one of the same Python and torch."""
    head, rule, tail = PAGE.read_text(encoding="utf-8").partition("|---|---|---|---|---|---|\n")
    lines, blank, tail = tail.partition("\n\n")  # other tables follow
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    rows = [old for old in rows if pair(old) != pair(row)] + [row]
    rows.sort(key=pair)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    PAGE.write_text(head + rule + table + blank + tail, encoding="utf-8")


def pair(row: list[str]) -> list[tuple[int, ...]]:
    """Minor version of Python, and torch's without its build."""
    python = tuple(map(int, row[0].split(".")[:2]))
    return [python, tuple(map(int, row[1].partition("+")[0].split(".")))]


def main() -> None:
    parser = argparse.ArgumentParser("version_matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="PYTHON:TORCH")
    parser.add_argument("--folder", type=Path, help="for the environments and logs, kept")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders of tests")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    failed = False
    for text in given.pairs:
        version, torch = text.split(":")
        own = folder / text.replace(":", "-")
        own.mkdir(parents=True, exist_ok=True)
        row = tried(own, version, torch, given.tests)
        print(" | ".join(row), flush=True)
        write(row)
        failed |= "passed" not in row[4] or "failed" in row[4] or "error" in row[4]
    if given.folder is None and not failed:
        shutil.rmtree(folder)
    elif failed:
        sys.exit(f"version_matrix: the logs are in {folder}")


if __name__ == "__main__":
    main()
