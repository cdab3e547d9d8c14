"""What coremltools makes of diffusers' rewritten UNet: what the Neural Engine asks for, and right in float16."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewrites.diffusers_models import fresh_subject, rewrite
from rewrites.forms import convert

pytestmark = pytest.mark.slow

FORMS = ("linear_to_conv2d", "group_norm_to_instance_norm")


def test_unet(tmp_path: Path) -> None:
    case = fresh_subject("sd1")
    rewrite(case, *FORMS)
    graph = convert(case, FORMS, tmp_path)
    assert max(graph.ranks) <= 4
    # Two layers embed the timestep, eight ResNet blocks project it; all stacks share one transposed text.
    assert (graph.kinds["linear"], graph.kinds["transpose"], graph.kinds["instance_norm"]) == (10, 1, 21)
    assert graph.snr_db >= 45.0
    paths = {graph.module_of(weight) for weight in graph.weights}
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k" in paths


def test_naive_has_what_the_rewrites_remove(tmp_path: Path) -> None:
    graph = convert(fresh_subject("vae"), (), tmp_path)
    assert max(graph.ranks) == 5
    assert graph.kinds["linear"] == 4
    assert graph.kinds["transpose"] > 1
