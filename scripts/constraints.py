"""Print the versions of this environment, as constraints.txt has them: `make constraints`.

What setup.py asks for with the extras of one environment, and what that asks for in turn. torch is
left out, since each machine has its own build, and what it brings.
"""

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# comet wants older versions of what the others want, peers one release of another trainer.
EXTRAS = {"dev", "demo", "docs", "rouge", "language", "report", "hf", "lora", "deploy"}
ROOTS = [f"esrl-fairseq[{','.join(sorted(EXTRAS))}]", "cython", "setuptools", "wheel"]
OWN_BUILDS = {"torch", "torchaudio", "torchvision", "triton"}


def closure(requirements: list[str]) -> tuple[dict[str, str], set[str]]:
    """Versions of all that the requirements lead to, by name; and names that are not installed."""
    versions: dict[str, str] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen or name in OWN_BUILDS:
                continue
            seen.add((name, extra))
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                missing.add(name)
                continue
            versions[name] = distribution.version
            asked = map(Requirement, distribution.requires or [])
            left += [r for r in asked if r.marker is None or r.marker.evaluate({"extra": extra})]
    return versions, missing


def main() -> None:
    versions, missing = closure(ROOTS)
    del versions["esrl-fairseq"]
    if missing:
        print(
            f"constraints: not installed, so left open: {', '.join(sorted(missing))}",
            file=sys.stderr,
        )
    torch = metadata.version("torch").partition("+")[0]
    print(
        f"# Versions that were tested together, with Python {platform.python_version()} and torch "
        f"{torch} (docs/versions.md).\n# Written by `make constraints`; torch is chosen apart."
    )
    for name, version in sorted(versions.items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
