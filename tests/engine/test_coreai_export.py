"""The nano checkpoint as Core AI assets: the gate, the audit, attribution and the self-test on one export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from md_export.diagnose.attribution.attribute import blame
from md_export.engine.hops import Part, opened
from md_export.engine.selftest import self_test
from md_export.parity.golden.folder import read_golden
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.parity.selftest.table import MUTATIONS
from md_export.parity.weights.audit import AuditJob, audit_part
from md_export.spec.manifest import read_manifest
from md_export.targets import TARGETS
from md_export.targets.contract import Lints
from mutations import RARE, edits, rehash
from support import Exported

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
# What an export of int8 without float16 has nothing for.
NOT_APPLICABLE = {
    "a palette entry moved",
    "float16 overflow behind a softmax",
    '"int8" that is float inside',
    "the prompt's difference lost",
    "a weight moved into a Constant node",
    *edits("a convolution dilated", "the epsilon of a norm", "a constant that nothing reads"),
    *RARE,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on maps of 8×8."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def out(exported: Exported) -> Path:
    return exported("coreai", "int8")


def test_it_is_verified_again(out: Path) -> None:
    result = verify(out)
    assert result.failures == ()
    assert result.picture is not None


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_known_fault_concerns_it(out: Path, component: str) -> None:
    """Its upsamplers would be resizes on the CPU; tests/targets/coreai/test_coreai_lint.py plants one that is found."""
    target = TARGETS["coreai"].open()
    assert isinstance(target, Lints)
    report = target.lint(out / f"{component}.aimodel")
    assert report.known is not None
    assert report.known.found == ()


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_weight_is_proven(out: Path, nano: Path, component: str) -> None:
    found = audit_part(AuditJob(out, nano, component))
    assert found.faults == found.missing == ()
    assert found.as_requested == found.promised > 0.5 * found.total
    assert found.proven_share > 0.99
    assert max(constant.bytes for constant in found.unmatched) <= 64


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_attribution_sees_every_module_and_blames_none(out: Path, nano: Path, component: str) -> None:
    manifest, part, cases = opened(Part(out, component, nano))
    entry = manifest.entry_for(component)
    found = blame(manifest, entry, out / entry.file, part, cases[:1])
    assert found.first is None
    # The table of positions is a constant that is added.
    assert found.matched >= found.leaves - 1
    assert found.modules[-1].cumulative_snr_db == pytest.approx(found.snr_db, abs=3)


def test_a_reversed_weight_is_blamed(copy_of: Exported, nano: Path) -> None:
    folder, path = copy_of("coreai", "int8"), "encoder.layers.1.mlp.fc2"
    manifest, part, cases = opened(Part(folder, "text_encoder", nano))
    entry = manifest.entry_for("text_encoder")
    wanted = part.module.get_submodule(path).weight
    with TARGETS["coreai"].open().edit(folder / entry.file) as constants:
        alike = [item for item in constants if item.values.dtype == np.int8 and item.values.shape == wanted.shape]
        alike[1].values[...] = alike[1].values[::-1].copy()
    rehash(folder)
    found = blame(manifest, entry, folder / entry.file, part, cases[:1])
    assert found.first is not None
    assert found.first.path == path


@pytest.mark.slow
def test_the_self_test_finds_every_mutation_noticed(out: Path, nano: Path) -> None:
    result = self_test(out, nano)
    assert result.failures == ()
    assert len(result.rows) == 2 + sum(len(mutation.caught) for mutation in MUTATIONS)
    assert {row.mutation for row in result.rows if row.verdict == "not applicable"} == NOT_APPLICABLE
    assert read_manifest(out).target == "coreai"


# What SD3ParityDataTests.swift asks of its arrays, for this checkpoint: names, shapes, dtypes.
PARITY = {
    "text_encoder_input_ids": ((1, 77), "int64"),
    "text_encoder_hidden": ((1, 77, 128), "float32"),
    "unet_sample": ((1, 8, 8, 8), "float32"),
    "unet_timestep": ((1,), "float32"),
    "unet_encoder_hidden_states": ((1, 77, 128), "float32"),
    "unet_output": ((1, 8, 8, 8), "float32"),
    "vae_decoder_input": ((1, 8, 8, 8), "float32"),
    "vae_decoder_output": ((1, 3, 64, 64), "float32"),
}


def test_the_folder_is_what_swift_reads(out: Path) -> None:
    """The demands of loadFromMetadata and loadComponents in apple/coreai-models."""
    found = json.loads((out / "metadata.json").read_text())
    assert found["kind"] == "diffusion" and found["metadata_version"] == "0.2"
    assert all((out / file).is_dir() for file in found["assets"].values())
    assert set(found["assets"]) == {"text_encoder", "unet", "vae_decoder"}
    model, step = found["diffusion"], read_manifest(out).one_step
    assert model["type"] == "stable-diffusion" and model["prediction_type"] in ("epsilon", "v_prediction")
    (sample,) = (spec for spec in read_manifest(out).entry_for("unet").inputs if spec.name == "sample")
    assert model["image_size"] == 8 * sample.shape[2], "Swift refuses another"
    assert set(model["scheduler"]) == {"training_steps", "beta_start", "beta_end", "beta_schedule"}
    assert step is not None and found["one_step"]["a"] == step.a and found["one_step"]["b"] == step.b
    assert (out / "tokenizer" / "vocab.json").is_file() and (out / "tokenizer" / "merges.txt").is_file()


def test_its_arrays_are_a_golden_case(out: Path) -> None:
    arrays = {path.stem: np.load(path) for path in (out / "parity").iterdir()}
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == PARITY
    case = read_golden(out / "golden").cases[0]
    assert np.array_equal(arrays["unet_output"], case.output("unet", "out_sample"))
    assert np.array_equal(arrays["vae_decoder_output"], case.output("vae_decoder", "image"))
    # One step in an app: what the UNet gave and what the decoder takes belong together.
    step = read_manifest(out).one_step
    assert step is not None
    latent = (step.a * arrays["unet_sample"] + step.b * arrays["unet_output"]) / step.scaling_factor
    assert compare(latent, arrays["vae_decoder_input"]).snr_db > 100
