"""Thirty kinds of copies for measuring the audit, fixed before the detector that they measure.

    python benchmarks/audit_kinds.py --data folder:cifar10/train

Each kind changes an image in one way and at one strength: a person who sees it beside its original
knows it again, and yet the two are more than 10 gray levels apart (root mean square, the median of
many photos). None is a change that the audit plants or aligns by. `tests/test_audit_kinds.py` holds
names, strengths and outputs: whoever changes the audit does not change what it is measured with.

Lengths are in pixels of an image of 32 x 32, and grow with the image. What a kind draws at random,
such as the direction of a rotation, follows from a seed and the number of the image. Run as a
script, this writes how far each kind is from its originals, and a sheet of examples to look at.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from _machine import RESULTS, write
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from synthaug import load_dataset

Photo = NDArray[np.uint8]
"""One image, (H, W, 3)."""

Points = NDArray[np.float64]
"""Where each pixel of a changed image is looked up in its original, (2, H, W): row and column."""


@dataclass(frozen=True)
class Kind:
    """One way in which a copy differs from its original."""

    name: str
    change: Callable[..., NDArray[Any]]
    """Takes a photo, another photo, a random generator and `strength`; returns gray levels, which
    are rounded and clipped."""
    strength: dict[str, float] = field(default_factory=dict)
    colors: bool = False
    """Whether only images in color can be changed so."""

    def apply(self, pixels: Any, others: Any, seed: int = 0) -> NDArray[np.uint8]:
        """Changes images, uint8 (n, C, H, W), each one as its number and the seed have it.

        `others`, as many, are what a copy may show besides its original.
        """
        images = np.asarray(pixels)
        if self.colors and images.shape[1] == 1:
            raise ValueError(f"'{self.name}' needs images in color.")
        pairs = zip(_photos(images), _photos(np.asarray(others)), strict=True)
        changed = [
            self.change(photo, other, np.random.default_rng([seed, i]), **self.strength)
            for i, (photo, other) in enumerate(pairs)
        ]
        levels = np.stack(changed).astype(np.float64).transpose(0, 3, 1, 2)  # HWC => CHW
        if images.shape[1] == 1:
            levels = levels.mean(axis=1, keepdims=True)
        return levels.round().clip(0, 255).astype(np.uint8)


def _photos(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images, (n, C, H, W), in color and with the channels last."""
    colored = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    return colored.transpose(0, 2, 3, 1)


def _side(photo: Photo) -> float:
    """The longer side, in units of 32 pixels."""
    return max(photo.shape[:2]) / 32


def _filed(photo: Photo, form: str, quality: float, enlarged: float) -> Photo:
    """Saved as a file, larger than it is if `enlarged` is above 1, and made small again."""
    height, width = photo.shape[:2]
    large = (round(width * enlarged), round(height * enlarged))
    buffer = io.BytesIO()
    Image.fromarray(photo).resize(large, Image.Resampling.BICUBIC).save(
        buffer, form, quality=int(quality)
    )
    decoded = Image.open(buffer).convert("RGB")
    return np.asarray(decoded.resize((width, height), Image.Resampling.BOX))


def jpeg(photo: Photo, other: Photo, rng: Any, quality: float, enlarged: float) -> Photo:
    return _filed(photo, "JPEG", quality, enlarged)


def webp(photo: Photo, other: Photo, rng: Any, quality: float, enlarged: float) -> Photo:
    return _filed(photo, "WEBP", quality, enlarged)


def gamma(photo: Photo, other: Photo, rng: Any, exponent: float) -> NDArray[Any]:
    return 255 * (photo / 255) ** exponent


def contrast(photo: Photo, other: Photo, rng: Any, factor: float) -> NDArray[Any]:
    return photo.mean() + factor * (photo - photo.mean())


def s_curve(photo: Photo, other: Photo, rng: Any, slope: float) -> NDArray[Any]:
    """Shadows darker and lights lighter, as photo filters do."""
    return 127.5 * (1 + np.tanh(slope * (photo / 127.5 - 1)) / np.tanh(slope))


def hue(photo: Photo, other: Photo, rng: Any, degrees: float) -> Photo:
    hsv = np.array(Image.fromarray(photo).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees * 256 / 360)) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def saturation(photo: Photo, other: Photo, rng: Any, factor: float) -> NDArray[Any]:
    gray = photo.mean(axis=2, keepdims=True)
    return gray + factor * (photo - gray)


def color_cast(photo: Photo, other: Photo, rng: Any, red: float, blue: float) -> NDArray[Any]:
    return photo * np.array([red, 1, blue])


def grayscale(photo: Photo, other: Photo, rng: Any, contrast: float) -> NDArray[Any]:
    gray = photo @ np.array([0.299, 0.587, 0.114])
    return np.repeat((gray.mean() + contrast * (gray - gray.mean()))[..., None], 3, axis=2)


def swapped_channels(photo: Photo, other: Photo, rng: Any) -> Photo:
    return photo[..., ::-1]


def sharpened(photo: Photo, other: Photo, rng: Any, radius: float, percent: float) -> Photo:
    mask = ImageFilter.UnsharpMask(radius * _side(photo), int(percent), 0)
    return np.asarray(Image.fromarray(photo).filter(mask))


def motion_blur(photo: Photo, other: Photo, rng: Any, length: float) -> NDArray[Any]:
    """The mean of the photo moved along a line of random direction."""
    angle = rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 9) * length * _side(photo)
    moved = [
        _looked_up(photo, _grid(photo) + _column(s * np.sin(angle), s * np.cos(angle)))
        for s in steps
    ]
    return np.mean(moved, axis=0)


def gray_noise(photo: Photo, other: Photo, rng: Any, sigma: float) -> NDArray[Any]:
    """Gaussian noise, the same in all channels."""
    return photo + rng.normal(0, sigma, (*photo.shape[:2], 1))


def salt_and_pepper(photo: Photo, other: Photo, rng: Any, share: float) -> NDArray[Any]:
    drawn = rng.random((*photo.shape[:2], 1))
    return np.where(drawn < share / 2, 0, np.where(drawn > 1 - share / 2, 255, photo))


def dithered(photo: Photo, other: Photo, rng: Any, colors: float) -> Photo:
    """Few colors of its own, and errors spread to the neighbors, as in a GIF."""
    image = Image.fromarray(photo)
    palette = image.quantize(int(colors), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    spread = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(spread.convert("RGB"))


def pixelated(photo: Photo, other: Photo, rng: Any, block: float) -> Photo:
    height, width = photo.shape[:2]
    small = (round(width / (block * _side(photo))), round(height / (block * _side(photo))))
    image = Image.fromarray(photo).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def _grid(photo: Photo) -> Points:
    height, width = photo.shape[:2]
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(float)


def _column(row: float, column: float) -> Points:
    return np.array([row, column])[:, None, None]


def _looked_up(photo: Photo, points: Points) -> NDArray[np.float64]:
    """The photo at points between its pixels, bilinear; beyond its border, the border."""
    last = _column(photo.shape[0] - 1, photo.shape[1] - 1)
    points = points.clip(0, last)
    first = np.minimum(points.astype(int), last.astype(int) - 1)
    (y, x), (v, u) = first, (points - first)[..., None]
    upper = (1 - u) * photo[y, x] + u * photo[y, x + 1]
    lower = (1 - u) * photo[y + 1, x] + u * photo[y + 1, x + 1]
    return (1 - v) * upper + v * lower


def _about_middle(photo: Photo, matrix: Any) -> NDArray[np.float64]:
    """Looks each pixel up where the matrix takes it, seen from the middle."""
    middle = _column((photo.shape[0] - 1) / 2, (photo.shape[1] - 1) / 2)
    return _looked_up(photo, middle + np.einsum("ij,jhw->ihw", matrix, _grid(photo) - middle))


def rotated(photo: Photo, other: Photo, rng: Any, degrees: float) -> NDArray[Any]:
    angle = np.deg2rad(degrees) * rng.choice([-1, 1])
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return _about_middle(photo, turn)


def sheared(photo: Photo, other: Photo, rng: Any, slope: float) -> NDArray[Any]:
    return _about_middle(photo, [[1, 0], [slope * rng.choice([-1, 1]), 1]])


def moved(photo: Photo, other: Photo, rng: Any, rows: float, columns: float) -> NDArray[Any]:
    step = _side(photo) * np.array([rows, columns]) * rng.choice([-1, 1], 2)
    return _looked_up(photo, _grid(photo) + _column(*step))


def cropped(photo: Photo, other: Photo, rng: Any, height: float, width: float) -> NDArray[Any]:
    """A part of other proportions, from a random place, stretched to the whole."""
    kept = np.array([height, width])
    start = (1 - kept) * rng.random(2) * photo.shape[:2]
    return _looked_up(photo, _column(*start) + _grid(photo) * _column(*kept))


def zoomed_out(photo: Photo, other: Photo, rng: Any, share: float) -> NDArray[Any]:
    """Made smaller, with a black border around it."""
    height, width = photo.shape[:2]
    small = Image.fromarray(photo).resize(
        (round(width * share), round(height * share)), Image.Resampling.BICUBIC
    )
    framed = Image.new("RGB", (width, height))
    framed.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return np.asarray(framed)


def mirrored_gamma(photo: Photo, other: Photo, rng: Any, exponent: float) -> NDArray[Any]:
    return gamma(photo[:, ::-1], other, rng, exponent)


def perspective(photo: Photo, other: Photo, rng: Any, tilt: float) -> NDArray[Any]:
    """One side farther away than the other."""
    height, width = photo.shape[:2]
    across = (_grid(photo)[1] / (width - 1) - 0.5) * rng.choice([-1, 1])
    middle = (height - 1) / 2
    points = _grid(photo)
    points[0] = middle + (points[0] - middle) * (1 + tilt * across)
    return _looked_up(photo, points)


def elastic(photo: Photo, other: Photo, rng: Any, spread: float) -> NDArray[Any]:
    """Each pixel pushed by a smooth random field, of this root mean square."""
    height, width = photo.shape[:2]
    field = [
        np.asarray(
            Image.fromarray(rng.normal(size=(5, 5)).astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for _ in range(2)
    ]
    push = np.stack(field) / np.sqrt(np.mean(np.square(field)))
    return _looked_up(photo, _grid(photo) + spread * _side(photo) * push)


def lit_from_a_side(photo: Photo, other: Photo, rng: Any, darkest: float) -> NDArray[Any]:
    """Darker step by step towards a random direction."""
    height, width = photo.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    down, right = _grid(photo) / _column(height - 1, width - 1) - 0.5
    along = (np.sin(angle) * down + np.cos(angle) * right)[..., None]
    return photo * (1 + darkest + (1 - darkest) * 2 * along / np.ptp(along)) / 2 * 1.2


def cut_out(photo: Photo, other: Photo, rng: Any, share: float) -> NDArray[Any]:
    """A gray square of this share of the sides, at a random place."""
    size = np.round(np.array(photo.shape[:2]) * share).astype(int)
    top, left = (rng.random(2) * (np.array(photo.shape[:2]) - size)).astype(int)
    changed = photo.copy()
    changed[top : top + size[0], left : left + size[1]] = 127
    return changed


def lettered(photo: Photo, other: Photo, rng: Any, height: float) -> Photo:
    """White letters on a black bar, at the upper or lower border."""
    size = max(1, round(height * _side(photo)))
    font = ImageFont.load_default(size)
    image = Image.fromarray(photo)
    top = int(rng.integers(2)) * (image.height - size)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, top + size - 1), fill=(0, 0, 0))
    word = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ"), 5))
    draw.text(
        (image.width // 2, top + size // 2), word, fill=(255, 255, 255), font=font, anchor="mm"
    )
    return np.asarray(image)


def mixed(photo: Photo, other: Photo, rng: Any, share: float) -> NDArray[Any]:
    return share * photo + (1 - share) * other.astype(np.float64)


def patched(photo: Photo, other: Photo, rng: Any, share: float) -> Photo:
    """One side of it from another image."""
    stop = round(photo.shape[1] * share)
    left = bool(rng.integers(2))
    columns = np.arange(photo.shape[1])[None, :, None]
    own = columns < stop if left else columns >= photo.shape[1] - stop
    return np.where(own, photo, other)


KINDS = (
    Kind("JPEG, quality 15", jpeg, {"quality": 15, "enlarged": 1}),
    Kind("WebP of a file twice as large", webp, {"quality": 1, "enlarged": 2}),
    Kind("gamma 0.6", gamma, {"exponent": 0.6}),
    Kind("contrast x 0.6", contrast, {"factor": 0.6}),
    Kind("S-curve", s_curve, {"slope": 1.6}),
    Kind("hue by 90 degrees", hue, {"degrees": 90}, colors=True),
    Kind("saturation x 2.5", saturation, {"factor": 2.5}, colors=True),
    Kind("color cast", color_cast, {"red": 1.25, "blue": 0.75}, colors=True),
    Kind("greyscale, contrast x 0.8", grayscale, {"contrast": 0.8}, colors=True),
    Kind("red and blue swapped", swapped_channels, colors=True),
    Kind("sharpened", sharpened, {"radius": 1, "percent": 150}),
    Kind("motion blur", motion_blur, {"length": 4}),
    Kind("grey noise, sigma 16", gray_noise, {"sigma": 16}),  # codespell:ignore grey
    Kind("salt and pepper", salt_and_pepper, {"share": 0.06}),
    Kind("dithered to 6 colors", dithered, {"colors": 6}),
    Kind("pixelated", pixelated, {"block": 2}),
    Kind("rotated by 6 degrees", rotated, {"degrees": 6}),
    Kind("rotated by 15 degrees", rotated, {"degrees": 15}),
    Kind("sheared", sheared, {"slope": 0.2}),
    Kind("moved by 1.5 and 2.5 pixels", moved, {"rows": 1.5, "columns": 2.5}),
    Kind("cropped to other proportions", cropped, {"height": 0.75, "width": 0.9}),
    Kind("zoomed out with a border", zoomed_out, {"share": 0.8}),
    Kind("mirrored, gamma 1.6", mirrored_gamma, {"exponent": 1.6}),
    Kind("perspective", perspective, {"tilt": 0.5}),
    Kind("elastic", elastic, {"spread": 1.2}),
    Kind("lit from a side", lit_from_a_side, {"darkest": 0.4}),
    Kind("square cut out", cut_out, {"share": 0.4}),
    Kind("bar of letters", lettered, {"height": 8}),
    Kind("mixed with another, 70 : 30", mixed, {"share": 0.7}),
    Kind("half of another image", patched, {"share": 0.55}),
)
"""All kinds. Fixed: a change here makes every earlier measurement incomparable."""


def distances(originals: NDArray[np.uint8], copies: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of each copy to its original, in gray levels, (n,)."""
    return np.sqrt(np.square(originals.astype(float) - copies).mean(axis=(1, 2, 3)))


def sheet(kinds: Sequence[Kind], originals: NDArray[np.uint8], enlarged: int) -> Image.Image:
    """Originals in the first row, below them their copies, a row for each kind with its name."""
    tile = originals.shape[-1] * enlarged
    others = np.roll(originals, 1, axis=0)
    copies = [(kind.name, kind.apply(originals, others)) for kind in kinds]
    rows = [("originals", originals), *copies]
    page = Image.new("RGB", (260 + tile * len(originals), tile * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for y, (name, images) in enumerate(rows):
        draw.text((6, y * tile + tile // 3), name, fill="black", font=ImageFont.load_default(16))
        for x, image in enumerate(images):
            photo = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
            large = Image.fromarray(photo).resize((tile, tile), Image.Resampling.NEAREST)
            page.paste(large, (260 + x * tile, y * tile))
    return page


def main() -> None:
    """Runs and writes `results/audit_kinds.json` and `results/audit_kinds.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--shown", type=int, default=10, help="images on the sheet")
    args = parser.parse_args()

    real = load_dataset(args.data)
    rows = np.random.default_rng(0).choice(len(real), args.images, replace=False)
    originals = np.asarray(real.read(rows))
    kinds = [kind for kind in KINDS if originals.shape[1] == 3 or not kind.colors]
    others = np.roll(originals, 1, axis=0)
    measured = {}
    for kind in kinds:
        rms = distances(originals, kind.apply(originals, others))
        low, median, high = np.quantile(rms, [0.1, 0.5, 0.9]).round(1).tolist()
        measured[kind.name] = {"median": median, "tenth": low, "nine tenths": high}
        print(f"{kind.name:36}{median:8.1f}   {low:.1f} to {high:.1f}", flush=True)
    page = sheet(kinds, originals[: args.shown], max(1, 64 // originals.shape[-1]))
    page.quantize(128).save(RESULTS / "audit_kinds.png", optimize=True)
    print(write("audit_kinds", {"settings": vars(args), "gray levels from original": measured}))


if __name__ == "__main__":
    main()
