"""For ``--user-dir`` (or ``python -m``) that names the repository instead of the package in it.

fairseq imports the folder that it is given, here under whatever name the repository has; and Python
does so where it runs beside a repository that has the package's name.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
if __name__ == "esrl_fairseq":  # the repository has the package's name: let the package have it
    del sys.modules[__name__]

import esrl_fairseq  # noqa: E402  (registration)
from esrl_fairseq.errors import EsrlError  # noqa: E402

IMPORTED = Path(esrl_fairseq.__file__).resolve().parent
if IMPORTED != (ROOT / "esrl_fairseq").resolve():
    raise EsrlError(
        f"--user-dir {ROOT} has a copy of esrl_fairseq, but that in {IMPORTED} is imported "
        f"already: give --user-dir {IMPORTED}"
    )
