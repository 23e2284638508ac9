"""The environment: what fairseq and this package need of it, and what is there."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from esrl_fairseq.doctor import machine, packages
from esrl_fairseq.doctor.asking import Answers, ask
from esrl_fairseq.doctor.findings import OK, WARNING, WRONG, Finding

OLDEST_PYTHON = (3, 9)
NEW_PYTHON = (3, 11)
"""From here on fairseq 0.12.2 cannot be imported, and fairseq-fixed takes its place."""
OLDEST = {"torch": "2.5", "numpy": "1.21.3", "sacrebleu": "2.4"}
"""Versions that this package, or fairseq, needs at least."""
UNTRIED_NUMPY = (3,)
FIXED, STOCK = "fairseq-fixed", "fairseq"
REBUILD = (
    "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation {} compiles them "
    "(it needs a C++ compiler, cython and numpy)"
)
EXTENSIONS = {
    "fairseq.data.data_utils_fast": (WRONG, "no batches can be made without it"),
    "fairseq.data.token_block_utils_fast": (WARNING, "language models need it"),
    "fairseq.libbleu": (WARNING, "fairseq-generate's BLEU needs it"),
}
"""C extensions of fairseq, and what is without them."""


def right_fairseq() -> str:
    """What to install on this Python."""
    return FIXED if sys.version_info >= NEW_PYTHON else "'fairseq==0.12.2'"


def without_imports(folder: str) -> list[Finding]:
    """What can be said at once, of an environment that fairseq was imported in.

    Args:
        folder: where checkpoints will be.
    """
    return [python(), versions(), machine.memory(), machine.disk(folder)]


def look_around() -> list[Finding]:
    """All that can be said without data."""
    names = ["numpy", "torch", "numpy in torch", "gpus", "fairseq", "esrl_fairseq"]
    names += [*EXTENSIONS, "sacrebleu"]
    audio = packages.version_of("torchaudio") or packages.place_of("torchaudio")
    answers = ask([*names, "torchaudio"] if audio else names)
    found = [own(answers["esrl_fairseq"], answers["fairseq"]), python(), *fairseq(answers)]
    found += [*library("torch", answers), *library("numpy", answers), *numpy_in_torch(answers)]
    found += [torchaudio(answers), extensions(answers), *library("sacrebleu", answers)]
    found += [versions(), *machine.gpus(answers), machine.processors(answers["torch"])]
    return [*found, machine.memory(), machine.disk("."), *extras()]


def own(answer: dict[str, Any], fairseqs: dict[str, Any]) -> Finding:
    """This package itself."""
    what, where = "esrl_fairseq", Path(__file__).resolve().parents[1]
    if "error" not in answer:
        return Finding(what, OK, f"{answer['version']}, {where}")
    if "error" in fairseqs:
        return Finding(what, WARNING, f"{where}: not looked at, because fairseq cannot be imported")
    mend = f"install what it was tested with: {right_fairseq()}, and torch"
    return Finding(what, WRONG, f"{where} cannot be imported: {answer['error']}", mend)


def python() -> Finding:
    """The interpreter."""
    says = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("Python", WRONG, says, "make an environment with Python 3.11")
    return Finding("Python", OK, says)


def fairseq(answers: Answers) -> list[Finding]:
    """Which one there is, under its name; then whether it can be imported."""
    answer, file = answers["fairseq"], packages.place_of("fairseq")
    there = [name for name in (FIXED, STOCK) if packages.version_of(name)]
    names = " and ".join(f"{name} {packages.version_of(name)}" for name in there)
    install = f"pip install {right_fairseq()}"
    if file is None:
        if there:
            says = f"{names} is installed, but its files are gone"
            mend = f"{install} --force-reinstall"
        elif packages.place_of("fairseq2") or packages.version_of("fairseq2"):
            version = packages.version_of("fairseq2") or "2"
            says = f"fairseq is not installed; fairseq2 {version} is another library than fairseq"
            mend = f"{install}; both may be in one environment"
        else:
            says, mend = "fairseq is not installed", install
        return [Finding("fairseq", WRONG, says, mend)]
    if os.path.isdir(file):
        says = f"the folder {file} is no package, but Python takes it for fairseq"
        return [Finding("fairseq", WRONG, says, f"run from another folder; {install}")]
    found = []
    if len(there) == 2:
        says = f"{names} are both installed, and have written over each other's files"
        mend = f"pip uninstall -y fairseq fairseq-fixed; {install} --force-reinstall"
        found.append(Finding("fairseq", WARNING, says, mend))
    version = answer.get("version") or (packages.version_of(there[0]) if there else "unknown")
    if there and not packages.owns(there[0], file):
        says = f"{file} (version {version}) is imported instead of {names}, which is installed"
        mend = "take it off PYTHONPATH, or run from another folder"
        found.append(Finding("fairseq", WARNING, says, mend))
    elif not there:
        says = f"version {version} from {file}, neither fairseq-fixed nor a release of fairseq"
        found.append(Finding("fairseq", WARNING, says, f"tested is: {install}"))
    if "error" in answer:
        says, mend = f"{names or file} cannot be imported: {answer['error']}", why(answer["error"])
        return [*found, Finding("fairseq", WRONG, says, mend)]
    if packages.numbers(version) < (0, 12, 2) and version != "unknown":
        says = f"{version} is too old: a criterion and tasks of fairseq 0.12.2 are needed"
        found.append(Finding("fairseq", WRONG, says, install))
    return found or [Finding("fairseq", OK, f"{names}, {os.path.dirname(file)}")]


def why(error: str) -> str:
    """What to do about an error of fairseq's import."""
    if "mutable default" in error and sys.version_info >= NEW_PYTHON:
        return (
            "fairseq 0.12.2 is for Python before 3.11: pip uninstall -y fairseq; pip install "
            f"{FIXED}"
        )
    if "has no attribute" in error and "numpy" in error and not fits_numpy():
        return "this fairseq is older than numpy: pip install 'numpy<1.24'"
    if "torchaudio" in error:
        return "pip uninstall torchaudio (only speech tasks of fairseq use it)"
    missing = error.partition("No module named ")[2].strip("'\" ")
    if missing and not missing.startswith("fairseq"):
        return f"pip install {missing.split('.')[0]}"
    return f"pip install --force-reinstall {right_fairseq()}"


def library(name: str, answers: Answers) -> list[Finding]:
    """torch, numpy or sacrebleu."""
    answer, known, least = answers[name], packages.version_of(name), OLDEST[name]
    version = answer.get("version") or known
    file = packages.place_of(name)
    if "error" in answer:
        says = f"{name} {version} cannot be imported: {answer['error']}"
        if not version and file is None:
            says = f"{name} is not installed"
        mend = f"pip install --force-reinstall '{name}>={least}'"
        mend = mend if version else f"pip install '{name}>={least}'"
        if file and known and not packages.owns(name, file):
            mend = f"it is {file}, not what is installed: take it off PYTHONPATH, or rename it"
        return [Finding(name, WRONG, says, mend)]
    if packages.numbers(version) < packages.numbers(least):
        says = f"{version} is too old, at least {least} is needed"
        return [Finding(name, WRONG, says, f"pip install '{name}>={least}'")]
    if name == "numpy" and packages.numbers(version) >= (1, 24) and not fits_numpy():
        says = f"{version} is too new for fairseq 0.12.2, which asks for what 1.24 removed"
        return [Finding(name, WRONG, says, "pip install 'numpy<1.24'")]
    if name == "numpy" and packages.numbers(version) >= UNTRIED_NUMPY:
        says = f"{version} is newer than any that fairseq was tried with"
        return [Finding(name, WARNING, says, "if anything fails: pip install 'numpy<3'")]
    if known and known != version and not known.startswith(version):
        says = f"{version} is imported from {answer['file']}, but {known} is installed"
        return [Finding(name, WARNING, says, "take it off PYTHONPATH, or install it anew")]
    return [Finding(name, OK, version)]


def fits_numpy() -> bool:
    """Whether this fairseq goes with numpy 1.24 and later."""
    return bool(packages.version_of(FIXED) or not packages.version_of(STOCK))


def numpy_in_torch(answers: Answers) -> list[Finding]:
    """Whether torch was built for this numpy; nothing where it was."""
    answer = answers["numpy in torch"]
    if "error" not in answer or "error" in answers["torch"] or "error" in answers["numpy"]:
        return []
    says = (
        f"torch {answers['torch']['version']} was not built for numpy "
        f"{answers['numpy']['version']} ({answer['error']})"
    )
    mend = "pip install --upgrade torch, or pip install 'numpy<2' for a torch before 2.3"
    return [Finding("numpy in torch", WRONG, says, mend)]


def torchaudio(answers: Answers) -> Finding:
    """It has to be that of the same torch, or not to be there."""
    version, answer = packages.version_of("torchaudio"), answers.get("torchaudio")
    nothing = "No module named 'torchaudio'"
    if "standin" in version and nothing in (answer or {}).get("error", nothing):
        return Finding("torchaudio", OK, f"{version}, an empty stand-in; only speech tasks need it")
    if answer is None:
        return Finding("torchaudio", OK, "not installed; only fairseq's speech tasks need it")
    if "error" not in answer:
        return Finding("torchaudio", OK, str(answer["version"] or version))
    broken = "error" in answers["fairseq"] and "torchaudio" in answers["fairseq"]["error"]
    torch = answers["torch"].get("version", "")
    says = f"torchaudio {version} does not load beside torch {torch}: {answer['error']}"
    mend = (
        "pip uninstall torchaudio: only fairseq's speech tasks need it, while transformers and "
        "others take it for usable"
    )
    return Finding("torchaudio", WRONG if broken else WARNING, says, mend)


def extensions(answers: Answers) -> Finding:
    """What fairseq has in C."""
    what = "C extensions"
    if "error" in answers["fairseq"]:
        return Finding(what, WARNING, "not looked at, because fairseq cannot be imported")
    missing = {name: answers[name]["error"] for name in EXTENSIONS if "error" in answers[name]}
    if not missing:
        return Finding(what, OK, ", ".join(name.rpartition(".")[2] for name in EXTENSIONS))
    level = WRONG if any(EXTENSIONS[name][0] == WRONG for name in missing) else WARNING
    says = "; ".join(f"{name}: {EXTENSIONS[name][1]} ({why})" for name, why in missing.items())
    return Finding(what, level, says, REBUILD.format(right_fairseq()))


def versions() -> Finding:
    """Whether packages have what they ask for."""
    try:
        found = packages.conflicts()
    except ImportError:
        says = "not compared: the package packaging is not installed"
        return Finding("requirements", WARNING, says, "pip install packaging")
    if not found:
        return Finding("requirements", OK, "what the packages ask for is there")
    says = "; ".join(
        f"{root} wants {wanted}, but {f'{version} is installed' if version else 'it is missing'}"
        for root, wanted, version in found
    )
    wanted = " ".join(f"'{wanted}'" for _, wanted, _ in found)
    return Finding("requirements", WARNING, says, f"pip install {wanted}")


def extras() -> list[Finding]:
    """What is optional: there, or how to get it, and what for."""
    found = []
    for extra, (names, purpose) in packages.EXTRAS.items():
        known = {name: packages.version_of(name) for name in names}
        there = [f"{name} {version}" for name, version in known.items() if version]
        missing = [name for name, version in known.items() if not version]
        says = f"for {purpose}: "
        if missing:
            has = f" (there is {', '.join(there)})" if there else ""
            says += f"not installed{has}; pip install {' '.join(missing)}"
        else:
            says += ", ".join(there)
        found.append(Finding(f"extra {extra}", OK, says))
    return found
