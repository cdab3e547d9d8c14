"""gelu(x) → x·sigmoid(x) in every gated feed-forward.

The paper (section 3.2) replaces GELU because its erf or tanh form is slow and, in half precision, unstable
on phones. It changes the function: the checkpoint must have been fine-tuned with it.
"""

from __future__ import annotations

from torch import nn

from md_export.models.layers import Gelu, GluProjection, Swish
from md_export.spec.sampler import OneStep


def gelu_to_swish(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of feed-forwards changed."""
    gates = [layer for layer in module.modules() if isinstance(layer, GluProjection) and isinstance(layer.act, Gelu)]
    for gate in gates:
        gate.act = Swish()
    return len(gates)


def count_swish(module: nn.Module) -> int:
    """Count feed-forwards that already use swish."""
    return sum(isinstance(layer, GluProjection) and isinstance(layer.act, Swish) for layer in module.modules())
