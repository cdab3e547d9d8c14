"""Fields of a scheduler's config that only some samplers read, and their supported values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from md_export.errors import ConfigError
from md_export.spec.names import Method

# Exponent of Karras et al., 2022 (arXiv 2206.00364, equation 5).
_RHO: Final = 7.0
_OFF: Final = (False, None)
_SPACINGS: Final = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Fields of ``scheduler/scheduler_config.json`` that change the steps of some samplers; defaults are diffusers'."""

    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float | None = None
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    timestep_scaling: float = 10.0
    use_dynamic_shifting: bool | None = False
    shift_terminal: float | None = None
    invert_sigmas: bool | None = False
    stochastic_sampling: bool | None = False

    def respaced(self, largest: float, smallest: float, count: int, limited: bool) -> list[float]:
        """Return noise levels with the config's spacing, the largest first.

        ``limited``: apply ``sigma_min`` and ``sigma_max``, which Lu's spacing does not read.
        """
        largest = self.sigma_max if limited and self.sigma_max is not None else largest
        smallest = self.sigma_min if limited and self.sigma_min is not None else smallest
        if self.use_karras_sigmas:
            levels = np.linspace(largest ** (1 / _RHO), smallest ** (1 / _RHO), count) ** _RHO
        else:
            levels = np.exp(np.linspace(np.log(largest), np.log(smallest), count))
        return [float(level) for level in levels]


# Fields that diffusers' class of a method reads, and their supported values.
_COMPUTED: Final[Mapping[Method, Mapping[str, tuple[Any, ...]]]] = {
    "euler": {
        "use_beta_sigmas": _OFF,
        "interpolation_type": ("linear",),
        "final_sigmas_type": ("zero", "sigma_min"),
    },
    "dpmpp_2m": {
        "use_beta_sigmas": _OFF,
        "solver_order": (2, 1),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
        # The last three are for other solvers; diffusers' class treats them as the first.
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "final_sigmas_type": ("zero", "sigma_min"),
    },
    "flow_match_euler": {
        **dict.fromkeys((*_SPACINGS, "use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"), _OFF),
        "shift_terminal": (None,),
    },
}


def check_solver(config: SolverConfig, method: Method, smallest_lambda: float, predicts_v: bool) -> None:
    """Raise :class:`ConfigError` for an unsupported value of a field that diffusers' class of a method reads.

    Args:
        smallest_lambda: log(signal / noise) at the last timestep.
    """
    computed = dict(_COMPUTED.get(method, {}))
    if method == "euler" and predicts_v:
        computed["timestep_type"] = ("discrete",)
    for field, values in computed.items():
        if getattr(config, field) not in values:
            raise _refused(f"{field}={getattr(config, field)!r:.40}", method, f"{field}={values[0]!r}")
    both = [field for field in _SPACINGS if getattr(config, field)]
    if method in ("euler", "dpmpp_2m") and len(both) > 1:
        raise _refused(" with ".join(both), method, "one of them")
    clipped = config.lambda_min_clipped
    if method == "dpmpp_2m" and clipped is not None and not clipped <= smallest_lambda:
        raise _refused(f"lambda_min_clipped={clipped!r}", method, f"{smallest_lambda:.2f} or less")


def _refused(what: str, method: Method, instead: str) -> ConfigError:
    return ConfigError(
        f"scheduler/scheduler_config.json: {what} is not supported for {method}; set {instead}, or change --sampler"
    )
