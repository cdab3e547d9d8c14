"""How much worse a newer export may be than an older one: a recipe's ``[regression]`` table."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict


@dataclass(frozen=True)
class Regression:
    """Most by which one component, or the picture, may get worse. What improves is never held against an export.

    Attributes:
        snr_db_loss: of a component's SNR, in dB.
        picture_psnr_db_loss: of the picture's PSNR, in dB.
        bytes_growth, ops_growth: of an artifact's size and number of operations, as a share of the older one's.
        new_lint_findings: operations that a rule of lint speaks against and that were not there before.
        new_cpu_ops: operations that the GPU engine leaves to the CPU and did not before; judged with ``--gpu``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    snr_db_loss: float
    picture_psnr_db_loss: float
    bytes_growth: float
    ops_growth: float
    new_lint_findings: int
    new_cpu_ops: int
