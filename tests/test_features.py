import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthaug import features


def images(n: int = 6, c: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, c, size, size), np.uint8))


@pytest.mark.parametrize("c", [1, 3])
def test_the_distance_of_small_images_is_their_root_mean_square_difference(c: int) -> None:
    a, b = images(2, c)
    x, y = features.Pixel(16)(torch.stack([a, b]))
    expected = (a.double() - b.double()).square().mean().sqrt()
    assert np.linalg.norm(x - y) == pytest.approx(float(expected), rel=1e-6)


def test_large_images_are_averaged_over_equal_areas() -> None:
    pixels = images(1, 1, size=8)
    small = features.Pixel(2)(pixels)[0] * 2  # four values, scaled by 1 / sqrt(4)
    blocks = pixels[0, 0].double().reshape(2, 4, 2, 4).mean((1, 3)).flatten()
    np.testing.assert_allclose(small, blocks, rtol=1e-6)


@pytest.mark.parametrize(("h", "w", "expected"), [(8, 8, 64), (32, 16, 128), (40, 3, 16)])
def test_small_versions_keep_their_shape_and_are_never_enlarged(
    h: int, w: int, expected: int
) -> None:
    pixels = torch.zeros(1, 1, h, w, dtype=torch.uint8)
    assert features.Pixel(16)(pixels).shape == (1, expected)


def test_standardized_distances_are_those_of_the_correlation_whatever_the_brightness() -> None:
    a, b = images(2, 1)
    dim = (a.float() * 0.5 + 20).round().to(torch.uint8)
    x, y, z = features.Pixel(8, standardize=True)(torch.stack([a, b, dim]))
    r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
    assert np.linalg.norm(x - y) == pytest.approx((2 - 2 * r) ** 0.5, rel=1e-5)
    assert np.linalg.norm(x - z) < 0.01


def test_an_image_of_one_color_has_no_structure_and_no_nan() -> None:
    pixels = torch.full((2, 3, 11, 7), 77, dtype=torch.uint8)
    assert not features.Pixel(4, standardize=True)(pixels).any()


@pytest.mark.parametrize("c", [1, 3])
def test_a_shift_changes_a_spectrum_less_than_another_image_does(c: int) -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (20, c, 10, 10)))
    large = nn.functional.interpolate(coarse, (40, 40), mode="bilinear").round().to(torch.uint8)
    here, there = (features.Spectrum()(x) for x in (large[..., 4:36, 4:36], large[..., 8:, 2:34]))
    distance = np.linalg.norm(here[:, None] - there[None], axis=2)
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(20))
    assert here.shape == (20, c * 45)


def test_a_spectrum_holds_the_amplitude_of_every_low_frequency_once() -> None:
    pixels = images(2, 1, size=16)
    x = pixels[0, 0].double()
    x = x - x.mean()
    x = x / x.norm()
    window = np.hanning(18)[1:-1]
    x = x * torch.from_numpy(np.sqrt(np.outer(window, window)))
    full = torch.fft.fft2(x).abs().sqrt()
    expected = [full[i, j] for i in (0, 1, 2, 3, 4, -4, -3, -2, -1) for j in range(5)]
    np.testing.assert_allclose(features.Spectrum()(pixels)[0], expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 40])
def test_spectra_of_any_size_are_finite_and_ignore_brightness_and_contrast(size: int) -> None:
    pixels = images(3, 1, size=size)
    x = features.Spectrum()(pixels)
    assert np.isfinite(x).all()
    assert x.shape[1] <= 45
    darker = (pixels // 4 * 2 + 20).to(torch.uint8)
    np.testing.assert_allclose(
        features.Spectrum()(pixels // 4), features.Spectrum()(darker), atol=1e-3
    )


def test_a_module_is_run_in_evaluation_mode_and_its_first_output_is_flattened() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Any:
            return self.drop(x), x.sum()

    extractor = features.TorchModule(Two())
    pixels = images(4)
    np.testing.assert_allclose(extractor(pixels), pixels.flatten(1).numpy() / 255, rtol=1e-6)
    assert extractor.name == "Two"


def test_gray_images_are_shown_to_a_network_in_three_channels() -> None:
    pixels = images(2, 1)
    assert features.TorchModule(nn.Identity())(pixels).shape == (2, 3 * 64)


def test_preprocess_replaces_the_default() -> None:
    extractor = features.TorchModule(nn.Identity(), preprocess=lambda x: x.float().mean((2, 3)))
    pixels = images(2)
    np.testing.assert_allclose(extractor(pixels), pixels.float().mean((2, 3)).numpy())


def test_a_torchscript_file_gives_what_the_module_gave(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path / "network.pt"
    torch.jit.script(network).save(path)
    extractor = features.TorchScript(path, trusted=True)
    np.testing.assert_allclose(
        extractor(images()), features.TorchModule(network)(images()), rtol=1e-5
    )
    assert extractor.name == "network.pt"
    assert extractor.weights is not None
    assert len(extractor.weights) == 64


def test_a_missing_and_a_wrong_torchscript_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pt does not exist"):
        features.TorchScript(tmp_path / "no.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        features.TorchScript(tmp_path / "text.pt", trusted=True)


def test_digests_change_with_any_weight_and_with_nothing_else() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    before = features.TorchModule(network).weights
    assert features.TorchModule(network).weights == before
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert features.TorchModule(network).weights != before


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_extraction_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    pixels = images(9)
    np.testing.assert_array_equal(
        features.extract(features.Pixel(4), pixels, batch_size=batch_size),
        features.Pixel(4)(pixels),
    )


class Fixed:
    """An extractor that returns what it is told to."""

    name = "fixed"
    dim = None

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __call__(self, pixels: Tensor) -> Any:
        return self.make(len(pixels))


def test_an_object_with_a_name_and_a_call_is_an_extractor() -> None:
    assert isinstance(Fixed(lambda n: np.zeros((n, 2))), features.Extractor)
    assert not isinstance(len, features.Extractor)
    for shipped in (features.Pixel(), features.TorchModule(nn.Identity())):
        assert isinstance(shipped, features.Extractor)


def test_a_value_that_is_not_finite_is_traced_to_its_image() -> None:
    count = iter(range(100))
    extractor = Fixed(lambda n: np.array([[np.nan if next(count) == 7 else 0.0] for _ in range(n)]))
    with pytest.raises(ValueError, match="fixed returned a value that is not finite for image 7"):
        features.extract(extractor, images(9), batch_size=4)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"shape \(9,\) for 9 images"):
        features.extract(Fixed(np.zeros), images(9))
    with pytest.raises(TypeError, match=r"shape \(3, 2\) for 9 images"):
        features.extract(Fixed(lambda n: np.zeros((3, 2))), images(9))
    with pytest.raises(ValueError, match="length 4 and then of length 1"):
        features.extract(Fixed(lambda n: np.zeros((n, n))), images(5), batch_size=4)
    with pytest.raises(ValueError, match="no image"):
        features.extract(features.Pixel(), images(0))
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        features.Pixel(0)
    with pytest.raises(TypeError, match="one row per image"):
        features.TorchModule(nn.Flatten(0))(images(2))


def test_names_make_the_extractors_they_name(tmp_path: Path) -> None:
    for name, shown in (
        ("pixels", "pixels 16x16"),
        ("pixels:8", "pixels 8x8"),
        ("spectrum", "spectrum"),
    ):
        assert features.named(name).name == shown
    torch.jit.script(nn.Flatten()).save(tmp_path / "flat.pt")
    assert features.named(f"torchscript:{tmp_path / 'flat.pt'}", trusted=True)(images(2)).shape == (
        2,
        192,
    )


@pytest.mark.parametrize(("model", "dim"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_a_torchvision_network_gives_what_its_classifier_would_have_been_given(
    model: str, dim: int
) -> None:
    torch.manual_seed(0)
    extractor = features.named(f"torchvision:{model}", pretrained=False)
    assert extractor(images(2, size=32)).shape == (2, dim)
    assert extractor(images(2, 1, size=32)).shape == (2, dim)
    assert extractor.name == f"torchvision {model}"


@pytest.mark.parametrize("name", ["", "pixels:x", "pixels:0", "dino", "torchscript:", "timm:", ":"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"No features are called|`size` must be at least 1"):
        features.named(name)


def test_unknown_networks_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet1'"):
        features.named("torchvision:resnet1")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'synthaug\[timm\]'"):
        features.named("timm:resnet18")


def test_a_classifier_gives_what_its_last_layer_sees_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU())
    network = nn.Sequential(trunk, nn.Linear(7, 3))
    extractor = features.classifier(network)
    pixels = images(4)
    expected = trunk(pixels.float() / 127.5 - 1).detach().numpy()
    np.testing.assert_allclose(extractor(pixels), expected, rtol=1e-5, atol=1e-6)
    assert network(torch.zeros(2, 192)).shape == (2, 3)
    assert features.classifier(nn.Linear(192, 3), preprocess=lambda x: x.float().flatten(1))(
        pixels
    ).shape == (4, 192)
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        features.classifier(nn.Conv2d(3, 4, 3))


def test_features_in_a_folder_are_mapped_and_belong_to_their_images_and_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Counting:
        name, dim, weights = "counting", None, "digest"

        def __call__(self, pixels: Tensor) -> Any:
            calls.append(len(pixels))
            return pixels.flatten(1).numpy().astype(np.float32)

    extractor, folder = Counting(), tmp_path / "features"
    pixels = images(5)

    def kept(pixels: Tensor) -> Any:
        return features.extract(extractor, pixels, batch_size=2, features_dir=folder)

    first = kept(pixels)
    assert isinstance(first, np.memmap)
    np.testing.assert_array_equal(first, pixels.flatten(1).numpy())
    assert calls == [2, 2, 1]
    np.testing.assert_array_equal(kept(pixels), first)
    assert calls == [2, 2, 1]
    np.testing.assert_array_equal(kept(pixels.flip(-1)), pixels.flip(-1).flatten(1).numpy())
    extractor.weights = "other"
    kept(pixels)
    assert calls == [2, 2, 1] * 3
    assert len(list(folder.iterdir())) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert not caplog.text
    damages: tuple[Any, ...] = (  # damaged files are computed again
        lambda whole: whole[:100],
        lambda whole: whole[:10] + b"(" * 118 + whole[128:],  # no Python: an error of tokenize
        lambda whole: whole[:-40] + bytes(4) + whole[-36:],
    )
    for number, damage in enumerate(damages, 1):
        for path in folder.iterdir():
            path.write_bytes(damage(path.read_bytes()))
        np.testing.assert_array_equal(kept(pixels), pixels.flatten(1).numpy())
        assert calls == [2, 2, 1] * (3 + number)
        assert caplog.text.count("is damaged") == number
