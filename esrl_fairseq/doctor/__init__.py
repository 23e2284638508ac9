"""What is wrong with an environment, or with a training before it begins.

Everything here but :mod:`~esrl_fairseq.doctor.training` and what it imports does without fairseq
and torch, which may be what is wrong.
"""

from esrl_fairseq.doctor.command import main

__all__ = ["main"]
