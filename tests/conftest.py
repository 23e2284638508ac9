"""The package is importable from a checkout, and the command lines' fixtures are known."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)

pytest_plugins = ["cli_fixtures"]
