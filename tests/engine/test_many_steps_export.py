"""An export for many steps: proved call by call and as a picture, and what the proof must notice."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.planning import plan
from md_export.errors import ArtifactError, ConfigError, GoldenError, RecipeError
from md_export.models.sampling.sampler import steps_of
from md_export.models.tokenizers import tokenize
from md_export.models.values import INPUT_IDS
from md_export.parity.golden.folder import read_golden, write_golden, write_index
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import Execute, judge, taking, verify
from md_export.parity.metrics import Check, compare
from md_export.parity.selftest.answers import Bench
from md_export.parity.selftest.run import try_all
from md_export.parity.selftest.table import MUTATIONS, Hashes
from md_export.parity.verdict import Verdict
from md_export.spec.manifest import files_beside, read_manifest, write_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import ManySteps, SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import Execution

PLAN = SamplerPlan(5, "ddim", 7.5)
REQUESTS = [("a large red circle on the left, white background", 0), ("a small green star at the top", 1)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(builtin_recipe("onnx", "fp32")).sampled(PLAN.steps, PLAN.guidance)


@pytest.fixture(scope="module")
def out(recipe: Recipe, nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    golden, folder = tmp_path_factory.mktemp("golden"), tmp_path_factory.mktemp("export") / "out"
    write_golden(golden_source(open_checkpoint(nano), sampler=PLAN), REQUESTS, golden)
    export(recipe, nano, folder, golden)
    return folder


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "out"))


BENCH = Bench()


def judged(out: Path, execute: Execute = BENCH.execute) -> Verdict:
    return judge(out, execute=execute, take=taking(execute)).result


def changed(unet: Callable[[Arrays], Arrays], output: Callable[[Array], Array] = lambda a: a) -> Execute:
    """A runtime that gives the UNet other inputs, or whoever asked another output of it."""

    def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        if path.stem != "unet":
            return BENCH.execute(target, path, batches)
        made = BENCH.execute(target, path, [unet(batch) for batch in batches])
        return dataclasses.replace(made, outputs=[{k: output(v) for k, v in item.items()} for item in made.outputs])

    return run


@pytest.mark.seen(
    "guided pictures that do not follow the prompt", "rejected: the difference of the two halves has its own threshold"
)
def test_an_artifact_that_loses_the_difference_of_the_prompt_is_rejected(out: Path) -> None:
    """Only the check of the difference is to notice; the same export as it is has the figure, far above 10 dB."""
    (mutation,) = (one for one in MUTATIONS if one.caught.get(Hashes.KEPT) is Check.GUIDANCE)
    _, row, _ = try_all(out, lambda *_: (), [mutation])
    assert (row.component, row.verdict) == ("unet", "rejected")
    assert "pictures would not follow the prompt" in row.said
    unet = read_manifest(out).entry_for("unet").parity
    assert unet is not None and unet.guidance_snr_db is not None and unet.guidance_snr_db > 60


@pytest.mark.seen("negative prompt of a recipe", "is in the golden cases and the guided batch")
def test_a_negative_prompt_is_in_the_golden_cases(nano: Path, tmp_path: Path) -> None:
    plan = SamplerPlan(2, "ddim", 7.5, negative="a red square")
    write_golden(golden_source(open_checkpoint(nano), sampler=plan), REQUESTS[:1], tmp_path)
    golden = read_golden(tmp_path)
    assert golden.index.steps is not None and golden.index.steps.negative == "a red square"
    wanted = tokenize(nano / "tokenizer", "a red square", 77)
    assert np.array_equal(golden.cases[0].values[f"{INPUT_IDS.key}.0"], wanted)
    plain = SamplerPlan(2, "ddim", 7.5)
    for negative, alike in (("a red square", True), (None, False)):
        (picture,) = pictures_of_checkpoint(nano, REQUESTS[:1], sampler=plain, negative=negative)
        assert bool(np.abs(picture - golden.cases[0].picture.astype(np.float32)).max() < 1e-5) is alike


@pytest.mark.parametrize("guidance", [1.0, None])
def test_a_negative_prompt_needs_guidance(nano: Path, guidance: float | None) -> None:
    with pytest.raises((RecipeError, ConfigError), match=r"negative.*guidance"):
        steps_of(open_checkpoint(nano).config, SamplerPlan(2, "lcm", guidance, negative="a red square"))


def test_calls_and_pictures_are_proved(out: Path) -> None:
    manifest, result = read_manifest(out), verify(out)
    assert result.failures == ()
    assert manifest.steps is not None
    assert manifest.steps.agrees(manifest.recipe.sampler)
    unet = manifest.entry_for("unet")
    assert [spec.shape[0] for spec in (*unet.inputs, *unet.outputs)] == [2, 1, 2, 2]
    assert result.picture is not None
    assert result.picture.psnr_db is not None
    assert result.picture.psnr_db > 80
    here = judged(out)
    assert here.failures == ()
    assert here.picture is not None
    assert here.picture.psnr_db == pytest.approx(result.picture.psnr_db, abs=1)


@pytest.mark.parametrize(
    "wrong",
    [
        changed(lambda b: {**b, "timestep": np.full(1, 999, np.float32)}),
        changed(lambda b: {**b, "timestep": b["timestep"].astype(np.float32) - 1}),
        changed(lambda b: {**b, "encoder_hidden_states": b["encoder_hidden_states"][::-1].copy()}),
        changed(lambda b: b, lambda output: output[::-1].copy()),
        changed(lambda b: {**b, "encoder_hidden_states": np.repeat(b["encoder_hidden_states"][1:], 2, axis=0)}),
    ],
    ids=["one timestep", "timesteps off by one", "texts exchanged", "outputs exchanged", "no empty prompt"],
)
def test_a_wrong_call_is_noticed(out: Path, wrong: Execute) -> None:
    result = judged(out, wrong)
    assert any(line.startswith("unet: snr") for line in result.failures)
    assert all(line.startswith(("unet", "picture")) for line in result.failures)
    assert result.picture is not None
    assert result.picture.psnr_db is not None
    assert result.picture.psnr_db < 110


def edit(out: Path, change: Callable[[ManySteps], ManySteps]) -> None:
    """Manifest and golden index, so that they agree."""
    manifest, index = read_manifest(out), read_golden(out / "golden").index
    assert manifest.steps is not None
    other = change(manifest.steps)
    write_index(dataclasses.replace(index, steps=other), out / "golden")
    sampler = dataclasses.replace(PLAN, guidance=other.guidance)
    digest = read_golden(out / "golden").sha256
    recipe = dataclasses.replace(manifest.recipe, sampler=sampler)
    files = files_beside(out, manifest.artifacts)
    write_manifest(dataclasses.replace(manifest, steps=other, recipe=recipe, golden_sha256=digest, files=files), out)


def other_b(steps: ManySteps) -> ManySteps:
    *first, last = steps.steps
    return dataclasses.replace(steps, steps=(*first, dataclasses.replace(last, b=-last.b)))


@pytest.mark.parametrize(
    "change", [lambda steps: dataclasses.replace(steps, guidance=1.01), other_b], ids=["guidance", "b"]
)
def test_the_picture_shows_what_no_call_shows(copied: Path, change: Callable[[ManySteps], ManySteps]) -> None:
    """Guidance that was dropped, and a wrong coefficient: each call is right, what is made of them is not.

    The metadata of each artifact tells it, too.
    """
    edit(copied, change)
    checks = [fault.check for fault in judged(copied).faults]
    assert [check for check in checks if check is not Check.ORIGIN] == [Check.PICTURE]
    assert checks.count(Check.ORIGIN) == 3


def test_manifest_recipe_and_golden_cases_agree(copied: Path) -> None:
    manifest = read_manifest(copied)
    assert manifest.steps is not None

    def write(**changes: object) -> None:
        write_manifest(dataclasses.replace(manifest, **changes), copied)  # type: ignore[arg-type]

    for wrong in (None, dataclasses.replace(manifest.steps, guidance=3.0)):
        write(steps=wrong)
        with pytest.raises(ArtifactError, match="other steps or guidance than its recipe"):
            verify(copied)
    write(steps=other_b(manifest.steps))
    with pytest.raises(GoldenError, match=r"5 steps of ddim with guidance 7\.5"):
        verify(copied)


def test_pictures_by_artifacts_and_by_torch(out: Path, nano: Path) -> None:
    wanted = [case.picture for case in read_golden(out / "golden").cases]
    for made in (pictures_of_artifacts(out, REQUESTS), pictures_of_checkpoint(nano, REQUESTS, sampler=PLAN)):
        assert min(compare(*pair).psnr_db for pair in zip(made, wanted, strict=True)) > 80
    (one,) = pictures_of_checkpoint(nano, REQUESTS[:1])
    assert compare(one, wanted[0]).psnr_db < 30


def test_a_build_keeps_one_step_and_many_apart(recipe: Recipe, nano: Path) -> None:
    plain = dataclasses.replace(recipe, sampler=None, name="plain")
    fewer = dataclasses.replace(recipe, sampler=SamplerPlan(4, "ddim", 7.5), name="fewer")
    found = plan([recipe, plain, fewer, dataclasses.replace(recipe, name="same")], nano, None)
    made = [found.step(one.key).needs for one in found.exports]
    assert not set(made[0]) & set(made[1])
    assert not set(made[0]) & set(made[2])
    assert made[0] == made[3]
