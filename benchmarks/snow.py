"""Our snow beside that of ImageNet-C, on the same photographs and with the same settings.

    pip install imagecorruptions-imaug     # in an environment of its own, if it does not fit yours
    python benchmarks/snow.py              # writes benchmarks/results/snow.json and snow.png

The field of flakes is random in both, so statistics over patches are compared and not pixels: by
how much images get lighter, what contrast they keep, and how many pixels are white.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from synthaug.degradations import Snow
from synthaug.synthesizers import streams

RESULTS = Path(__file__).parent / "results"
# Of each severity: mean and spread of the field, zoom, threshold, radius and spread of the motion,
# share of the image; from the published recipe.
SEVERITIES = (
    (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
)


def patches(count: int, size: int) -> NDArray[np.uint8]:
    """Crops of scikit-learn's two photographs, uint8 (count, size, size, 3)."""
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images().images, np.random.default_rng(0)
    crops = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (int(rng.integers(side - 2 * size)) for side in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + 2 * size, left : left + 2 * size])
        crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(crops)


def ours(images: NDArray[np.uint8], setting: tuple[Any, ...]) -> NDArray[np.uint8]:
    """The images under our snow."""
    mean, spread, zoom, threshold, radius, motion, share = setting
    snow = Snow(
        num_levels=1,
        field_mean=mean,
        field_std=spread,
        zoom=zoom,
        threshold=(threshold, threshold),
        motion_radius=radius,
        motion_std=(motion, motion),
        brightness=(share, share),
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    channels, height, width = x.shape[1:]
    noise = streams(np.arange(len(x), dtype=np.uint64))
    drawn = snow.realize(noise, (channels, height, width))
    levels = ((snow(x, 1, drawn) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def theirs(images: NDArray[np.uint8], severity: int) -> NDArray[np.uint8]:
    """The images under the snow of `imagecorruptions`."""
    from imagecorruptions import corrupt

    np.random.seed(0)  # noqa: NPY002 - the generator that it uses
    return np.stack([corrupt(image, severity, "snow") for image in images])


def statistics(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> dict[str, float]:
    """Measures the effect of snow on images, in gray levels."""
    clean, snowed = before.astype(float), after.astype(float)
    contrast = snowed.std((1, 2, 3)) / clean.std((1, 2, 3))
    return {
        "lighter_by": float((snowed - clean).mean()),
        "lighter_by_spread": float((snowed - clean).mean((1, 2, 3)).std()),
        "contrast_kept": float(contrast.mean()),
        "white": float((after == 255).all(-1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128])
    options = parser.parse_args()
    found: dict[str, Any] = {"images": options.images, "sizes": {}}
    for size in options.sizes:
        images, rows = patches(options.images, size), []
        shown = [images[:8]]
        for severity, setting in enumerate(SEVERITIES, 1):
            pair = {"ours": ours(images, setting), "theirs": theirs(images, severity)}
            rows.append({name: statistics(images, after) for name, after in pair.items()})
            shown += [after[:8] for after in pair.values()]
            print(size, severity, json.dumps(rows[-1]))
        found["sizes"][str(size)] = rows
        if size == min(options.sizes):
            sheet = np.concatenate([np.concatenate(list(row), 1) for row in shown], 0)
    Image.fromarray(sheet).save(RESULTS / "snow.png")
    (RESULTS / "snow.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
