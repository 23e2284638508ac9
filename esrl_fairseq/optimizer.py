"""``--optimizer torch_adam``: torch's own Adam, which takes all parameters in a few launches.

fairseq's takes seven launches a parameter unless NVIDIA's apex is installed, and the norm of the
gradients one more.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import Tensor

from esrl_fairseq.errors import EsrlError


@register_optimizer("torch_adam", dataclass=FairseqAdamConfig)
class TorchAdam(FairseqAdam):
    """AdamW with fairseq's options for ``adam``; only ε is added after the correction of bias, as
    published (Kingma and Ba 2015), and not before."""

    def __init__(self, cfg: FairseqAdamConfig, params: Any):
        if cfg.fp16_adam_stats or cfg.use_old_adam:
            raise EsrlError(
                "--optimizer torch_adam has neither --fp16-adam-stats nor --use-old-adam: leave "
                "them out, or choose --optimizer adam"
            )
        FairseqOptimizer.__init__(self, cfg)
        self._optimizer = torch.optim.AdamW(params, **self.optimizer_config, fused=True)

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """fairseq asks where weights, and with this optimizer its state, are in half precision.

        Raises:
            EsrlError: always, in place of fairseq's traceback.
        """
        raise EsrlError(
            "--optimizer torch_adam goes with neither --memory-efficient-fp16 nor "
            "--memory-efficient-bf16, for which it keeps no float32: choose --optimizer adam, or "
            "--fp16 or --bf16"
        )

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Any = None) -> Tensor:
        """The norm of all gradients, which are scaled down to ``max_norm`` if that is above 0."""
        params = [p for p in self.params if p.grad is not None]
        if aggregate_norm_fn or not params or any(hasattr(p, "expert") for p in params):
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        gradients = [p.grad for p in params]
        norm = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).norm()
        if max_norm > 0:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1))
        return norm
