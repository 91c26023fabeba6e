import numpy as np
import pytest
import torch

from synthaug.evaluation import CutMix, StandardAugment
from synthaug.images import LabeledImages
from tests.classifiers import evaluate


def test_a_mixed_image_has_the_share_of_each_that_its_label_has():
    pixels = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 10).clone()
    mixed, partner, own = CutMix().mix(pixels)
    for i in range(len(pixels)):
        same = (mixed[i, 0] == pixels[i, 0]).float().mean()
        if partner[i] != i:
            assert float(same) == pytest.approx(float(own[i]), abs=1e-6)
            assert set(mixed[i].unique().tolist()) <= {i, int(partner[i])}
        assert (mixed[i] == mixed[i, :1]).all()  # the same rectangle in all channels
    assert 0.4 < float(own.mean()) < 0.8
    assert sorted(partner.tolist()) == list(range(200))


def test_cutmix_is_an_augmentation_of_evaluate():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = LabeledImages(pixels, np.arange(16) % 2, ["a", "b"])
    test = LabeledImages(255 - pixels, np.arange(16) % 2, ["a", "b"])
    augment = CutMix(first=StandardAugment(padding=1))
    report = evaluate(
        {"x": images}, test=test, steps=2, seeds=1, augment=augment, device="cpu", progress=False
    )
    assert "CutMix" in str(report.arms["x"]["augment"])
    with pytest.raises(ValueError, match="`alpha` must be positive"):
        CutMix(alpha=0)
