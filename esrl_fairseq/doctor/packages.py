"""What is installed, by its metadata: nothing is imported for it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

OWN = "esrl-fairseq"
ROOTS = (
    *(OWN, "fairseq-fixed", "fairseq", "torch", "torchaudio", "sacrebleu", "transformers", "peft"),
    *("unbabel-comet", "bert-score", "sentence-transformers", "ctranslate2"),
)
"""Packages whose requirements are compared with what is installed."""
NOT_NEEDED = {("fairseq-fixed", "torchaudio"), ("fairseq", "torchaudio")}
"""Requirements that nothing here is used of."""
EXTRAS = {
    "rouge": (("rouge-score", "rapidfuzz"), "the rewards rouge1, rouge2, rougeL, rougeLsum, rouge"),
    "language": (("py3langid",), "the reward language-gate"),
    "report": (("plotly",), "esrl-report"),
    "bertscore": (("bert-score",), "the reward bertscore"),
    "comet": (("unbabel-comet",), "the reward comet (it wants an environment of its own)"),
    "embedding": (("sentence-transformers",), "the reward sentence-embedding"),
    "hf": (
        ("transformers", "gguf", "accelerate", "sentencepiece"),
        "--arch hf_causal_lm and hf_seq2seq, the reward hf-reward, and export to transformers",
    ),
    "lora": (("peft",), "--lora-rank"),
    "deploy": (("ctranslate2",), "export to CTranslate2"),
}
"""Extras of setup.py for users: their packages, and what needs them."""


def version_of(distribution: str) -> str:
    """Of an installed distribution; empty where there is none."""
    try:
        return metadata.version(distribution) or ""
    except metadata.PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """Of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def place_of(module: str) -> str | None:
    """The file that ``import module`` takes; the folder of one without ``__init__.py``; None where
    there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.origin and spec.origin != "namespace":
        return spec.origin
    return next(iter(spec.submodule_search_locations or ()), None)


def owns(distribution: str, file: str) -> bool:
    """Whether a distribution has installed a file; yes where it does not say what it installed."""
    files = metadata.distribution(distribution).files or []
    own = {os.path.realpath(str(path.locate())) for path in files if path.suffix == ".py"}
    editable = any("__editable__" in path.name or path.suffix == ".pth" for path in files)
    return not own or editable or os.path.realpath(file) in own


def requirements(distribution: str, extra: str = "") -> Iterator[Any]:
    """The requirements of an installed distribution that hold here."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in metadata.requires(distribution) or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def conflicts() -> list[tuple[str, str, str]]:
    """Requirements that are not met: (whose, what, the version that there is, or empty).

    Raises:
        ImportError: there is no ``packaging``, which reads requirements.
    """
    found = []
    for root in filter(version_of, ROOTS):
        for extra in ("", *EXTRAS) if root == OWN else ("",):
            for requirement in requirements(root, extra):
                name, version = requirement.name, version_of(requirement.name)
                missing = not version and not extra
                if missing and (root, name) in NOT_NEEDED:
                    continue
                if missing or (
                    version and not requirement.specifier.contains(version, prereleases=True)
                ):
                    found.append((root, f"{name}{requirement.specifier}", version))
    return list(dict.fromkeys(found))
