"""Random components of small widths and a module of every kind of weight, as Core AI assets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from md_export.models.families import COMPONENTS
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from small_models import NANO, random_inputs
from support import installed

TOKENS, WIDTH, WORDS = 24, 32, 40


@pytest.fixture(autouse=True, scope="session")
def coreai() -> Any:
    """The target; skips where its libraries are not installed."""
    installed("coreai")
    return TARGETS["coreai"].open()


class EveryWeight(nn.Module):
    """An embedding, linear layers, a convolution, both norms: ``[1, 24]`` → ``[1, 32, 24, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.square = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv2d(WIDTH, 2 * WIDTH, (3, 1), padding=(1, 0))
        self.groups = nn.GroupNorm(4, 2 * WIDTH)
        self.turned = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token numbers → a map."""
        found = self.square(self.norm(self.words(input_ids)))
        maps = nn.functional.silu(self.groups(self.conv(found.transpose(1, 2)[..., None])))
        # Behind a permutation of four axes the converter folds the transposition into the weight.
        tokens = maps.permute(0, 2, 3, 1).reshape(1, TOKENS, -1)
        turned: Tensor = self.turned(tokens).transpose(1, 2)[..., None]
        return turned


@dataclass(frozen=True)
class Subject:
    """A module with inputs, and torch's answer."""

    component: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    given: Arrays

    def job(self, scheme: QuantScheme, workdir: Path) -> LoweringJob:
        return LoweringJob(
            self.component,
            self.module,
            self.inputs,
            self.outputs,
            self.given,
            scheme,
            (self.given,),
            workdir,
            notes={"component": self.component, "checkpoint_sha256": "0" * 64},
        )

    def expected(self) -> Array:
        with torch.no_grad():
            made: Array = self.module(*(torch.from_numpy(self.given[spec.name]) for spec in self.inputs)).numpy()
        return made

    def export(self, scheme: QuantScheme, folder: Path) -> Path:
        """As ``folder/x.aimodel``."""
        target, path, job = TARGETS["coreai"].open(), folder / "x.aimodel", self.job(scheme, folder)
        target.lower(job).quantize(job).save(path)
        return path


def small_subject() -> Subject:
    torch.manual_seed(0)
    given = {"input_ids": torch.randint(0, WORDS, (1, TOKENS), dtype=torch.int32).numpy()}
    inputs, outputs = TensorSpec("input_ids", (1, TOKENS), "int32"), TensorSpec("out", (1, WIDTH, TOKENS, 1), "float32")
    return Subject("text_encoder", EveryWeight().eval(), (inputs,), (outputs,), given)


def component_subject(component: str) -> Subject:
    entry = COMPONENTS[component]
    torch.manual_seed(0)
    module = entry.build(NANO).eval()
    return Subject(
        component, module, entry.input_specs(NANO), entry.output_specs(NANO), random_inputs(component, NANO, 0)
    )


@pytest.fixture(scope="session")
def subject() -> Callable[[str], Subject]:
    """``subject("unet")``, or ``"small"``; built once."""
    built: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in built:
            built[name] = small_subject() if name == "small" else component_subject(name)
        return built[name]

    return get


@pytest.fixture(scope="session")
def asset(tmp_path_factory: pytest.TempPathFactory, subject: Callable[[str], Subject]) -> Callable[..., Path]:
    """``asset("small", scheme)``, made once. Do not change it."""
    made: dict[tuple[str, QuantScheme], Path] = {}

    def get(name: str, scheme: QuantScheme) -> Path:
        if (name, scheme) not in made:
            made[name, scheme] = subject(name).export(scheme, tmp_path_factory.mktemp(name))
        return made[name, scheme]

    return get
