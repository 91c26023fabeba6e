"""`ColdRestore`: images that are degraded and restored on their way to the classifier."""

import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

import synthaug.albumentations as ours
from synthaug._datasets import restoration as _restoration
from synthaug._images.convert import like, pixels_of
from synthaug.errors import CheckpointError
from synthaug.images import LabeledImages
from synthaug.transforms import ColdRestore
from tests.checkpoints import Counting, tiny_unet
from tests.images import to_images, to_pixels
from tests.tiny.cold import inpainter

SHAPE = (3, 8, 8)


def pixels(n: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def always() -> ColdRestore:
    return ColdRestore(inpainter(), p=1.0)


def test_an_image_becomes_what_the_synthesizer_makes_of_it():
    restore = ColdRestore(inpainter(), severity_range=(0.3, 0.5), p=0.5)
    batch = pixels(8)
    torch.manual_seed(0)
    params = restore.make_params([batch, torch.zeros(8, dtype=torch.int64)])
    assert 0 < len(params["chosen"]) < 8
    assert all(0.3 <= severity <= 0.5 for severity in params["severity"])
    torch.manual_seed(0)
    found, labels = restore(batch, torch.arange(8))
    views = inpainter().degrade_and_restore(
        to_images(batch[params["chosen"]]), severity=params["severity"], seeds=params["seeds"]
    )
    assert torch.equal(found[params["chosen"]], to_pixels(views))
    rest = [i for i in range(8) if i not in params["chosen"]]
    assert torch.equal(found[rest], batch[rest])
    assert torch.equal(labels, torch.arange(8))


@pytest.mark.parametrize(
    "example",
    [
        Image.new("RGB", (1, 1)),
        Image.new("L", (1, 1)),
        torch.zeros(3, 1, 1, dtype=torch.uint8),
        torch.zeros(3, 1, 1),
        torch.zeros(3, 1, 1, dtype=torch.float64),
        torch.zeros(1, 1, 1),
        tv_tensors.Image(torch.zeros(3, 1, 1, dtype=torch.uint8)),
        tv_tensors.Image(torch.zeros(3, 1, 1)),
    ],
    ids=lambda x: f"{type(x).__name__} {x.mode if isinstance(x, Image.Image) else x.dtype}",
)
def test_every_type_of_image_is_kept_and_restored_alike(example):
    channels = pixels_of(example).shape[0]
    restore = pickle.loads(pickle.dumps(ColdRestore(inpainter(channels), p=1.0)))
    given = pixels(1, channels)[0]
    image, label = like(given, example), torch.tensor(1)
    torch.manual_seed(0)
    expected = restore(given)
    torch.manual_seed(0)
    shown, same = restore(image, label)
    assert same is label
    assert type(shown) is type(image)
    assert getattr(shown, "dtype", None) == getattr(image, "dtype", None)
    assert (pixels_of(shown).int() - expected.int()).abs().max() <= 1
    assert (expected != given).any()


def test_a_checkpoint_may_be_given_by_path(tmp_path, always):
    inpainter().save_pretrained(tmp_path)
    shown = []
    for restore in (ColdRestore(tmp_path, p=1.0), always):
        torch.manual_seed(0)
        shown.append(restore(pixels()[0]).int())
    assert (shown[0] - shown[1]).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_batches_are_restored_image_by_image_each_with_its_own_draw(dtype):
    restore = ColdRestore(inpainter(), severity_range=(0.5, 0.5), p=1.0)
    image = pixels(1) if dtype == torch.uint8 else (pixels(1) / 255).to(dtype)
    batch = tv_tensors.Image(image.expand(4, -1, -1, -1).clone())
    shown = restore(batch)
    assert type(shown) is tv_tensors.Image
    assert shown.dtype == dtype
    assert len(shown.flatten(1).unique(dim=0)) == 4  # other holes


def test_it_is_seeded_by_torch_and_p_is_the_probability_of_a_change():
    restore = ColdRestore(inpainter(), severity_range=(0.1, 0.1), p=0.3)
    batch = pixels(1).expand(400, -1, -1, -1).clone()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(restore(batch))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    changed = (runs[0] != batch).flatten(1).any(1).float().mean()
    assert abs(float(changed) - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5
    image = pixels()[0]
    assert ColdRestore(inpainter(), p=0.0)(image) is image


def test_severities_fill_their_range_and_decide_the_cost():
    counting = Counting(tiny_unet(num_classes=None, channels=3))
    restore = ColdRestore(inpainter(network=counting), severity_range=(0.2, 0.6), p=1.0)
    torch.manual_seed(0)
    severity = restore.make_params([pixels(60)])["severity"]
    assert 0.2 <= min(severity) < 0.23
    assert 0.57 < max(severity) <= 0.6
    torch.manual_seed(0)
    restore(pixels(60))
    assert counting.images == sum(round(10 * s) for s in severity)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_a_pipeline_in_workers_of_a_loader_epochs_and_workers_differ():
    real = LabeledImages(pixels(1).expand(8, -1, -1, -1).clone(), [0] * 8, ["bug"])
    real.transform = v2.Compose(
        [ColdRestore(inpainter(), p=1.0), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    torch.manual_seed(0)
    loader = DataLoader(real, batch_size=4, num_workers=2, multiprocessing_context="fork")
    epochs = [torch.cat([images for images, _ in loader]) for _ in range(2)]
    assert len(torch.cat(epochs).flatten(1).unique(dim=0)) > 12  # of 16; 4 if all were alike


def test_what_it_makes_can_be_trained_on(always):
    weight = torch.ones(3, requires_grad=True)
    (always(pixels(2) / 255) * weight.view(3, 1, 1)).square().sum().backward()
    assert weight.grad is not None


def test_float_images_are_not_rounded_to_levels(always):
    shown = always(pixels(2) / 255)
    assert (shown * 255 - (shown * 255).round()).abs().max() > 0.1
    assert 0 <= shown.min() <= shown.max() <= 1


def test_in_a_worker_only_a_network_on_the_cpu_can_be_used(always, monkeypatch):
    monkeypatch.setattr(_restoration, "get_worker_info", lambda: object())
    always(pixels(1))
    cold = inpainter(network=tiny_unet(num_classes=None, channels=3).to("meta"))
    with pytest.raises(RuntimeError, match=r"is on meta, .* Apply the transform to batches, after"):
        ColdRestore(cold, p=1.0)(pixels(1))


def test_what_makes_no_sense_is_refused(always):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"p": 1.5}, r"`p` must be in \[0, 1\], got 1\.5"),
        ({"severity_range": (0.5, 0.2)}, r"in \(0, 1\]; got \(0\.5, 0\.2\)"),
        ({"severity_range": (0.0, 0.2)}, "`severity_range` must be the smallest and the largest"),
        ({"severity_range": (0.2,)}, "`severity_range` must be the smallest and the largest"),
    ]
    for settings, message in wrong:
        for transform in (ColdRestore, ours.ColdRestore):
            with pytest.raises(ValueError, match=message):
                transform(inpainter(), **settings)
    with pytest.raises(TypeError, match="`cold` is a float, expected a `ColdDiffusion`"):
        ColdRestore(0.5)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="runs/cold"):
        ColdRestore("runs/cold")
    with pytest.raises(ValueError, match=r"restores images of shape \(3, 8, 8\)\. Resize"):
        always(torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match=r"expected \(C, H, W\) or \(n, C, H, W\)"):
        always(torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"values from -1 to 1, .* before `Normalize`"):
        always(2 * torch.eye(8).expand(3, 8, 8) - 1)
    with pytest.raises(TypeError, match="expected uint8, or floating point"):
        always(pixels(1).int())
    with pytest.raises(TypeError, match=r"shape \(8, 8\) cannot follow an image"):
        always(pixels()[0], torch.zeros(8, 8))
    with pytest.raises(TypeError, match=r"shape \(2, 4\) cannot follow an image"):
        always(pixels(1), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="Mask cannot follow an image"):
        always(pixels(1), tv_tensors.Mask(torch.zeros(8, 8)))
    with pytest.raises(ValueError, match=r"must have one batch size, got \[2, 3\]"):
        always(tv_tensors.Image(pixels(2)), tv_tensors.Image(pixels(3)))


# -- albumentations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        lambda x: x,
        lambda x: (x / 255).astype(np.float32),
        lambda x: x[..., :1],
        lambda x: x[..., 0],
    ],
    ids=["color", "float", "gray (H, W, 1)", "gray (H, W)"],
)
def test_arrays_keep_their_type_in_albumentations(image):
    given = image(pixels()[0].permute(1, 2, 0).numpy())
    cold = inpainter(3 if given.shape[2:] == (3,) else 1)
    restore = ours.ColdRestore(cold, severity_range=(0.5, 0.5), p=1.0)
    pipeline = A.Compose([restore, A.HorizontalFlip(p=0.0)], seed=0)
    made = pipeline(image=given, label=1)
    assert made["label"] == 1
    shown = made["image"]
    assert (shown.dtype, shown.shape) == (given.dtype, given.shape)
    assert np.abs(shown.astype(float) - given).max() > 0
    assert not np.array_equal(pipeline(image=given)["image"], shown)  # another hole
    again = A.Compose([restore, A.HorizontalFlip(p=0.0)], seed=0)(image=given)["image"]
    assert np.array_equal(again, shown)


def test_albumentations_restores_as_torchvision_does():
    restore = ours.ColdRestore(inpainter(), severity_range=(0.3, 0.3), p=1.0)
    image = pixels()[0].permute(1, 2, 0).numpy()
    expected = inpainter().degrade_and_restore(to_images(pixels()), severity=[0.3], seeds=[7])
    shown = restore.apply(image, severity=0.3, seed=7)
    assert np.array_equal(shown, to_pixels(expected)[0].permute(1, 2, 0).numpy())


def test_albumentations_refuses_what_cannot_follow():
    restore = ours.ColdRestore(inpainter(), p=1.0)
    image = pixels()[0].permute(1, 2, 0).numpy()
    with pytest.raises(TypeError, match="`mask` cannot follow an image"):
        restore(image=image, mask=np.zeros((8, 8), np.uint8))
