"""Parts of images that are compared on their own."""

from dataclasses import dataclass

import torch.nn.functional as F

from synthaug._types import Pixels


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, in shares of the sides."""

    name: str
    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0
    enlarged: bool = False
    """Whether it is enlarged to the size of the image."""

    @property
    def suffix(self) -> str:
        """The suffix of a space's name; empty for whole images."""
        return "" if self == WHOLE else f", {self.name}"

    def of(self, pixels: Pixels) -> Pixels:
        """This part of images (n, C, H, W), at least one pixel of each side."""
        h, w = pixels.shape[-2:]
        rows = slice(*_pixels(self.top, self.bottom, h))
        part = pixels[..., rows, slice(*_pixels(self.left, self.right, w))].contiguous()
        return F.interpolate(part, (h, w), mode="bilinear") if self.enlarged else part


def _pixels(start: float, stop: float, size: int) -> tuple[int, int]:
    first = min(round(start * size), size - 1)
    return first, max(round(stop * size), first + 1)


WHOLE = Rectangle("whole")
MIDDLE = Rectangle("middle", 0.1, 0.9, 0.1, 0.9, enlarged=True)
"""What is left of an image without a frame of a tenth of its sides."""
HALVES = (
    Rectangle("left half", right=0.5),
    Rectangle("right half", left=0.5),
    Rectangle("upper half", bottom=0.5),
    Rectangle("lower half", top=0.5),
)
