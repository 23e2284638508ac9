"""ESRL for fairseq: ``fairseq-train --user-dir esrl_fairseq --criterion esrl``.

Importing this package registers the criterion ``esrl`` and the task ``esrl_translation``.
"""

from esrl_fairseq import compat

compat.apply()

from esrl_fairseq import criterion, task  # noqa: E402,F401  (registration)

__version__ = "0.1.0"
