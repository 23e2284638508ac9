"""The package is importable from a checkout, and the command lines' fixtures are known."""

import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))
# Tests of one room use what those of another have, whichever of them runs.
sys.path += [str(folder) for folder in sorted(TESTS.iterdir()) if folder.is_dir()]
torch.set_num_threads(1)

pytest_plugins = ["cli_fixtures"]
