import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug._audit import alignment
from synthaug._audit.alignment import REACH, SCALES, Aligner, small
from synthaug._audit.disturbances import jpeg


def fields(n: int, *, c: int = 1, h: int = 16, w: int = 16, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, c, 6, 6)))
    return F.interpolate(coarse, (h, w), mode="bilinear").round().to(torch.uint8)


def aligned(pixels: Tensor, train: Tensor, candidates: list[list[int]]) -> tuple[Tensor, Tensor]:
    distance, flipped = Aligner(train).distances(pixels, np.array(candidates))
    return torch.from_numpy(distance), torch.from_numpy(flipped)


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def blurred(image: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2, 1]) / 4
    kernel = torch.outer(weights, weights).expand(len(image), 1, 3, 3)
    for _ in range(2):
        padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")
        image = F.conv2d(padded, kernel, groups=len(image))[0]
    return image


@pytest.mark.parametrize(("c", "h", "w"), [(1, 16, 16), (3, 16, 16), (1, 8, 12)])
def test_the_distance_is_that_of_the_best_correlated_windows(c: int, h: int, w: int) -> None:
    queries, train = fields(4, c=c, h=h, w=w), fields(5, c=c, h=h, w=w, seed=1)
    distance, flipped = aligned(queries, train, [[0, 1, 2, 3, 4]] * 4)
    for i, query in enumerate(small(queries)):
        for j in range(5):
            image = small(train[j : j + 1])[0]
            compressed = jpeg(train[j : j + 1], 50)
            others = [
                blurred(image),
                small(train[j : j + 1].clamp(max=212))[0],
                small(compressed)[0],
            ]
            best = {}
            for mirrored in (False, True):
                shown = query.flip(-1) if mirrored else query
                top, left = round(h * REACH), round(w * REACH)
                windows = [shown[:, top : h - top, left : w - left]]
                for scale in SCALES:
                    size = (round(h * scale), round(w * scale))
                    windows.append(
                        F.interpolate(shown[None], size, mode="bilinear", antialias=True)[0]
                    )
                pairs = [(window, image) for window in windows]
                pairs += [(windows[0], version) for version in others]
                best[mirrored] = max(
                    correlation(a, b[:, y : y + a.shape[1], x : x + a.shape[2]])
                    for a, b in pairs
                    for y in range(h - a.shape[1] + 1)
                    for x in range(w - a.shape[2] + 1)
                )
            expected = (2 - 2 * max(best.values())) ** 0.5
            assert float(distance[i, j]) == pytest.approx(expected, abs=1e-4)
            assert bool(flipped[i, j]) == (best[True] > best[False])


def test_moved_mirrored_and_recolored_copies_are_at_distance_0_and_others_are_not() -> None:
    train = fields(6, c=3, h=32, w=32)
    moved = F.pad(train.float(), (4, 0, 0, 4), mode="replicate")[..., 4:, :32]
    copies = [train, train.flip(-1), moved, moved.flip(-1), train.float() * 0.5 + 20]
    for copy in copies:
        copy = copy.round().to(torch.uint8)
        distance, _ = aligned(copy, train, [[i, (i + 1) % 6] for i in range(6)])
        assert (distance[:, 0] < 0.02).all()
        assert (distance[:, 1] > 0.3).all()


def test_an_enlarged_part_is_found_in_its_original() -> None:
    train = fields(6, c=3, h=32, w=32)
    for size in (29, 26):
        part = train[..., 2 : 2 + size, 1 : 1 + size].float()
        enlarged = F.interpolate(part, (32, 32), mode="bilinear").round().to(torch.uint8)
        distance, _ = aligned(enlarged, train, [[i, (i + 1) % 6] for i in range(6)])
        assert (distance[:, 0] < 0.1).all()
        assert (distance[:, 1] > 0.3).all()


def test_images_of_one_color_fit_nothing_and_make_no_nan() -> None:
    flat = torch.full((2, 1, 16, 16), 200, dtype=torch.uint8)
    train = torch.cat([fields(1), flat[:1]])
    distance, _ = aligned(flat, train, [[0, 1], [0, 1]])
    np.testing.assert_allclose(distance, 2**0.5)


def test_a_missing_candidate_is_infinitely_far() -> None:
    distance, _ = aligned(fields(1), fields(3), [[0, -1, 2]])
    assert torch.isinf(distance[0]).tolist() == [False, True, False]
    assert distance[0, 0] == pytest.approx(0, abs=5e-3)


@pytest.mark.parametrize("kept_bytes", [2**28, 2**15, 0])
def test_results_depend_neither_on_other_images_nor_on_what_is_kept(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "_KEPT_BYTES", kept_bytes)
    queries, train = fields(300, seed=3), fields(20)
    candidates = np.random.default_rng(0).integers(0, 20, (300, 3))
    aligner = Aligner(train)
    together, _ = aligner.distances(queries, candidates)
    for i in range(0, 300, 37):
        for of in (aligner, Aligner(train)):
            alone, _ = of.distances(queries[i : i + 1], candidates[i : i + 1])
            np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


def test_an_exact_copy_of_little_contrast_is_all_but_at_distance_0() -> None:
    """Were its mean not taken off first, an image far from black would be rounded to 0.1."""
    train = (fields(8, c=3, h=32, w=32).float() / 25 + 200).round().to(torch.uint8)
    distance, _ = aligned(train, train, [[i] for i in range(8)])
    assert distance.max() < 0.03


def test_structure_of_a_single_gray_level_is_seen() -> None:
    rough = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8))
    train = 201 - (rough > 250).to(torch.uint8)
    distance, _ = aligned(train, train, [[i, (i + 1) % 8] for i in range(8)])
    assert (distance[:, 0] < 0.05).all()
    assert (distance[:, 1] > 0.9).all()


def test_a_little_blur_is_hardly_seen_beside_other_differences() -> None:
    rough = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 32, 32), np.uint8))
    blurred = F.avg_pool2d(F.pad(rough.float(), (1, 1, 1, 1), mode="replicate"), 3, 1)
    distance, _ = aligned(blurred.to(torch.uint8), rough, [[i, (i + 1) % 4] for i in range(4)])
    assert (distance[:, 0] < 0.7).all(), "without smoothing it is above 1"
    assert (distance[:, 1] > 1).all()


def test_images_are_smoothed_with_the_kernel_that_is_documented() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 2] = 255
    kernel = torch.tensor([0.25, 0.5, 0.25])
    expected = F.pad(torch.outer(kernel, kernel), (1, 1, 1, 1))
    torch.testing.assert_close(small(image)[0, 0], expected)
    flat = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    torch.testing.assert_close(small(flat), torch.full((1, 3, 4, 4), 0.2))


def test_large_images_are_averaged_down_and_small_ones_are_not() -> None:
    assert small(torch.zeros(1, 3, 128, 64, dtype=torch.uint8)).shape == (1, 3, 32, 16)
    assert small(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).shape == (1, 1, 8, 8)


CHANGES = {
    "blur": lambda pixels: F.avg_pool2d(F.pad(pixels.float(), (1, 1, 1, 1), "replicate"), 3, 1),
    "brightness": lambda pixels: pixels * 1.2,
    "JPEG": lambda pixels: jpeg(pixels, 50),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_copy_lost_is_not_held_against_it(change: str) -> None:
    """It is closer to its original than any fresh image is to anything, by far."""
    originals = fields(20, c=3, h=32, w=32, seed=3)
    copies = CHANGES[change](originals).round().clamp(0, 255).to(torch.uint8)
    distance, _ = aligned(copies, originals, [[i] for i in range(20)])
    fresh, _ = aligned(fields(20, c=3, h=32, w=32, seed=4), originals, [list(range(20))] * 20)
    assert distance.max() < 0.2 * fresh.min()


def test_large_images_are_not_compressed_to_be_compared() -> None:
    images = fields(3, h=48, w=48)
    distance, _ = aligned(jpeg(images, 50), images, [[0], [1], [2]])
    assert distance.max() < 0.1


def test_the_difference_of_a_moved_and_brighter_copy_is_plain_gray() -> None:
    original = fields(2, c=3, h=32, w=32)
    moved = F.pad(original.float() * 0.8 + 30, (3, 0, 0, 0), mode="replicate")[..., :32]
    copy = moved.round().to(torch.uint8)
    for shown in (copy[:1], copy[:1].flip(-1)):
        rest = Aligner(original).difference(shown, 0).int()
        assert rest.shape == (3, 24, 24)
        assert (rest - 128).abs().max() <= 2
    assert (Aligner(original).difference(copy[:1], 1).int() - 128).abs().max() > 20
