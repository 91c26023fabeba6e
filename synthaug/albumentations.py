"""Transforms for albumentations pipelines; loads albumentations when it is imported itself."""

import os
from typing import Any, Literal, final

from torch.utils.data import get_worker_info

from synthaug._adapt import like, pixels_of
from synthaug._noise import counter_rng
from synthaug._restoration import ColdRestorer, Restoration
from synthaug._variants import Variants

# Otherwise importing it asks the network for a newer version, and waits for the answer.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
from albumentations import ImageOnlyTransform

__all__ = ["ColdRestore", "SyntheticVariant"]

_CANNOT_FOLLOW = frozenset(
    ("bboxes", "keypoints", "mask", "mask3d", "masks", "masks3d", "volume", "volumes")
)


class _PerWorker(ImageOnlyTransform):
    """What both transforms share: draws that differ between workers, and images alone."""

    def should_apply(self, force_apply: bool = False) -> bool:
        """Draws whether to change."""
        return force_apply or self._uniform() < self.p

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws nothing; refuses boxes, masks, key points and volumes, which would not fit."""
        del params
        for name in sorted(_CANNOT_FOLLOW & set(data)):
            raise TypeError(
                f"`{name}` cannot follow an image into a synthetic variant. Use this transform for "
                "classification only."
            )
        return {}

    def _uniform(self) -> float:
        draw: float = self.py_random.random()
        worker = get_worker_info()
        if worker is None:
            return draw
        return float(counter_rng(worker.seed, int(draw * 2**53)).random())


@final
class ColdRestore(_PerWorker):
    """Takes part of an image away and has a network invent it anew:
    `synthaug.transforms.ColdRestore` for albumentations.

        transform = A.Compose([
            A.HorizontalFlip(),
            ColdRestore(cold, severity_range=(0.1, 0.4), p=0.3),
            A.ToFloat(max_value=255),
        ], seed=0)

    Images are arrays (H, W) or (H, W, C), uint8 in [0, 255] or floating point in [0, 1], of the
    size and with the colours that the network was trained on: RGB, where OpenCV reads BGR. Type and
    shape are kept. All of `images` share the draws. Draws as in `SyntheticVariant`.
    """

    def __init__(
        self,
        cold: ColdRestorer,
        *,
        severity_range: tuple[float, float] = (0.1, 0.4),
        p: float = 0.3,
    ) -> None:
        """Checks the settings.

        Args:
            cold: A `ColdDiffusion`.
            severity_range: Smallest and largest s / T, in (0, 1].
            p: Probability of a change, in [0, 1].

        Raises:
            TypeError: If `cold` is something else.
            ValueError: For other values of `severity_range` or `p`.
        """
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must be in [0, 1], got {p}.")
        super().__init__(p=p)
        self.severity_range = severity_range
        self._restoration = Restoration(cold, severity_range)

    def get_params(self) -> dict[str, Any]:
        """Draws how much to change, and a seed for what is random in it."""
        return {
            "severity": self._restoration.severity(self._uniform()),
            "seed": int(self._uniform() * 2**53),
        }

    def apply(self, img: Any, severity: float, seed: int, **params: Any) -> Any:
        """Restores one image."""
        del params
        return self._restoration(img, [0], [severity], [seed])

    def to_dict_private(self) -> dict[str, Any]:
        """Refuses: a network cannot be written into a description of a pipeline."""
        raise NotImplementedError(
            "ColdRestore holds a network, so its pipeline cannot be serialized or replayed. "
            "Serialize the other transforms, and put it among them again."
        )


@final
class SyntheticVariant(_PerWorker):
    """An image becomes a cached variant of itself: `synthaug.transforms.SyntheticVariant` for
    albumentations.

        transform = A.Compose([
            SyntheticVariant(cache, p=0.5, audit=report),  # first: it must see the image unchanged
            A.HorizontalFlip(),
            A.ToFloat(max_value=255),
        ], seed=0)
        image = transform(image=image)["image"]

    Images are arrays (H, W) or (H, W, C), uint8 in [0, 255] or floating point in [0, 1], with the
    colours of the images that the plan was made for: RGB, where OpenCV reads BGR. Type and shape
    are kept. Of `images`, each becomes a variant of itself.

    Draws come from albumentations' own stream, so from the seed of `A.Compose`. That stream is
    copied into every worker of a `DataLoader`, in every epoch anew; here the worker's seed is mixed
    in, so that workers and epochs differ, and `torch.manual_seed` before the first epoch fixes them
    all.
    """

    def __init__(
        self,
        cache: Any,
        *,
        audit: Any,
        p: float = 0.5,
        on_missing: Literal["keep", "raise"] = "keep",
    ) -> None:
        """Finds the variants that may be served.

        Args:
            cache: A `SynthCache`.
            audit: A report about it; variants that it did not pass are not served. `None` skips the
                audit, with a warning.
            p: Probability of a change, in [0, 1].
            on_missing: What becomes of an image without a variant: "keep" leaves it unchanged,
                "raise" raises a `DataError`.

        Raises:
            ValueError: For other values of `p` or `on_missing`.
            AuditError: If the report judges another cache.
            DataError: If no row that may be served has a source image.
        """
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must be in [0, 1], got {p}.")
        super().__init__(p=p)
        self.on_missing = on_missing
        self._variants = Variants(cache, audit, on_missing)

    def get_params(self) -> dict[str, Any]:
        """Draws which variant."""
        return {"choice": self._uniform()}

    def apply(self, img: Any, choice: float, **params: Any) -> Any:
        """Replaces one image, if it has variants."""
        del params
        variant = self._variants.draw(pixels_of(img), choice)
        return img if variant is None else like(variant, img)

    def to_dict_private(self) -> dict[str, Any]:
        """Refuses: a cache of images cannot be written into a description of a pipeline."""
        raise NotImplementedError(
            "SyntheticVariant holds a cache of images, so its pipeline cannot be serialized or "
            "replayed. Serialize the other transforms, and put it before them."
        )
