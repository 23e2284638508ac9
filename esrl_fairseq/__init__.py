"""ESRL for fairseq: ``fairseq-train --user-dir esrl_fairseq --criterion esrl``.

Importing this package registers the criterion ``esrl`` and the tasks ``esrl_translation``,
``esrl_translation_from_pretrained_bart`` and ``esrl_language_modeling``, for
reward models the criterion ``esrl_preference`` and the task ``esrl_reward_model``, and for models
of Hugging Face ``--arch hf_causal_lm`` and ``--bpe hf_tokenizer``; and ``--optimizer torch_adam``.
"""

import os
import sys

from esrl_fairseq.errors import EsrlError

__version__ = "0.1.0"


def _is_the_doctor() -> bool:
    """Whether this process is ``esrl-doctor``, which looks at what cannot be imported, too."""
    begun = (sys.argv or [""])[0]
    if begun == "-m":  # what is run is imported after this
        return any(w.endswith("esrl_fairseq.doctor") for w in getattr(sys, "orig_argv", []))
    return os.path.basename(begun) == "esrl-doctor"


if not _is_the_doctor():
    try:
        from esrl_fairseq import compat  # noqa: F401
    except EsrlError:
        raise
    except Exception as error:  # whatever fairseq and torch that do not fit together lead to
        raise EsrlError(
            f"fairseq cannot be used here ({type(error).__name__}: {error}): python -m "
            "esrl_fairseq.doctor says what is wrong with the environment, and what to do"
        ) from error
    from esrl_fairseq import registration  # noqa: F401
