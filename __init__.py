"""For ``--user-dir`` (or ``python -m``) that names the repository instead of the package in it.

fairseq imports the folder that it is given, here under whatever name the repository has.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
if __name__ == "esrl_fairseq":  # the repository has the package's name: let the package have it
    del sys.modules[__name__]

import esrl_fairseq  # noqa: E402,F401  (registration)
