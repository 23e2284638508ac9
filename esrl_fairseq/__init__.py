"""ESRL for fairseq: ``fairseq-train --user-dir esrl_fairseq --criterion esrl``.

Importing this package registers the criterion ``esrl`` and the tasks ``esrl_translation`` and
``esrl_language_modeling``, for
reward models the criterion ``esrl_preference`` and the task ``esrl_reward_model``, and for models
of Hugging Face ``--arch hf_causal_lm`` and ``--bpe hf_tokenizer``.
"""

from esrl_fairseq import compat

compat.apply()

import esrl_fairseq.reward_models.criterion  # noqa: E402,F401
import esrl_fairseq.reward_models.task  # noqa: E402,F401
from esrl_fairseq import (  # noqa: E402,F401  (registration)
    criterion,
    huggingface,
    language_task,
    task,
)
from esrl_fairseq.checks.hints import explain  # noqa: E402
from esrl_fairseq.data import place  # noqa: E402
from esrl_fairseq.processes import launch, running  # noqa: E402
from esrl_fairseq.start.taking import architecture_of_start  # noqa: E402

compat.extend_parsing(architecture_of_start, explain)
compat.keep_place_in_batches(place.state_at, place.resumed_state, place.dealt_to)
compat.launch_by(launch.prepare, running.join, running.Guarded)
compat.tell_of_progress(running.step, running.part, running.saving, running.watched)
compat.keep_old_names()

__version__ = "0.1.0"
