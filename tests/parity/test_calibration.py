"""What is calibrated on: a recipe's table, cases by the real chain that judge nothing, inputs read one at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.errors import GoldenError, RecipeError
from md_export.parity.golden import folder as golden_module
from md_export.parity.golden import prepare as calibration
from md_export.parity.golden import surface
from md_export.parity.golden.folder import GoldenSource, read_golden, write_golden
from md_export.parity.golden.prepare import calibration_cases, golden_source, needs_calibration
from md_export.parity.golden.surface import CalibrationInputs, calibration_inputs
from md_export.parity.rewritten_module import rewritten
from md_export.spec.calibration import CalibrationPlan
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import recipe_from_dict, recipe_from_toml, recipe_to_dict
from md_export.spec.scheme import QuantScheme

RECIPE = b"""
name = "mine"
target = "onnx"
[scheme]
weights = "int8"
activations = "int8_static"
[tolerance]
snr_db = 20
picture_psnr_db = 30
[golden]
prompts = ["a"]
[calibration]
"""
GOLDEN = [("a cat", 0), ("a dog", 0), ("a cat", 7)]


def recipe(table: bytes = b"seeds = [1, 2]") -> Recipe:
    return recipe_from_toml(RECIPE + table, Path("mine.toml"))


@pytest.fixture(scope="module")
def checkpoint(other_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(other_checkpoint)


@pytest.fixture(scope="module")
def source(checkpoint: Checkpoint) -> GoldenSource:
    return golden_source(checkpoint)


@pytest.fixture(scope="module")
def golden(source: GoldenSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    write_golden(source, GOLDEN, folder)
    return folder


@pytest.fixture
def built_once(source: GoldenSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch components, which take seconds."""
    monkeypatch.setattr(calibration, "golden_source", lambda *_: source)


def silent(_: str) -> None:
    pass


def test_a_table_says_seeds_and_the_rest_has_defaults() -> None:
    assert recipe().calibration == CalibrationPlan((1, 2), None, "min_max", None)
    given = b'seeds = [3]\nprompts = ["x"]\nobserver = "percentile"\npercentile = 99.9'
    assert recipe(given).calibration == CalibrationPlan((3,), ("x",), "percentile", 99.9)


@pytest.mark.parametrize("table", [b"seeds = [1]", b'seeds = [1]\nobserver = "mse"\nprompts = ["x"]'])
def test_the_plan_travels_with_the_recipe(table: bytes) -> None:
    assert recipe_from_dict(recipe_to_dict(recipe(table)), "manifest") == recipe(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", r"\[calibration\] seeds is missing"),
        (b"seeds = []", r"\[calibration\] seeds: empty"),
        (b"seeds = [1]\nprompts = []", r"\[calibration\] prompts: empty"),
        (b"seeds = [0.5]", r"\[calibration.seeds\] 0: input should be a valid integer"),
        (
            b'seeds = [1]\nobserver = "entropy"',
            r"\[calibration\] observer: input should be 'min_max', 'percentile' or 'mse'",
        ),
        (b'seeds = [1]\nobserver = "percentile"', r"\[calibration\] percentile: goes with observer = \"percentile\""),
        (b"seeds = [1]\npercentile = 99.9", r"\[calibration\] percentile: goes with observer"),
        (b'seeds = [1]\nobserver = "percentile"\npercentile = 101', r"\[calibration\] percentile: 101 is not above 50"),
        (b'seeds = [1]\nobserver = "percentile"\npercentile = 50', r"\[calibration\] percentile: 50 is not above 50"),
        (b"seeds = [1]\nobservers = 1", r"\[calibration\] unknown field 'observers'; did you mean 'observer'"),
    ],
)
def test_a_wrong_table_is_one_clear_error(table: bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(table)


def test_cases_are_the_chains_own_and_none_of_them_judges(checkpoint: Checkpoint, golden: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with calibration_cases(recipe(), checkpoint, golden, tmp_path, lines.append) as folder:
        assert folder is not None
        made = read_golden(folder).cases
        assert list(tmp_path.iterdir()) == [folder]
    pairs = [(case.prompt, case.seed) for case in made]
    assert pairs == [("a cat", 1), ("a dog", 1), ("a cat", 2), ("a dog", 2)]
    assert not set(pairs) & set(GOLDEN)
    assert not list(tmp_path.iterdir())
    assert [line.split(":")[0] for line in lines] == [f"calibration case {number} of 4" for number in (1, 2, 3, 4)]
    # Each component's input is what the one before it gave.
    decoder, values = made[1].inputs("vae_decoder"), made[1].values
    assert np.array_equal(decoder["latent"], values["sampler.latent"])
    unet = rewritten(checkpoint, "unet", recipe())
    assert np.array_equal(unet.run(unet.inputs_of(made[1])), values["unet.out_sample"])
    assert not np.array_equal(made[1].values["given.noise"], made[3].values["given.noise"])


@pytest.mark.usefixtures("built_once")
def test_prompts_of_the_table_come_before_those_that_judge(
    checkpoint: Checkpoint, golden: Path, tmp_path: Path
) -> None:
    table = b'seeds = [0]\nprompts = ["a ship"]'
    with calibration_cases(recipe(table), checkpoint, golden, tmp_path, silent) as folder:
        assert folder is not None
        assert [(case.prompt, case.seed) for case in read_golden(folder).cases] == [("a ship", 0)]


@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("table", [b"seeds = [1, 7]", b'seeds = [0]\nprompts = ["a ship", "a cat"]'])
def test_a_case_that_judges_is_refused(table: bytes, checkpoint: Checkpoint, golden: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(
            RecipeError, match=r"recipe mine: \[calibration\] seed . with the prompt 'a cat' is a golden case"
        ),
        calibration_cases(recipe(table), checkpoint, golden, tmp_path, silent),
    ):
        pass


FLOAT = QuantScheme("float16", "float16")


@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize(
    ("scheme", "needed"),
    [
        (QuantScheme("int8", "int8_static"), True),
        (QuantScheme("int8", "float16", rounding="gptq"), True),
        (QuantScheme("int8", "float16", bias_correction=True), True),
        (QuantScheme("int8", "float16"), False),
        (FLOAT, False),
    ],
)
def test_nothing_is_made_for_a_scheme_that_is_not_calibrated(
    scheme: QuantScheme, needed: bool, checkpoint: Checkpoint, golden: Path, tmp_path: Path
) -> None:
    schemes = {"text_encoder": FLOAT, "unet": scheme, "vae_decoder": FLOAT}
    planned = dataclasses.replace(recipe(b"seeds = [1]"), schemes=schemes)
    assert needs_calibration(planned) is needed
    with calibration_cases(planned, checkpoint, golden, tmp_path, silent) as folder:
        assert (folder is not None) is needed
    unplanned = dataclasses.replace(planned, calibration=None)
    with calibration_cases(unplanned, checkpoint, golden, tmp_path, silent) as folder:
        assert folder is None


def test_inputs_are_read_one_at_a_time(checkpoint: Checkpoint, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(folder: Path, item: Any, family: Any) -> Any:
        read.append(item.name)
        return genuine(folder, item, family)

    genuine = golden_module.read_case
    monkeypatch.setattr(surface, "read_case", counted)
    inputs = CalibrationInputs(recipe(), rewritten(checkpoint, "unet", recipe()), golden)
    assert len(inputs) == 3
    assert not read
    seen = iter(inputs)
    assert set(next(seen)) == {"sample", "timestep", "encoder_hidden_states"}
    assert read == ["case-000"]
    next(seen)
    assert read == ["case-000", "case-001"]
    assert len(list(inputs[:2])) == 2
    # Nothing is kept: what is asked for again is read again.
    assert np.array_equal(inputs[0]["sample"], inputs[0]["sample"])
    assert read[4:] == ["case-000", "case-000"]
    with pytest.raises(IndexError):
        inputs[3]


def test_a_case_that_was_altered_is_noticed_when_it_is_read(
    checkpoint: Checkpoint, source: GoldenSource, tmp_path: Path
) -> None:
    write_golden(source, GOLDEN[:2], tmp_path)
    inputs = CalibrationInputs(recipe(), rewritten(checkpoint, "unet", recipe()), tmp_path)
    (tmp_path / "case-001.safetensors").write_bytes(b"x")
    assert inputs[0]
    with pytest.raises(GoldenError, match="was altered"):
        inputs[1]


def test_without_a_plan_every_other_golden_case_serves(checkpoint: Checkpoint, golden: Path) -> None:
    part = rewritten(checkpoint, "unet", recipe())
    seen = list(calibration_inputs(recipe(), part, golden, None))
    wanted = read_golden(golden).cases[::2]
    assert [bool(np.array_equal(a["sample"], b.values["given.noise"])) for a, b in zip(seen, wanted, strict=True)] == [
        True
    ] * 2
