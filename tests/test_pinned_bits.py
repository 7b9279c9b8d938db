"""The bits of the quickstart's training on one kind of machine: what changes them must mean to."""

from pathlib import Path

import pytest
import torch
from conftest import options, patterns
from golden import trained

from distmeta.data.pack import pack
from distmeta.learners.params import weights_sha256
from distmeta.models.native.library import KernelsUnavailable, library
from distmeta.training.checkpoint import machine

PINNED_ON = {"machine": "x86_64", "cpu_capability": "AVX512", "torch": "2.13.0+cpu"}
WEIGHTS_AFTER_TWENTY_STEPS = {
    "torch": "3970fb179c8527151d72f9f2a418366ed94e56a5f07637d63c7d73cd8c037531",
    "native": "c0e66978dd47848e4cd379d8fc51901f69cd8de4c29bf4a2ecf975b56a2bce67",
}


@pytest.mark.parametrize("kernels", WEIGHTS_AFTER_TWENTY_STEPS)
def test_twenty_steps_of_the_quickstart_end_in_the_same_bits_as_ever(kernels: str, tmp_path: Path) -> None:
    """Its network, learner and outer loop, on pictures made here. A change on purpose says so in CHANGELOG.md and pins the new bits."""
    here = machine(1, kernels)
    differing = [f"{key} {here[key]}" for key, value in PINNED_ON.items() if here[key] != value]
    if differing:
        pytest.skip(f"pinned on {', '.join(PINNED_ON.values())}; here: {', '.join(differing)}")
    pack(patterns(size=28), tmp_path / "patterns", options(image_size=28))
    if kernels == "native":
        try:
            library("float32")
        except KernelsUnavailable as error:
            pytest.skip(error.message)
    assert torch.get_num_threads() == 1
    this, meta_params, _ = trained(tmp_path / "patterns", kernels, 20)
    assert weights_sha256(this.learner.whole(meta_params)) == WEIGHTS_AFTER_TWENTY_STEPS[kernels]
