"""A plan: all steps that lead to some exports, in an order in which each comes after those that it needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import TypeAdapter

Kind = Literal["golden", "calibration", "artifact", "export"]


@dataclass(frozen=True)
class Cost:
    """What a step takes: most bytes resident at once in its processes, and wall seconds."""

    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        key: of what it makes, in the cache.
        label: what it makes, for people.
        needs: keys of the steps before it.
        request: for the worker, without places.
        alike: key of steps that take about as much.
        cost: predicted.
    """

    key: str
    kind: Kind
    label: str
    needs: tuple[str, ...]
    request: dict[str, Any]
    alike: str
    cost: Cost


@dataclass(frozen=True)
class ExportPlan:
    """One export; ``name`` is its folder's, ``key`` its last step's. ``space`` bytes are about what it will have."""

    name: str
    target: str
    key: str
    space: int


@dataclass(frozen=True)
class Plan:
    """Steps and exports of a build."""

    steps: tuple[Step, ...]
    exports: tuple[ExportPlan, ...]

    def step(self, key: str) -> Step:
        """The step of that key."""
        return next(step for step in self.steps if step.key == key)


_PLAN: Final = TypeAdapter(Plan)


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Plain JSON-ready form."""
    plain: dict[str, Any] = json.loads(_PLAN.dump_json(plan))
    return plain


def plan_from_json(text: str | bytes) -> Plan:
    """Read what :func:`plan_to_dict` gave; ValueError where it is something else."""
    return _PLAN.validate_json(text, strict=True)
