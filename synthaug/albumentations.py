"""Transforms for albumentations pipelines; loads albumentations when it is imported itself."""

import os
import zlib
from typing import Any, Literal, final

import numpy as np
import torch
from torch.utils.data import get_worker_info

from synthaug._cache.serving import Verdicts
from synthaug._datasets.opening import (
    open_cache,
    open_cold,
    open_one_step,
    open_report,
    path_of,
)
from synthaug._datasets.restoration import ColdRestorer, Restoration
from synthaug._datasets.variants import Variants
from synthaug._images.convert import like, pixels_of
from synthaug._images.stores import Conform, conformed
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_fraction
from synthaug._types import ImageShape, StrPath
from synthaug.synthesizers import ClassConditional

# Otherwise importing it asks the network for a newer version, and waits for the answer.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations
from albumentations import ImageOnlyTransform

# AlbumentationsX calls itself by the same name; it alone has this method.
if hasattr(ImageOnlyTransform, "sample_parameters") or not albumentations.__version__.startswith(
    "2.0."
):
    raise ImportError(
        "`synthaug.albumentations` needs albumentations 2.0 from 2.0.8 on (MIT license), and found "
        f"version {albumentations.__version__}: AlbumentationsX, which has the same import name, "
        "other hooks and another license, must be uninstalled (`pip uninstall albumentationsx`) "
        "before `pip install --force-reinstall 'albumentations>=2.0.8,<2.1'`."
    )

__all__ = ["ColdRestore", "DenoiseOnce", "Fit", "SyntheticVariant"]

_OTHER_INPUTS = frozenset(("mask3d", "masks3d", "volume", "volumes"))
_CANNOT_FOLLOW = _OTHER_INPUTS | {"bboxes", "keypoints", "mask", "masks"}


class _OnImages(ImageOnlyTransform):
    """Base of both transforms: own random draws, images alone, and descriptions by path."""

    _refused = _CANNOT_FOLLOW
    _refusal = (
        "`{}` cannot follow an image into a synthetic variant. Use this transform for "
        "classification only."
    )

    def should_apply(self, force_apply: bool = False) -> bool:
        """Draws whether to change."""
        return force_apply or self._uniform() < self.p

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws nothing; refuses boxes, masks, key points and volumes, which would not fit."""
        del params
        for name in sorted(name for name in self._refused if data.get(name) is not None):
            raise TypeError(self._refusal.format(name))
        return {}

    def _uniform(self) -> float:
        """A draw from [0, 1).

        `Compose` gives all transforms streams that begin alike, and a `DataLoader` copies them into
        every worker, in every epoch anew. So the name of the transform and the seed of the worker
        are mixed in.
        """
        draw = int(self.py_random.random() * 2**53)
        worker = get_worker_info()
        name = zlib.crc32(type(self).__name__.encode())
        return float(counter_rng(0 if worker is None else worker.seed, draw, name).random())

    def to_dict_private(self) -> dict[str, Any]:
        """Describes the transform, by paths.

        Raises:
            NotImplementedError: If it was given an object that was not opened from a path.
        """
        state: dict[str, Any] = super().to_dict_private()
        for name in ("cold", "synthesizer", "cache", "audit"):
            if name in self.get_transform_init_args_names() and name not in state:
                raise NotImplementedError(
                    f"{type(self).__name__} was given `{name}` as an object, which cannot be "
                    "written into a description of a pipeline, or replayed. Give its path."
                )
        return state

    def _describe(self, **arguments: Any) -> None:
        """Keeps the arguments that have a path, or are `None`, under their own names."""
        for name, value in arguments.items():
            path = path_of(value)
            if path is not None or value is None:
                setattr(self, name, path)


class _Restoring(_OnImages):
    """Degrades and restores an image."""

    _restoration: Restoration

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


@final
class ColdRestore(_Restoring):
    """Takes part of an image away and has a network invent it anew:
    `synthaug.transforms.ColdRestore` for albumentations.

        transform = A.Compose([
            A.HorizontalFlip(),
            ColdRestore("runs/cold", severity_range=(0.1, 0.4), p=0.3),
            A.ToFloat(max_value=255),
        ], seed=0)

    Images are arrays (H, W) or (H, W, C), uint8 in [0, 255] or floating point in [0, 1], of the
    size and with the colors that the network was trained on: RGB, where OpenCV reads BGR. Type and
    shape are kept. All of `images` share the draws. Draws, and `A.to_dict`, as in
    `SyntheticVariant`.
    """

    def __init__(
        self,
        cold: ColdRestorer | StrPath,
        *,
        severity_range: tuple[float, float] = (0.1, 0.4),
        p: float = 0.3,
    ) -> None:
        """Takes the arguments of `synthaug.transforms.ColdRestore`, with the same errors."""
        check_fraction(p=p)
        super().__init__(p=p)
        self.severity_range = tuple(severity_range)
        self._restoration = Restoration(open_cold(cold), severity_range)
        self._describe(cold=cold)


@final
class DenoiseOnce(_Restoring):
    """Adds noise to an image and has a diffusion model take it off in one step:
    `synthaug.transforms.DenoiseOnce` for albumentations.

        transform = A.Compose([
            A.HorizontalFlip(),
            DenoiseOnce("runs/cifar10", t_range=(0.1, 0.5), p=0.5),
            A.ToFloat(max_value=255),
        ], seed=0)

    Images, draws and `A.to_dict` as in `ColdRestore`.
    """

    def __init__(
        self,
        synthesizer: ClassConditional | StrPath,
        *,
        t_range: tuple[float, float] = (0.1, 0.5),
        p: float = 0.5,
    ) -> None:
        """Takes the arguments of `synthaug.transforms.DenoiseOnce`, with the same errors."""
        check_fraction(p=p)
        super().__init__(p=p)
        self.t_range = tuple(t_range)
        self._restoration = Restoration(open_one_step(synthesizer), t_range, "t_range")
        self._describe(synthesizer=synthesizer)


@final
class Fit(_OnImages):
    """Brings images to one shape exactly as `load_dataset` does: `synthaug.transforms.Fit` for
    albumentations.

        transform = A.Compose([
            Fit((3, 32, 32)),                              # in place of `A.Resize`
            SyntheticVariant("variants.h5", p=0.5, audit="audit.json"),
        ])

    Masks follow their image without new values. Boxes are moved and cut at its border, and those
    that are gone are left out; give `A.Compose` its `bbox_params`. Key points are a TypeError.
    """

    _refused = _OTHER_INPUTS | {"keypoints"}
    _refusal = "`{}` cannot be resized by `Fit`. Leave it out."

    def __init__(self, image_shape: ImageShape) -> None:
        """Takes the argument of `synthaug.transforms.Fit`, with the same errors."""
        super().__init__(p=1.0)
        self.image_shape = tuple(image_shape)
        self._conform = Conform.to(self.image_shape)

    def apply(self, img: Any, **params: Any) -> Any:
        """Resizes one image."""
        del params
        return conformed(img, self._conform)

    @property
    def targets(self) -> dict[str, Any]:
        """Images, masks, which are resized by the nearest pixel, and boxes."""

        def mask(mask: Any, **params: Any) -> Any:
            del params
            return self._conform.masked(mask)

        def masks(masks: Any, **params: Any) -> Any:
            del params
            return np.stack([self._conform.masked(one) for one in masks])

        def boxes(boxes: Any, shape: tuple[int, ...], **params: Any) -> Any:
            """Boxes (n, 4 or more), the first four in shares of the width and the height."""
            del params
            if not len(boxes):
                return boxes
            old, new = shape[:2], self.image_shape[1:]
            corners = torch.from_numpy(boxes[:, :4] * [*old[::-1], *old[::-1]])
            moved = self._conform.boxed(corners, (old[0], old[1])).numpy()
            left = (moved[:, 2:] > moved[:, :2]).all(axis=1)
            shares = (moved / [*new[::-1], *new[::-1]]).astype(boxes.dtype)
            return np.hstack([shares, boxes[:, 4:]])[left]

        return {**super().targets, "mask": mask, "masks": masks, "bboxes": boxes}


@final
class SyntheticVariant(_OnImages):
    """An image becomes a cached variant of itself: `synthaug.transforms.SyntheticVariant` for
    albumentations.

        transform = A.Compose([
            SyntheticVariant("variants.h5", p=0.5, audit="audit.json"),  # first, or after `Fit`
            A.HorizontalFlip(),
            A.ToFloat(max_value=255),
        ], seed=0)
        image = transform(image=image)["image"]

    Images are arrays (H, W) or (H, W, C), uint8 in [0, 255] or floating point in [0, 1], with the
    colors of the images that the plan was made for: RGB, where OpenCV reads BGR. Type and shape
    are kept. Of `images`, each becomes a variant of itself.

    The cache and the report may be given by path. Then `A.to_dict`, `A.save` and `A.ReplayCompose`
    work: they write the paths down, and open them again.

    Draws follow the seed of `A.Compose`. Its stream is copied into every worker of a `DataLoader`,
    in every epoch anew, and other transforms repeat it; here the worker's seed is mixed in, so that
    workers and epochs differ, and `torch.manual_seed` before the first epoch fixes them all.
    """

    _refusal = (
        "`{}` cannot follow an image into a synthetic variant. Use this transform for "
        "classification only, or give `min_edge_agreement`."
    )

    def __init__(
        self,
        cache: Any,
        *,
        audit: Verdicts | StrPath | None,
        p: float = 0.5,
        on_missing: Literal["keep", "raise"] = "keep",
        min_edge_agreement: float | None = None,
    ) -> None:
        """Takes the arguments of `synthaug.transforms.SyntheticVariant`, with the same errors."""
        check_fraction(p=p)
        super().__init__(p=p)
        self.on_missing = on_missing
        self.min_edge_agreement = min_edge_agreement
        if min_edge_agreement is not None:
            self._refused = _OTHER_INPUTS
        self._variants = Variants(
            open_cache(cache), open_report(audit), on_missing, min_edge_agreement
        )
        self._describe(cache=cache, audit=audit)

    def get_params(self) -> dict[str, Any]:
        """Draws the number of the variant."""
        return {"choice": self._uniform()}

    def apply(self, img: Any, choice: float, **params: Any) -> Any:
        """Replaces one image, if it has variants."""
        del params
        variant = self._variants.draw(pixels_of(img), choice)
        return img if variant is None else like(variant, img)
