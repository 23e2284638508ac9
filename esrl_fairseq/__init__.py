"""ESRL for fairseq: ``fairseq-train --user-dir esrl_fairseq --criterion esrl``.

Importing this package registers the criterion ``esrl`` and the task ``esrl_translation``, and for
reward models the criterion ``esrl_preference`` and the task ``esrl_reward_model``.
"""

from esrl_fairseq import compat

compat.apply()

from esrl_fairseq import criterion, preference, reward_task, task  # noqa: E402,F401  (registration)

__version__ = "0.1.0"
