"""Transforms for `torchvision.transforms.v2`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2._utils import _parse_labels_getter

from synthaug._cache.serving import SyntheticImages, Verdicts, class_table, labels_of, servable
from synthaug._datasets.opening import open_cache, open_cold, open_one_step, open_report
from synthaug._datasets.restoration import ColdRestorer, Restoration
from synthaug._datasets.variants import Variants
from synthaug._images.annotations import annotation_class, annotations_of, has_shape_of_boxes
from synthaug._images.calls import called
from synthaug._images.convert import (
    Transform,
    check_unit_range,
    describe,
    like,
    pixels_of,
    size_of,
    wrapped,
)
from synthaug._images.stores import Conform, conformed
from synthaug._pixels import to_pil
from synthaug._support.arguments import check_fraction
from synthaug._support.names import class_names
from synthaug._support.rows import rows_by_class
from synthaug._types import ImageShape, Indices, StrPath
from synthaug.errors import DataError, MismatchError
from synthaug.synthesizers import ClassConditional

__all__ = ["ColdRestore", "DenoiseOnce", "Fit", "MixSynthetic", "SyntheticVariant"]

_EXPECTED = (
    "`MixSynthetic` needs a batch, images (n, C, H, W) and labels (n,) or (n, num_classes), as "
    "`mix(images, labels)` or in a dict. Put it where `v2.CutMix` goes, after `default_collate` or "
    "after the loader; single images are mixed by `synthaug.MixedDataset`. If the labels are "
    "elsewhere in the batch, give a `labels_getter`."
)

_SAME = "Give `transform=` what the real images went through."


def _unnamed_places(values: Sequence[Any], images: Sequence[Any]) -> list[str]:
    """Describes the tensors that are no images, and that have the height and the width of the first
    image, as masks have, or the shape of boxes and no row for each image of a batch."""
    if not images:
        return []
    first = images[0]
    size, axes = size_of(first), first.ndim if isinstance(first, Tensor) else 3
    in_batch = len(first) if axes > 3 else None
    return [
        describe(value)
        for value in values
        if isinstance(value, Tensor)
        if (value.ndim >= axes - 1 and size_of(value) == size)
        or (has_shape_of_boxes(value) and len(value) != in_batch)
        if not any(value is image for image in images)
    ]


class _ImagesOnly(v2.Transform):
    """A transform for classification: all other inputs but labels would not fit the new image."""

    def forward(self, *inputs: Any) -> Any:
        """Transforms the images of a sample or a batch.

        Raises:
            TypeError: For boxes, masks, key points and videos, which cannot follow an image.
        """
        self._check_annotations(inputs)
        flat, _ = tree_flatten(inputs)
        self._refuse(_unnamed_places(flat, self._images_among(flat)))
        return super().forward(*inputs)

    _way_out = ""

    def _check_annotations(self, inputs: tuple[Any, ...]) -> None:
        self._refuse(annotations_of(inputs))

    def _images_among(self, flat: list[Any]) -> list[Any]:
        chosen = zip(flat, self._needs_transform_list(flat), strict=True)
        return [value for value, is_image in chosen if is_image]

    def _refuse(self, annotations: Sequence[str]) -> None:
        names = [name for name in annotations if self._refuses(name)]
        if names:
            raise TypeError(
                f"{', '.join(names)} cannot follow an image into a synthetic one. Use "
                f"`{type(self).__name__}` for classification only, and leave them out of samples"
                f"{self._way_out}."
            )

    def _refuses(self, annotation: str) -> bool:
        del annotation
        return True


class _Restoring(_ImagesOnly):
    """Degrades and restores some images, each with its own draws."""

    draws_per_image = True
    """Of a batch, every image has its own draw."""

    def __init__(self, restoration: Restoration, p: float) -> None:
        super().__init__()
        check_fraction(p=p)
        self._restoration, self.p = restoration, p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the images to change, by how much, and their seeds; once per sample or batch."""
        sizes = {len(x) for x in flat_inputs if isinstance(x, torch.Tensor) and x.ndim == 4}
        if len(sizes) > 1:
            raise ValueError(
                f"The images of one call must have one batch size, got {sorted(sizes)}."
            )
        n = sizes.pop() if sizes else 1
        apply, uniform = torch.rand(2, n, dtype=torch.float64, device="cpu")
        seeds = torch.randint(2**63 - 1, (n,), dtype=torch.int64, device="cpu")
        chosen = (apply < self.p).nonzero()[:, 0]
        return {
            "chosen": chosen.tolist(),
            "severity": self._restoration.severity(uniform[chosen]).tolist(),
            "seeds": seeds[chosen].tolist(),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Restores one image or some of a batch."""
        if not params["chosen"]:
            return inpt
        return self._restoration(inpt, **params)


class ColdRestore(_Restoring):
    """Takes part of an image away and has a network invent it anew; the label stays.

        transform = v2.Compose([
            v2.RandomHorizontalFlip(),
            ColdRestore(cold, severity_range=(0.1, 0.4), p=0.3),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])
        images = ColdRestore(cold, severity_range=(0.1, 0.4), p=0.3)(images)   # a whole batch

    For `synthaug.ColdDiffusion`. Each image is degraded to a severity s / T drawn uniformly from
    the range, and restored from there; what is random in the degradation is drawn anew each time.

    Accepts PIL images of mode L and RGB, `tv_tensors.Image` and tensors, uint8 in [0, 255] or
    floating point in [0, 1], of the checkpoint's shape (C, H, W); and batches of them (n, C, H, W),
    in which every image has its own draw. The type is kept. Labels pass through. All images of one
    sample share the draws. Randomness comes from torch's global generator.

    The network runs where it is: in the workers of a loader on the CPU, or on the training device
    if the transform is given batches after the loader. An image costs one network evaluation per
    level, or `num_steps` of the checkpoint's settings; batches on a GPU are by far the fastest, and
    `plan` and `generate` keep restored views in a cache, to be made once.
    """

    def __init__(
        self,
        cold: ColdRestorer | StrPath,
        *,
        severity_range: tuple[float, float] = (0.1, 0.4),
        p: float = 0.3,
    ) -> None:
        """Checks the settings.

        Args:
            cold: A `ColdDiffusion`, or the path of one, which is loaded on the CPU.
            severity_range: Smallest and largest s / T, in (0, 1].
            p: Probability of a change, in [0, 1], for each image.

        Raises:
            TypeError: If `cold` is something else.
            ValueError: For other values of `severity_range` or `p`.
        """
        check_fraction(p=p)
        super().__init__(Restoration(open_cold(cold), severity_range), p)
        self.severity_range = tuple(severity_range)


class DenoiseOnce(_Restoring):
    """Adds noise to an image and has a diffusion model take it off in one step; the label stays.

        transform = v2.Compose([
            v2.RandomHorizontalFlip(),
            DenoiseOnce(synthesizer, t_range=(0.1, 0.5), p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])
        images = DenoiseOnce(synthesizer, t_range=(0.1, 0.5), p=0.5)(images)   # a whole batch

    After DiffAug (Sastry et al. 2023, https://arxiv.org/abs/2306.09192): x_t = sqrt(a) x +
    sqrt(1 - a) e with noise e and the signal a of a timestep t, drawn uniformly from the range; the
    image becomes the network's estimate of the clean image behind x_t. It is smoother the noisier
    x_t is, which is meant to make classifiers robust to corruptions. One network evaluation per
    image, without its class.

    Types of images, randomness and devices as in `ColdRestore`: batches on the training device,
    after the loader, are by far the fastest.
    """

    def __init__(
        self,
        synthesizer: ClassConditional | StrPath,
        *,
        t_range: tuple[float, float] = (0.1, 0.5),
        p: float = 0.5,
    ) -> None:
        """Checks the settings.

        Args:
            synthesizer: A `ClassConditional`, or the path of one, which is loaded on the CPU. It
                must have learned without labels too (`label_dropout`).
            t_range: Smallest and largest timestep, as shares of the noise schedule, in (0, 1].
            p: Probability of a change, in [0, 1], for each image.

        Raises:
            TypeError: If `synthesizer` is something else.
            ValueError: For other values of `t_range` or `p`, or a network that always needs a
                class.
        """
        check_fraction(p=p)
        super().__init__(Restoration(open_one_step(synthesizer), t_range, "t_range"), p)
        self.t_range = tuple(t_range)


class MixSynthetic(_ImagesOnly):
    """In a batch, synthetic images take the place of some images of their class.

        mix = MixSynthetic(cache, audit=report, fraction=0.5)
        cutmix = v2.CutMix(num_classes=10)

        def collate_fn(samples):
            return cutmix(*mix(*default_collate(samples)))

    Used where `v2.CutMix` is: in `collate_fn`, or after the loader, on the training device; on
    batches of the same forms, with labels (n,) or probabilities (n, num_classes), found by
    `labels_getter`. Labels come back in the form in which they came in.

    Of n images `fraction * n` are replaced, rounded up or down at random so that the share is exact
    on average; which ones, and by which of their class, is drawn anew for every batch. No synthetic
    image occurs twice in a batch unless its class has too few. Labels of replaced images stay as
    they are, unless they are a mixture of classes, such as `v2.CutMix` leaves behind: then one of
    the classes is drawn with the label's probabilities, and the label becomes that class. Several
    images of one sample are replaced by the same synthetic one.

    Images are tensors or `tv_tensors.Image` (n, C, H, W), uint8 in [0, 255] or floating point in
    [0, 1], of the size of the synthetic ones. If the real ones were transformed before they came
    into the batch, as normalized ones were, give the same `transform` here. Randomness comes from
    torch's global generator, so it differs between workers and epochs.
    """

    def __init__(
        self,
        synthetic: SyntheticImages | StrPath,
        *,
        audit: Verdicts | StrPath | None,
        fraction: float = 0.5,
        transform: Transform | None = None,
        classes: Sequence[str] | None = None,
        labels_getter: Callable[[Any], Any] | Literal["default"] = "default",
    ) -> None:
        """Finds the images that may be served.

        Args:
            synthetic: A `SynthCache`, its path, or an `OnTheFlyDataset`.
            audit: A report about it, or its path; images that it did not pass are not served.
                `None` skips the audit, with a warning.
            fraction: Share of every batch that is replaced, in [0, 1].
            transform: Transform of the real images: gets one synthetic image, of PIL, and returns a
                tensor (C, H, W) as they are in the batch.
            classes: Names that the labels stand for, in their order, to be matched with those of
                `synthetic` by name: `train.classes`. Without it labels are taken to be counted as
                in `synthetic`.
            labels_getter: Finds the labels in what the transform is given, as in `v2.CutMix`:
                "default" takes the second of two inputs, or the entry of a dict whose key has
                "label" in it.

        Raises:
            ValueError: For another `fraction` or `labels_getter`.
            MismatchError: If the report judges another cache, or the names of the classes differ.
            DataError: If no image may be served.
        """
        super().__init__()
        check_fraction(fraction=fraction)
        self.fraction = fraction
        # Torchvision's own, though private: the forms of a batch must be exactly its forms.
        self._labels_getter = _parse_labels_getter(labels_getter)
        self._image_transform = transform
        self._synthetic = open_cache(synthetic)
        served = servable(self._synthetic, open_report(audit))
        self._classes = class_names(self._synthetic.classes if classes is None else classes)
        table = class_table(self._synthetic, self._classes)
        rows = np.flatnonzero(served.mask)
        if not len(rows):
            withheld = ", and the report withholds all of them" * bool(served.num_done)
            raise DataError(
                f"No synthetic image may be served: {served.num_done:,} are done{withheld}. "
                "Generate more."
            )
        labels = table[labels_of(self._synthetic, rows)]
        self._pools = rows_by_class(rows, labels, len(self._classes))

    def forward(self, *inputs: Any) -> Any:
        """Mixes one batch; what is neither images nor labels passes through."""
        # As `v2.CutMix`, this needs the batch as a whole, in which the labels are found.
        batch = inputs if len(inputs) > 1 else inputs[0]
        self._check_annotations(inputs)
        flat, spec = tree_flatten(batch)
        self.check_inputs(flat)
        try:
            labels = self._labels_getter(batch)
        except ValueError as error:  # torchvision's, which prints all pixels
            raise ValueError(f"Found no labels: {_EXPECTED}") from error
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2):
            what = "no" if labels is None or labels is batch else f"{describe(labels)} as"
            raise ValueError(f"Found {what} labels: {_EXPECTED}")
        if not any(value is labels for value in flat):
            raise ValueError("`labels_getter` must return one of the tensors of the batch itself.")
        is_image = self._needs_transform_list([None if x is labels else x for x in flat])
        images = [value for value, chosen in zip(flat, is_image, strict=True) if chosen]
        self._refuse(_unnamed_places([x for x in flat if x is not labels], images))
        params = self.make_params([labels, *images])
        changed = [
            self.transform(value, params) if chosen or value is labels else value
            for value, chosen in zip(flat, is_image, strict=True)
        ]
        return tree_unflatten(changed, spec)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuses images that are not in a batch."""
        if any(isinstance(value, Image.Image) for value in flat_inputs):
            raise TypeError(f"Got PIL images: {_EXPECTED}")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the images of a batch to replace, and the rows that replace them.

        Args:
            flat_inputs: The labels, and then the images.
        """
        labels, *images = flat_inputs
        self._check_labels(labels)
        for image in images or [None]:
            if image is None or image.ndim != 4 or len(image) != len(labels):
                raise ValueError(
                    f"Got {'no images' if image is None else describe(image)} with {len(labels)} "
                    f"labels: {_EXPECTED}"
                )
        n = len(labels)
        count = int(self.fraction * n + torch.rand((), dtype=torch.float64, device="cpu"))
        chosen = torch.randperm(n, dtype=torch.int64, device="cpu")[: min(count, n)].sort().values
        drawn = labels.detach().cpu()[chosen]
        if drawn.ndim == 2 and len(drawn):
            drawn = torch.multinomial(drawn.float(), 1)[:, 0]
        rows = np.empty(len(chosen), np.int64)
        for c in drawn.unique().tolist():
            where = np.flatnonzero(drawn == c)
            rows[where] = self._draw(c, len(where))
        return {"labels": labels, "chosen": chosen, "classes": drawn, "rows": rows}

    def _draw(self, label: int, count: int) -> Indices:
        pool = self._pools[label]
        if not len(pool):
            raise MismatchError(
                f"Class {self._classes[label]!r} has no synthetic image that may be "
                "served. Generate images of it."
            )
        order = torch.randperm(len(pool), dtype=torch.int64, device="cpu").numpy()
        return pool[np.resize(order, count)]

    def _check_labels(self, labels: Tensor) -> None:
        num_classes = len(self._pools)
        if labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
            low, high = (int(x) for x in labels.aminmax()) if len(labels) else (0, 0)
            if low < 0 or high >= num_classes:
                raise ValueError(
                    f"Labels are {low} to {high}, and the synthetic images have {num_classes} "
                    "classes. Count labels from 0, or name the classes of the real images: "
                    "`classes=`."
                )
        elif labels.ndim == 2 and labels.shape[1] == num_classes:
            total = labels.sum(1, dtype=torch.float32)
            if (labels < 0).any() or ((total - 1).abs() > 0.01).any():
                raise ValueError(
                    "Labels (n, num_classes) must be the probabilities of the classes: not "
                    f"negative, and 1 in sum; got sums of {float(total.min()):.4g} to "
                    f"{float(total.max()):.4g}."
                )
        else:
            raise ValueError(
                f"Labels are {describe(labels)}, expected class indices (n,), or probabilities "
                f"(n, {num_classes})."
            )

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Replaces some images of a batch, or what their labels mix by the class that was drawn."""
        chosen = params["chosen"]
        if not len(chosen) or (inpt is params["labels"] and inpt.ndim == 1):
            return inpt
        result = inpt.detach().as_subclass(Tensor).clone()
        where = chosen.to(result.device)
        if inpt is params["labels"]:
            result[where] = 0
            result[where, params["classes"].to(result.device)] = 1
            return result
        result[where] = self._images(params["rows"], inpt).to(result.device)
        return wrapped(result, inpt)

    def _images(self, rows: Indices, batch: Tensor) -> Tensor:
        """Synthetic images in the dtype and shape of those of a batch."""
        pixels = self._synthetic.read(rows)
        if self._image_transform is not None:
            made = [called(self._image_transform)(to_pil(image)) for image in pixels]
            if not all(isinstance(image, Tensor) for image in made):
                raise TypeError(
                    f"`transform` must return tensors, got {describe(made[0])}. Add `v2.ToImage()`."
                )
            images = torch.stack(made).as_subclass(Tensor)
        elif batch.dtype == torch.uint8:
            images = pixels
        else:
            check_unit_range(batch[:1], batch[:1], _SAME)
            images = pixels.to(batch.dtype) / 255
        if images.shape[1:] != batch.shape[1:] or images.dtype != batch.dtype:
            raise MismatchError(
                f"The batch is {describe(batch)}, its synthetic images are {describe(images)}. "
                + _SAME
            )
        return images


class Fit(v2.Transform):
    """Brings images to one shape exactly as `load_dataset(image_shape=...)` does.

        transform = v2.Compose([
            Fit(cache.image_shape),                        # in place of `v2.Resize`
            SyntheticVariant(cache, p=0.5, audit=report),
            v2.RandomHorizontalFlip(),
        ])

    The shorter side is resized (bicubic, antialiased) and the center cut out, and colors are
    converted. Other ways of resizing give other pixels, by which `SyntheticVariant` does not find
    an image any more.

    Accepts PIL images, `tv_tensors.Image` and tensors (C, H, W), uint8 in [0, 255] or floating
    point in [0, 1]; the type is kept. Labels pass through. `tv_tensors.Mask` follow their image
    without new values, `tv_tensors.BoundingBoxes` are moved and cut at its border, where boxes may
    become empty (`v2.SanitizeBoundingBoxes` removes them); key points and videos are a TypeError.
    """

    def __init__(self, image_shape: ImageShape) -> None:
        """Takes the shape of the images to come.

        Args:
            image_shape: (C, H, W), C 1 or 3: that of a cache.

        Raises:
            ValueError: For another shape.
        """
        super().__init__()
        self.image_shape = tuple(image_shape)
        self._conform = Conform.to(self.image_shape)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one image, or the mask or the boxes of one."""
        del params
        if isinstance(inpt, tv_tensors.Mask):
            return wrapped(self._conform.masked(inpt.as_subclass(Tensor)), inpt)
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return _fitted_boxes(inpt, self._conform)
        if (kind := annotation_class(inpt)) is not None:
            raise TypeError(f"`Fit` resizes images, masks and boxes, got a {kind}. Leave it out.")
        return conformed(inpt, self._conform)


def _fitted_boxes(boxes: Any, conform: Conform) -> Any:
    """Boxes of an image, of the same kind and dtype, as it is resized."""
    if boxes.format.value not in ("XYXY", "XYWH", "CXCYWH"):
        raise TypeError(f"`Fit` moves upright boxes, got boxes {boxes.format.value}. Convert them.")
    change = v2.functional.convert_bounding_box_format
    corners = change(boxes, new_format="XYXY").as_subclass(Tensor).float()
    moved = conform.boxed(corners, boxes.canvas_size)
    if not boxes.is_floating_point():
        moved = moved.round()
    fitted = tv_tensors.BoundingBoxes(
        moved.to(boxes.dtype), format="XYXY", canvas_size=conform.size or boxes.canvas_size
    )
    return change(fitted, new_format=boxes.format)


class SyntheticVariant(_ImagesOnly):
    """An image becomes a cached variant of itself.

        transform = v2.Compose([
            SyntheticVariant(cache, p=0.5, audit=report),  # first, or after `Fit`
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])

    For synthesizers that start from real images: the variants of an image are the rows of the cache
    whose `source_key` is the content digest of its pixels. So the image must come here as it was
    when the plan was made, before any other transform but `Fit`, which resizes as `load_dataset`
    does. An image of another size than the variants is an error. Floating point images are compared
    after rounding to the nearest of 256 levels.

    Accepts PIL images of mode L and RGB, `tv_tensors.Image` and tensors (C, H, W), uint8 in
    [0, 255] or floating point in [0, 1]; the type is kept. Labels pass through. All images of one
    sample share the draw. Randomness comes from torch's global generator, as everywhere in
    torchvision, so it differs between workers and epochs.

    Masks, boxes and key points of a sample are refused, unless `min_edge_agreement` says which
    variants still fit them; then they are kept as they are.

    A batch transform of this kind does not exist: apply it to single images.
    """

    _way_out = ", or give `min_edge_agreement`"

    def __init__(
        self,
        cache: Any,
        *,
        audit: Verdicts | StrPath | None,
        p: float = 0.5,
        on_missing: Literal["keep", "raise"] = "keep",
        min_edge_agreement: float | None = None,
    ) -> None:
        """Finds the variants that may be served.

        Args:
            cache: A `SynthCache`, or its path.
            audit: A report about it, or its path; variants that it did not pass are not served.
                `None` skips the audit, with a warning.
            p: Probability of a change, in [0, 1].
            on_missing: Treatment of an image without a variant: "keep" leaves it unchanged, "raise"
                raises a `DataError`.
            min_edge_agreement: Serve only variants whose edges lie where those of the image do, by
                `synthaug.metrics.edge_agreement`, in (0, 1]; 0.8 is a good start. An image whose
                variants all moved has none. Samples may then have masks, boxes and key points.

        Raises:
            ValueError: For other values of `p`, `on_missing` or `min_edge_agreement`.
            MismatchError: If the report judges another cache.
            DataError: If no row that may be served has a source image.
        """
        super().__init__()
        check_fraction(p=p)
        self.p = p
        self.on_missing = on_missing
        self.min_edge_agreement = min_edge_agreement
        self._variants = Variants(
            open_cache(cache), open_report(audit), on_missing, min_edge_agreement
        )

    def _refuses(self, annotation: str) -> bool:
        return self.min_edge_agreement is None or annotation.endswith("Video")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether to change, and which variant, once per sample."""
        del flat_inputs
        apply, choice = torch.rand(2, dtype=torch.float64, device="cpu").tolist()
        return {"apply": apply < self.p, "choice": choice}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Replaces one image, if it was drawn and has variants."""
        if annotation_class(inpt) is not None:  # fits the variant as it fits the image
            return inpt
        self._variants.check_size(inpt)
        if not params["apply"]:
            return inpt
        variant = self._variants.draw(pixels_of(inpt), params["choice"])
        return inpt if variant is None else like(variant, inpt)
