"""fold_timestep, fold_attention_scale and fold_x0: constants that move into weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from md_export.errors import RewriteError
from md_export.models.layers import ResnetBlock, SepConvBlock
from md_export.models.sampling.sampler import linear
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES
from md_export.rewrites.fold_timestep import OneStepUNet, fold_timestep
from md_export.rewrites.fold_x0 import fold_x0
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject

SMALL = MDUNetConfig(
    sample_size=8,
    block_out_channels=(16, 32, 48),
    cross_attention_dim=24,
    attention_head_dim=8,
    norm_num_groups=4,
    time_embed_dim=32,
    down_layers=1,
    up_layers=1,
)


def inputs(config: MDUNetConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, config.in_channels, 8, 8, generator=generator)
    text = torch.randn(1, 77, config.cross_attention_dim, generator=generator)
    return sample, torch.tensor([999.0]), text


@pytest.mark.parametrize("time", ["scale_shift", "after_dw", "hidden"])
def test_timestep_in_every_kind_of_block(time: str, step: OneStep) -> None:
    torch.manual_seed(0)
    unet = MDUNet(replace(SMALL, sep_conv_time=time)).eval().requires_grad_(False)
    sample, timestep, text = inputs(unet.config)
    expected = unet(sample, timestep, text).numpy()
    blocks = sum(isinstance(layer, (ResnetBlock, SepConvBlock)) for layer in unet.modules())
    assert fold_timestep(unet, step) == blocks
    assert compare(unet(sample, text).numpy(), expected).snr_db >= EXACT_DB
    assert not [name for name, _ in unet.named_parameters() if "time_" in name]


def test_another_timestep_is_seen(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    fold_timestep(case.module, replace(case.step, timestep=998))
    assert case.snr_db(("timestep",)) < EXACT_DB - 20


def test_the_checkpoint_is_not_written_to(subject: Callable[[str, str], Subject]) -> None:
    """Its tensors may be mapped from the file."""
    case = subject("nano", "unet")
    before = {name: (tensor, tensor.clone()) for name, tensor in case.module.state_dict().items()}
    case.rewrite("fold_timestep", "fold_attention_scale", "fold_x0")
    assert all(torch.equal(tensor, copy) for tensor, copy in before.values())


def test_the_table_says_what_is_dropped_and_renamed() -> None:
    assert REWRITES["fold_timestep"].drops == ("timestep",)
    assert REWRITES["fold_x0"].output == "latent"


@pytest.mark.parametrize("model", ["nano", "other"])
@pytest.mark.parametrize("names", [("fold_x0",), ("fold_timestep", "fold_x0")])
def test_x0(subject: Callable[[str, str], Subject], step: OneStep, model: str, names: tuple[str, ...]) -> None:
    """With the coefficients of noise prediction, the hardest ones."""
    case = replace(subject(model, "unet"), step=step)
    given = (array.astype(np.float32) for array in (case.arrays["sample"], case.expected))
    expected = linear(step.a, step.b, *given) / np.float32(step.scaling_factor)
    case.rewrite(*names)
    dropped = ("timestep",) if len(names) == 2 else ()
    # b = -14.6 multiplies the rounding of the output, a·sample the signal.
    assert compare(case.run(dropped), expected).snr_db >= EXACT_DB
    case.module.x0.of_sum *= 1.001  # type: ignore[union-attr, operator]
    assert compare(case.run(dropped), expected).snr_db < EXACT_DB - 20


def test_x0_before_the_timestep_is_refused(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="fold_timestep must come before fold_x0"):
        subject("nano", "unet").rewrite("fold_x0", "fold_timestep")


def test_nothing_to_fold_in_another_module(step: OneStep) -> None:
    assert fold_timestep(torch.nn.Linear(2, 2), step) == 0
    assert fold_x0(torch.nn.Linear(2, 2), step) == 0


def test_a_second_time_it_is_in_place_already(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    names = ("fold_timestep", "fold_attention_scale", "fold_x0")
    case.rewrite(*names)
    assert [record.fired for record in case.rewrite(*names)] == [0, 0, 0]
    assert isinstance(case.module, OneStepUNet)


def test_scale_is_exact_for_heads_of_64() -> None:
    """1/8: the stored weights are the checkpoint's, exponent aside."""
    torch.manual_seed(0)
    config = replace(SMALL, block_out_channels=(16, 64, 64), attention_head_dim=64)
    unet = MDUNet(config).eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items() if "to_q" in name}
    REWRITES["fold_attention_scale"].apply(unet, OneStep(999, 0.0, 1.0, 1.0, "sample"))
    assert before
    assert all(torch.equal(unet.state_dict()[name] * 8, tensor) for name, tensor in before.items())
