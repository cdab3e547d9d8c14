from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from md_export.errors import RewriteError
from md_export.models.config import ModelConfig
from md_export.models.layers import Attention, Gelu, Relu, Softmax, Swish
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.spec.sampler import OneStep

STEP = OneStep(999, 0.068265, -0.997667, 1.0, "v_prediction")


@pytest.fixture
def unet(other_config: ModelConfig) -> MDUNet:
    torch.manual_seed(0)
    assert isinstance(other_config.denoiser, MDUNetConfig)
    return MDUNet(other_config.denoiser).eval()


def run(unet: MDUNet) -> torch.Tensor:
    config = unet.config
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, config.in_channels, 8, 8, generator=generator)
    text = torch.randn(1, 77, config.cross_attention_dim, generator=generator)
    with torch.inference_mode():
        out: torch.Tensor = unet(sample, torch.tensor([999.0]), text)
    return out


def count(unet: MDUNet, kind: type) -> int:
    return sum(isinstance(module, kind) for module in unet.modules())


@pytest.mark.parametrize(
    ("name", "before", "after"), [("gelu_to_swish", Gelu, Swish), ("softmax_to_relu", Softmax, Relu)]
)
def test_replaces_every_place_and_reports_how_many(unet: MDUNet, name: str, before: type, after: type) -> None:
    places, reference = count(unet, before), run(unet)
    (record,) = apply_rewrites((name,), "unet", unet, STEP, Consent(allow_drift=True))
    assert (record.fired, record.exact) == (places, False)
    assert (count(unet, before), count(unet, after)) == (0, places)
    assert not torch.allclose(run(unet), reference), "a rewrite that changes the function must change the output"


def test_refused_without_training(unet: MDUNet) -> None:
    with pytest.raises(RewriteError, match="--allow-drift"):
        apply_rewrites(("gelu_to_swish",), "unet", unet, STEP, Consent())


def test_accepted_where_the_checkpoint_was_trained_so(unet: MDUNet) -> None:
    (record,) = apply_rewrites(("softmax_to_relu",), "unet", unet, STEP, Consent(trained=("softmax_to_relu",)))
    assert record.fired > 0
    assert "trained" in record.note


def test_already_in_place_is_accepted_and_changes_nothing(unet: MDUNet) -> None:
    apply_rewrites(("gelu_to_swish",), "unet", unet, STEP, Consent(allow_drift=True))
    reference = run(unet)
    (record,) = apply_rewrites(("gelu_to_swish",), "unet", unet, STEP, Consent())
    assert record.fired == 0
    assert torch.equal(run(unet), reference)


def test_firing_nowhere_is_an_error() -> None:
    with pytest.raises(RewriteError, match="fires nowhere in unet"):
        apply_rewrites(("gelu_to_swish",), "unet", torch.nn.Linear(2, 2), STEP, Consent(allow_drift=True))


def test_other_components_are_left_alone() -> None:
    assert apply_rewrites(("gelu_to_swish",), "vae_decoder", torch.nn.Linear(2, 2), STEP, Consent()) == ()


def test_unknown_name_gives_the_nearest(unet: MDUNet) -> None:
    with pytest.raises(RewriteError, match="did you mean gelu_to_swish"):
        apply_rewrites(("gelu_to_swiss",), "unet", unet, STEP, Consent(allow_drift=True))


@pytest.mark.parametrize("name", REWRITES)
def test_every_rewrite_is_documented(name: str) -> None:
    apply: Callable[..., int] = REWRITES[name].apply
    assert apply.__doc__
    assert __import__(f"md_export.rewrites.{name}", fromlist=["x"]).__doc__


def test_relu_attention_divides_by_the_number_of_keys() -> None:
    attention = Attention(8, 4, None, Relu(2.0)).eval()
    scores = torch.tensor([[1.0, -1.0, 3.0, 0.0]])
    assert torch.equal(attention.weights(scores), torch.tensor([[0.5, 0.0, 1.5, 0.0]]))
