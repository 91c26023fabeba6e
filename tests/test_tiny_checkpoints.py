"""The tiny checkpoints are what diffusers itself loads and draws with."""

from typing import Any

import numpy as np
import pytest

from synthaug.synthesizers import streams
from tests.tiny_checkpoints import FAMILIES

FROM_IMAGES = ("inpainting", "superresolution", "upscaler")
WITHOUT_PROMPT: dict[str, dict[str, Any]] = {
    "consistency": {"batch_size": 2, "class_labels": [0, 1]},
    "ddpm": {"batch_size": 2},
    "ddpm_at_the_root": {"batch_size": 2},
    "dit": {"class_labels": [0, 1]},
    "latent_diffusion": {"batch_size": 2},
}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(FROM_IMAGES)))
def test_its_pipeline_draws_a_different_image_for_each_row(tiny_checkpoint, family):
    checkpoint = tiny_checkpoint(family)
    images = checkpoint.pipeline(
        **WITHOUT_PROMPT.get(family, {"prompt": ["a", "b"]}),
        **checkpoint.arguments,
        generator=streams(np.arange(2, dtype=np.uint64)),
        output_type="np",
    ).images
    assert images.shape[0] == 2
    assert images.shape[3] == 3
    assert np.isfinite(images).all()
    assert np.abs(images[0] - images[1]).max() > 1 / 255


@pytest.mark.parametrize("family", ["ddpm", "dit", "flux", "latent_consistency", "sdxl"])
def test_diffusers_loads_the_directory(tiny_checkpoint, family):
    from diffusers import DiffusionPipeline

    checkpoint = tiny_checkpoint(family)
    loaded = DiffusionPipeline.from_pretrained(checkpoint.path)
    assert type(loaded) is type(checkpoint.pipeline)
