"""Imports one thing after another and tells of each, in a process of its own.

What is broken may take a process with it. It is run by its path and knows nothing of this package.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any


def loaded(name: str) -> ModuleType:
    """A module that has been imported."""
    return importlib.import_module(name)


def facts(name: str) -> dict[str, Any]:
    """Version and place of a module."""
    module = loaded(name)
    version = getattr(module, "__version__", None)
    return {"version": None if version is None else str(version), "file": module.__file__}


def of_torch() -> dict[str, Any]:
    """Also what it was built for."""
    found = facts("torch")
    torch: Any = loaded("torch")
    found["cuda"] = getattr(torch.version, "cuda", None) or getattr(torch.version, "hip", None)
    found["threads"] = torch.get_num_threads()
    return found


def of_gpus() -> dict[str, Any]:
    """The GPUs that torch finds, with bytes of memory that are free, and in all."""
    torch: Any = loaded("torch")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    found = [
        {"name": torch.cuda.get_device_name(number), "memory": torch.cuda.mem_get_info(number)}
        for number in range(torch.cuda.device_count() if there else 0)
    ]
    return {"gpus": found, "said": [str(warning.message) for warning in said]}


def numpy_in_torch() -> dict[str, Any]:
    """Whether arrays become tensors, and tensors arrays."""
    numpy: Any = loaded("numpy")
    torch: Any = loaded("torch")
    torch.from_numpy(numpy.zeros(1)).numpy()
    return {}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": of_torch,
    "gpus": of_gpus,
    "numpy in torch": numpy_in_torch,
}
"""What is more than an import."""


def main() -> None:
    """Take what to do from the command line, and write two lines of JSON for each thing."""
    given = json.loads(sys.argv[1])
    sys.path[:] = given["path"]
    sys.argv = [""]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is not ours

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    for name in given["names"]:
        tell(begun=name)
        try:
            found = STEPS[name]() if name in STEPS else facts(name)
        except BaseException as error:  # SystemExit, too
            text = " ".join(str(error).split()) or "without a word"
            tell(name=name, error=f"{type(error).__name__}: {text}")
        else:
            tell(name=name, **found)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # what was imported has nothing to tidy up, and may fail at it
