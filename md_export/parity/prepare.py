"""The golden cases that an export is calibrated on and judged by, and the drift of function-changing rewrites."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from md_export.artifact import GOLDEN_FOLDER, Drift, OneStep
from md_export.checkpoint import Checkpoint
from md_export.components import COMPONENTS, ModelConfig
from md_export.components.runner import TorchRunner
from md_export.errors import GoldenError
from md_export.parity.golden import INDEX, GoldenSet, read_golden
from md_export.parity.metrics import compare
from md_export.parity.recording import GoldenSource, write_golden
from md_export.recipe import Recipe
from md_export.rewrites import Consent, apply_rewrites, find_rewrite

Progress = Callable[[str], None]


def one_step(config: ModelConfig) -> OneStep:
    """The checkpoint's one-step constants."""
    a, b = config.schedule.one_step()
    return OneStep(config.schedule.last_timestep, a, b, config.vae.scaling_factor, config.schedule.prediction_type)


def golden_source(checkpoint: Checkpoint, rewrites: tuple[str, ...] = (), allow_drift: bool = False) -> GoldenSource:
    """The checkpoint's torch components, with the rewrites that change the function applied.

    Raises:
        RewriteError: a rewrite is refused.
    """
    runners, applied = {}, []
    step, consent = one_step(checkpoint.config), Consent(checkpoint.trained_substitutions, allow_drift)
    # Golden cases show the function; rewrites that only change the form have no place in them.
    changing = tuple(name for name in rewrites if not find_rewrite(name).exact)
    for name in COMPONENTS:
        module = checkpoint.module(name)
        records = apply_rewrites(changing, name, module, step, consent)
        applied += [record.name for record in records if record.fired]
        runners[name] = TorchRunner(name, module, checkpoint.config)
    return GoldenSource(
        runners=runners,
        tokenizer_dir=checkpoint.tokenizer_dir,
        text_length=checkpoint.config.text_shape[1],
        latent_shape=checkpoint.config.latent_shape,
        one_step=step,
        checkpoint_sha256=checkpoint.sha256(),
        rewrites=tuple(applied),
    )


def prepare_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> Drift | None:
    """Fill ``folder`` with golden cases of what the artifacts must compute.

    They are ``given``, else the ``golden/`` folder of the checkpoint, else made from the recipe's prompts.
    Where a rewrite changes the function they are made anew with it, and the drift from the former is returned.

    Raises:
        GoldenError: the cases belong to another checkpoint.
        RewriteError: a rewrite is refused.
    """
    changed = golden_source(checkpoint, recipe.rewrites, recipe.allow_drift) if recipe.rewrites else None
    if changed is None or not changed.rewrites:
        _place_golden(recipe, checkpoint, given, folder, progress)
        return None
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        before = _place_golden(recipe, checkpoint, given, Path(scratch) / "golden", progress)
        folder.mkdir()
        write_golden(changed, [(case.prompt, case.seed) for case in before.cases], folder, progress)
        return measure_drift(before, read_golden(folder))


def _place_golden(
    recipe: Recipe, checkpoint: Checkpoint, given: Path | None, folder: Path, progress: Progress
) -> GoldenSet:
    """Golden cases of the checkpoint as it is: copied where there are some, else computed."""
    own = checkpoint.root / GOLDEN_FOLDER
    present = given or (own if own.is_dir() else None)
    if present is None:
        folder.mkdir()
        write_golden(golden_source(checkpoint), planned_cases(recipe, checkpoint), folder, progress)
        return read_golden(folder)
    golden = read_golden(present)
    if golden.index.checkpoint_sha256 != checkpoint.sha256():
        raise GoldenError(
            f"{present} holds golden cases of another checkpoint ({golden.index.checkpoint_sha256[:12]}, this one is "
            f"{checkpoint.sha256()[:12]}); make them anew with: md-export golden {checkpoint.root} -o DIR"
        )
    folder.mkdir()
    for name in (INDEX, *(item.file for item in golden.index.cases)):
        shutil.copyfile(present / name, folder / name)
    return golden


def planned_cases(recipe: Recipe, checkpoint: Checkpoint) -> list[tuple[str, int]]:
    """The parent's prompts for a sibling, which speaks the same language; else the recipe's."""
    if checkpoint.parent is not None and (checkpoint.parent / GOLDEN_FOLDER).is_dir():
        return [(case.prompt, case.seed) for case in read_golden(checkpoint.parent / GOLDEN_FOLDER).cases]
    return [(prompt, seed) for prompt in recipe.golden.prompts for seed in recipe.golden.seeds]


def measure_drift(before: GoldenSet, after: GoldenSet) -> Drift:
    """Worst figures over all cases of the UNet's output and of the picture, ``before`` being the reference."""
    pairs = [(old.values, new.values) for old, new in zip(before.cases, after.cases, strict=True)]
    return Drift(
        unet_snr_db=min(compare(new.unet_output, old.unet_output).snr_db for old, new in pairs),
        picture_psnr_db=min(compare(new.picture, old.picture).psnr_db for old, new in pairs),
    )
