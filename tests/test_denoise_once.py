"""`DenoiseOnce`: noise on an image, and one network evaluation to take it off again."""

import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import synthaug.albumentations as ours
from synthaug._noise import stream
from synthaug.synthesizers import ClassConditional, DiffusionModel
from synthaug.transforms import DenoiseOnce
from tests.checkpoints import cosine_config, sampled, tiny_unet
from tests.images import randn, to_images, to_pixels
from tests.tiny.class_conditional import NAMES, Real, tiny


def pixels(n: int = 1) -> Tensor:
    return Real().read(np.arange(n))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_image_becomes_the_clean_estimate_of_the_formula(prediction: str) -> None:
    synthesizer = tiny(scheduler_config=cosine_config(prediction_type=prediction))
    denoise = DenoiseOnce(synthesizer, t_range=(0.2, 0.7), p=1.0)
    batch = pixels(4)
    torch.manual_seed(0)
    params = denoise.make_params([batch])
    torch.manual_seed(0)
    shown, labels = denoise(batch, torch.arange(4))
    assert labels.tolist() == [0, 1, 2, 3]
    abar = synthesizer.model.make_scheduler("ddpm").alphas_cumprod.double()
    network = synthesizer.model.network
    for i, (share, seed) in enumerate(zip(params["severity"], params["seeds"], strict=True)):
        assert 0.2 <= share <= 0.7
        t = round(share * 1000) - 1
        a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
        x = to_images(batch[i : i + 1]).double()
        noisy = a * x + b * randn([stream(seed)], (1, 8, 8))
        with torch.no_grad():  # class 4 is the null class
            said = network(noisy.float(), t, class_labels=torch.tensor([4])).sample.double()
        estimate = {
            "epsilon": (noisy - b * said) / a,
            "v_prediction": a * noisy - b * said,
            "sample": said,
        }[prediction]
        expected = to_pixels(estimate.clamp(-1, 1).float())
        assert (shown[i].int() - expected[0].int()).abs().max() <= 1


def test_an_image_costs_one_evaluation() -> None:
    synthesizer, calls = tiny(), []
    hook: Any = synthesizer.model.network.register_forward_hook
    hook(lambda *call: calls.append(len(call[2].sample)))
    DenoiseOnce(synthesizer, p=1.0)(pixels(5))
    assert calls == [5]


def test_every_type_is_kept_and_rows_do_not_depend_on_each_other() -> None:
    denoise = pickle.loads(pickle.dumps(DenoiseOnce(tiny(), t_range=(0.3, 0.3), p=1.0)))
    batch = tv_tensors.Image((pixels(1) / 255).expand(3, -1, -1, -1).clone())
    torch.manual_seed(0)
    shown = denoise(batch)
    assert type(shown) is tv_tensors.Image
    assert shown.dtype == torch.float32
    assert len(shown.flatten(1).unique(dim=0)) == 3  # other noise each
    image = v2.functional.to_pil_image(pixels()[0])
    assert denoise(image).mode == "L"
    half = DenoiseOnce(tiny(), p=0.5)
    many = pixels(1).expand(300, -1, -1, -1).clone()
    changed = (half(many) != many).flatten(1).any(1).float().mean().item()
    assert 0.4 < changed < 0.6


def test_a_path_and_albumentations_do_the_same(tmp_path: Any) -> None:
    tiny().save_pretrained(tmp_path)
    image = pixels()[0, 0].numpy()
    denoise = ours.DenoiseOnce(tmp_path, t_range=(0.3, 0.3), p=1.0)
    shown = denoise.apply(image, severity=0.3, seed=7)
    one_step = DenoiseOnce(tiny())._restoration.cold
    expected = one_step.degrade_and_restore(to_images(pixels()), severity=[0.3], seeds=[7])
    assert (shown.astype(int) - to_pixels(expected)[0, 0].numpy()).max() <= 1
    pipeline = A.Compose([denoise], seed=0)
    replayed = A.from_dict(A.to_dict(pipeline))
    first = pipeline(image=image)["image"]
    assert first.shape == image.shape
    assert not np.array_equal(first, image)
    assert replayed is not None
    with pytest.raises(NotImplementedError, match="was given `synthesizer` as an object"):
        A.to_dict(A.Compose([ours.DenoiseOnce(tiny())]))


def test_what_makes_no_sense_is_refused() -> None:
    always_a_class = ClassConditional(
        model=DiffusionModel(
            network=tiny_unet(),
            scheduler_config=cosine_config(),
            classes=NAMES,
            image_shape=(1, 8, 8),
            unconditional_branch=False,
        ),
        **sampled(num_inference_steps=2),
    )
    for transform in (DenoiseOnce, ours.DenoiseOnce):
        make: Any = transform
        with pytest.raises(ValueError, match="`t_range` must be the smallest and the largest"):
            make(tiny(), t_range=(0.5, 0.2))
        with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
            make(tiny(), p=2)
        with pytest.raises(TypeError, match="`synthesizer` is a float, expected a `ClassCond"):
            make(0.5)
        with pytest.raises(ValueError, match="`synthesizer` always needs a class"):
            make(always_a_class)
    with pytest.raises(ValueError, match="Resize them first"):
        DenoiseOnce(tiny(), p=1.0)(torch.zeros(1, 9, 9))
