"""The package is importable from a checkout; fixtures of command lines; hypothesis's settings."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))
# Tests of one room use what those of another have, whichever of them runs.
sys.path += [str(folder) for folder in sorted(TESTS.iterdir()) if folder.is_dir()]
torch.set_num_threads(1)

# Tests of properties try the same cases in every run, and leave no files. Others, and more of them:
# pytest --hypothesis-profile=many tests/core/test_properties.py
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=40)
settings.register_profile("many", database=None, deadline=None, max_examples=1000)
settings.load_profile("same")

pytest_plugins = ["cli_fixtures"]


@pytest.fixture(autouse=True)
def levels_of_loggers():
    """What is logged does not depend on tests before: fairseq's commands set the root's level."""
    root, own = logging.getLogger(), logging.getLogger("esrl_fairseq")
    root.setLevel(logging.WARNING)
    own.setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)
    yield
