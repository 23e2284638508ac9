"""ESRL for fairseq: ``fairseq-train --user-dir esrl_fairseq --criterion esrl``.

Importing this package registers the criterion ``esrl`` and the tasks ``esrl_translation`` and
``esrl_language_modeling``, and for
reward models the criterion ``esrl_preference`` and the task ``esrl_reward_model``.
"""

from esrl_fairseq import compat

compat.apply()

from esrl_fairseq import (  # noqa: E402,F401  (registration)
    criterion,
    language_task,
    preference,
    reward_task,
    task,
)

__version__ = "0.1.0"
