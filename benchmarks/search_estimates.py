"""Estimates of a search beside passes on the nano checkpoint: rank correlations, and what choices made of them cost.

    python benchmarks/search_estimates.py TARGET [--component NAME ...] [--rounding nearest]

Every form of every module of the named components (by default the decoder) is estimated from 64 random directions and
measured by a pass, on one golden case. "Choice" is the picture PSNR of the best choice at some bits a weight, by the
passes of its candidates: chosen from passes, from estimates, and from estimates of which the search measures 16.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import click
import numpy as np

from md_export.engine.search.candidates import name_of, noisiest, with_passes
from md_export.engine.search.frontier import Module, decibels
from md_export.engine.search.hutchinson import Estimator
from md_export.engine.search.measurements import Pass, with_means
from md_export.engine.search.measuring import Name
from md_export.engine.search.request import STARTS, Budget
from md_export.engine.search.selection import choose
from md_export.engine.search.sensitivity import Probing, list_modules, noises_of, probe_of
from md_export.errors import UsageError
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

COUNTS = (16, 32, 64)
BITS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)


def noises(modules: Sequence[Module]) -> np.ndarray:
    return np.array([one.noise for module in modules for one in module.candidates if not one.form.is_float])


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def measured(on: Probing, modules: Sequence[Module]) -> dict[Name, Pass]:
    found = {}
    for module in modules:
        for one in module.candidates:
            if not one.form.is_float:
                noise = noises_of(probe_of(on), module.component, module.path, one.form)
                found[name_of(module, one)] = Pass(module.component, module.path, one.form, *noise)
    return found


def refined(modules: Sequence[Module], budget: Budget, passes: dict[Name, Pass]) -> tuple[Module, ...]:
    """What the search does: it measures the eight noisiest chosen candidates, twice."""
    taken: dict[Name, Pass] = {}
    for _ in range(2):
        names = [name_of(*one) for one in noisiest(choose(modules, budget))]
        taken |= {name: passes[name] for name in [name for name in names if name not in taken][:8]}
        modules = with_passes(modules, taken)
    return tuple(modules)


def cost(modules: Sequence[Module], budget: Budget, passes: dict[Name, Pass]) -> str:
    """Picture PSNR of the choice by the passes of its candidates."""
    point = choose(modules, budget)
    pairs = zip(point.modules, point.chosen, strict=True)
    return f"{decibels(sum(passes[name_of(*pair)].noise or 0 for pair in pairs if not pair[1].form.is_float)):.2f}"


@click.command()
@click.argument("target", type=click.Choice(tuple(STARTS)))
@click.option("--component", "components", multiple=True, default=("vae_decoder",))
@click.option("--rounding", type=click.Choice(("nearest", "mse", "gptq")), default="nearest")
def main(target: str, components: tuple[str, ...], rounding: Literal["nearest", "mse", "gptq"]) -> None:
    """Print both tables."""
    start, golden = STARTS[target], nano_checkpoint() / "golden"
    recipe = load_recipe(builtin_recipe(target, start.precision))
    schemes: dict[str, Any] = {
        name: dataclasses.replace(scheme, rounding=rounding, bias_correction=rounding != "nearest")
        for name, scheme in recipe.schemes.items()
    }
    recipe = dataclasses.replace(recipe, schemes=schemes)
    on = Probing(nano_checkpoint(), recipe, components, golden, 16, golden, start.forms)
    listed = list_modules(on)
    clock = time.process_time()
    estimator = Estimator(probe_of(on), listed)
    taken = [estimator.sample(number) for number in range(max(COUNTS))]
    estimating = time.process_time() - clock
    passes = measured(on, listed)
    click.echo(f"{len(listed)} modules; estimates {estimating:.1f} s of processor, {len(passes)} passes ", nl=False)
    click.echo(
        f"{time.process_time() - clock - estimating:.1f} s\n\n| directions | rank correlation | dB |\n|---:|---:|---:|"
    )
    exact = with_passes(listed, passes)
    estimates = {count: with_means(listed, taken[:count]) for count in COUNTS}
    for count, modules in estimates.items():
        correlation = np.corrcoef(ranks(noises(modules)), ranks(noises(exact)))[0, 1]
        errors = 10 * np.log10(noises(modules) / noises(exact))
        click.echo(f"| {count} | {correlation:.3f} | {errors.mean():+.1f} ± {errors.std():.1f} |")
    click.echo(
        "\n| bits a weight | choice from passes, dB | 16 directions | 32 | 32 and 16 passes |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for bits in BITS:
        budget = Budget(bits=bits)
        try:
            tables = (exact, estimates[16], estimates[32], refined(estimates[32], budget, passes))
        except UsageError:
            continue
        click.echo(f"| {bits:g} | {' | '.join(cost(table, budget, passes) for table in tables)} |")


if __name__ == "__main__":
    main()
