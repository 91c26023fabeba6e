"""`MixSynthetic`: synthetic images take the place of some images of a batch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug import OnTheFlyDataset, SynthCache
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.transforms import MixSynthetic
from tests.drawing import Noise, plan_of
from tests.images import to_pixels
from tests.variants import CLASSES, make_cache, real_images, row_of


@pytest.fixture
def real() -> LabeledImages:
    return real_images()


@pytest.fixture
def cache(tmp_path, real) -> SynthCache:
    return make_cache(tmp_path, real)


@pytest.fixture
def images(real) -> Tensor:
    return real.read(range(8))


LABELS = torch.arange(8) % 2


def rows_of(images: Tensor) -> list[int | None]:
    return [row_of(image) for image in images]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_the_share_is_exact_on_average_and_within_one_image_in_every_batch(cache, images, fraction):
    mix = MixSynthetic(cache, audit=None, fraction=fraction)
    torch.manual_seed(0)
    counts = [sum(row is not None for row in rows_of(mix(images, LABELS)[0])) for _ in range(400)]
    assert set(counts) <= {int(8 * fraction), -int(-8 * fraction // 1)}
    assert abs(np.mean(counts) - 8 * fraction) < 4 * 0.5 / 400**0.5


def test_replaced_images_are_of_their_class_and_all_rows_come_equally_often(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=0.5)
    torch.manual_seed(0)
    places, served = np.zeros(8), np.zeros(18)
    for _ in range(500):
        mixed, labels = mix(images, LABELS)
        assert labels is LABELS
        rows = rows_of(mixed)
        for i, row in enumerate(rows):
            if row is None:
                assert torch.equal(mixed[i], images[i])
            else:
                assert cache.labels[row] == LABELS[i]
                served[row] += 1
                places[i] += 1
        chosen = [row for row in rows if row is not None]
        assert len(set(chosen)) == len(chosen) == 4
    assert places.min() > 180  # of 250
    assert served.min() > 70  # of 111


def test_a_class_with_too_few_images_repeats_them(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=1.0)
    many = images.repeat(3, 1, 1, 1)
    rows = rows_of(mix(many, torch.zeros(24, dtype=torch.int64))[0])
    counts = np.bincount(np.array(rows), minlength=9)
    assert sorted(set(counts.tolist())) == [2, 3]


def test_the_same_synthetic_image_replaces_all_images_of_a_sample(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=0.5)
    one, _, two = mix(tv_tensors.Image(images), LABELS, tv_tensors.Image(255 - images))
    assert rows_of(one) == rows_of(two)
    assert len(set(rows_of(one))) == 5


# The forms of `v2.CutMix`


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 2).float()


class Getter:
    def __call__(self, batch: Any) -> Any:
        return batch["meta"]["y"]


FORMS: dict[str, Any] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"image": x, "label": y},
    "dict of any case": lambda x, y: {"x": x, "FooLaBeLBar": y},
    "labels in a dict": lambda x, y: (x, {"boxes": 3, "labels": y}),
    "with others": lambda x, y: (x, y, "name", None, 3.0),
}
LABEL_FORMS = {
    "indices": LABELS,
    "one-hot": one_hot(LABELS),
    "one-hot integers": one_hot(LABELS).long(),
    "probabilities": torch.tensor([[0.25, 0.75]]).expand(8, 2).contiguous(),
}


@pytest.mark.parametrize("labels", LABEL_FORMS.values(), ids=LABEL_FORMS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", [Tensor, tv_tensors.Image], ids=["tensor", "tv_tensor"])
def test_it_takes_the_batches_that_cutmix_takes(cache, images, form, labels, kind):
    batch = form(images if kind is Tensor else kind(images), labels)
    v2.CutMix(num_classes=2)(batch)
    mix = MixSynthetic(cache, audit=None, fraction=1.0)
    mixed = mix(batch)
    flat, spec = torch.utils._pytree.tree_flatten(batch)
    found, same_spec = torch.utils._pytree.tree_flatten(mixed)
    assert same_spec == spec
    for old, new in zip(flat, found, strict=True):
        assert type(new) is type(old)
        if isinstance(old, Tensor):
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
            if old.ndim == 4:
                assert None not in rows_of(new)
        else:
            assert new is old


def test_labels_are_found_by_a_getter(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=1.0, labels_getter=Getter())
    mixed = mix({"meta": {"y": LABELS}, "pixels": images})  # where the labels come first
    assert mixed["meta"]["y"] is LABELS
    assert [cache.labels[row] for row in rows_of(mixed["pixels"])] == LABELS.tolist()


NEEDS = "`MixSynthetic` needs a batch, .* after `default_collate`.* by `synthaug.MixedDataset`"


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            lambda x: (x, LABELS[:, None, None]),
            ValueError,
            r"\(8, 1, 1\) as labels: " + NEEDS,
        ),
        (lambda x: (x, LABELS.float()), ValueError, r"or probabilities \(n, 2\)"),
        (lambda x: (x, torch.eye(8)), ValueError, r"or probabilities \(n, 2\)"),
        (lambda x: (x, 2 * one_hot(LABELS)), ValueError, "got sums of 2 to 2"),
        (lambda x: (x, LABELS + 1), ValueError, "Labels are 1 to 2, .* have 2 classes"),
        (lambda x: (x, LABELS - 1), ValueError, "Labels are -1 to 0"),
        (lambda x: (x, LABELS[:3]), ValueError, r"shape \(8, 3, 4, 5\) with 3 labels: " + NEEDS),
        (lambda x: (x[0], LABELS), ValueError, "with 8 labels: " + NEEDS),
        (lambda x: ("x", LABELS), ValueError, "Got no images with 8 labels: " + NEEDS),
        (lambda x: (x, [0] * 8), ValueError, "Found no labels: " + NEEDS),
        (lambda x: (x, "x", "y"), ValueError, "Found no labels: " + NEEDS),
        (lambda x: (x,), ValueError, "Found no labels: " + NEEDS),
        (lambda x: ({"image": x},), ValueError, "Found no labels: " + NEEDS),
        (lambda x: ({"label": 3, "image": x[0]},), ValueError, "Found builtins.int as labels"),
        (lambda x: (x[0], LABELS[0]), ValueError, r"int64 with shape \(\) as labels: " + NEEDS),
        (lambda x: ([Image.new("RGB", (5, 4))], LABELS), TypeError, "Got PIL images: " + NEEDS),
        (
            lambda x: (x, LABELS, torch.zeros(8, *x.shape[-2:])),
            TypeError,
            r"a tensor of torch.float32 with shape \(8, 4, 5\) cannot follow an image",
        ),
        (
            lambda x: (x, LABELS, torch.ones(3, 4)),
            TypeError,
            r"a tensor of torch.float32 with shape \(3, 4\) cannot follow an image",
        ),
        (
            lambda x: (tv_tensors.Image(x), LABELS, tv_tensors.Mask(x[:, 0])),
            TypeError,
            "Mask cannot follow an image",
        ),
        (lambda x: (x[..., :3], LABELS), MismatchError, "Give `transform=` what the real"),
        (lambda x: (x.int(), LABELS), TypeError, "expected uint8, or floating point"),
        (lambda x: (x / 127.5 - 1, LABELS), ValueError, r"expected \[0, 1\]. Give `transform=`"),
    ],
)
def test_other_batches_are_refused(cache, images, batch, error, message):
    mix = MixSynthetic(cache, audit=None, fraction=1.0)
    with pytest.raises(error, match=message):
        mix(*batch(images))


# Mixtures of classes


def test_a_mixed_label_becomes_a_class_drawn_with_its_probabilities(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=1.0)
    soft = torch.tensor([[0.2, 0.8]]).expand(8, 2).contiguous()
    torch.manual_seed(0)
    labels = []
    for _ in range(100):
        mixed, found = mix(images, soft)
        assert [cache.labels[row] for row in rows_of(mixed)] == found.argmax(1).tolist()
        assert torch.equal(found, one_hot(found.argmax(1)))
        labels.append(found)
    share = float(torch.cat(labels)[:, 1].mean())
    assert abs(share - 0.8) < 4 * (0.16 / 800) ** 0.5
    assert torch.equal(soft, soft[:1].expand(8, 2))  # not written to


def test_it_stands_before_and_after_cutmix(cache, images):
    mix = MixSynthetic(cache, audit=None, fraction=0.5)
    cutmix = v2.CutMix(num_classes=2)
    torch.manual_seed(0)
    before, labels = v2.Compose([mix, cutmix])(images, LABELS)
    assert labels.shape == (8, 2)
    assert not torch.equal(before, images)
    torch.manual_seed(3)
    lam = cutmix(images, LABELS)[1].amax(1)[0]
    torch.manual_seed(3)
    after, labels = v2.Compose([cutmix, mix])(images, LABELS)
    is_synthetic = torch.tensor([row is not None for row in rows_of(after)])
    assert int(is_synthetic.sum()) == 4
    assert (labels[is_synthetic].amax(1) == 1).all()
    assert 0.5 < lam < 1
    assert (labels[~is_synthetic].amax(1) == lam).all()


# In a pipeline


def test_transformed_batches_are_mixed_with_equally_transformed_images(cache, real):
    transform = v2.Compose(
        [
            v2.CenterCrop((3, 3)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    real.transform = transform
    batch, labels = default_collate([real[i] for i in range(8)])
    mix = MixSynthetic(cache, audit=None, fraction=0.5, transform=transform)
    mixed, _ = mix(batch, labels)
    assert mixed.dtype == torch.float32
    levels = (((mixed * 0.25 + 0.5) * 255).round()).to(torch.uint8)
    assert sum(row is not None for row in rows_of(levels)) == 4
    with pytest.raises(TypeError, match=r"must return tensors, got a PIL image .*ToImage"):
        MixSynthetic(cache, audit=None, fraction=1.0, transform=v2.CenterCrop(3))(batch, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_float_images_are_in_the_unit_range(cache, images, dtype):
    batch = images if dtype == torch.uint8 else (images / 255).to(dtype)
    mixed, _ = MixSynthetic(cache, audit=None, fraction=1.0)(batch, LABELS)
    assert mixed.dtype == dtype
    assert (mixed.float() if dtype == torch.uint8 else mixed.float() * 255).min() > 99


class Collate:
    def __init__(self, mix: MixSynthetic) -> None:
        self.mix = mix

    def __call__(self, samples: Any) -> Any:
        images = torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x, _ in samples])
        return self.mix(images, torch.tensor([y for _, y in samples]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_collate_fn_workers_and_epochs_draw_differently_and_a_seed_fixes_them(cache, real):
    def epochs(seed: int) -> list[tuple[int | None, ...]]:
        torch.manual_seed(seed)
        loader: DataLoader[Any] = DataLoader(
            torch.utils.data.ConcatDataset([real] * 4),
            batch_size=8,
            num_workers=2,
            multiprocessing_context="fork",
            collate_fn=Collate(MixSynthetic(cache, audit=None)),
        )
        return [tuple(rows_of(images)) for _ in range(2) for images, _ in loader]

    first = epochs(0)
    assert len(set(first)) == len(first) == 8
    assert epochs(0) == first


def test_images_drawn_on_the_fly_are_mixed_in_and_follow_the_epoch(images):
    live = OnTheFlyDataset(Noise(), plan_of((30, 0, 30)), size=12, background=False)
    mix = MixSynthetic(live, audit=None, fraction=1.0)
    seen = []
    for epoch in range(2):
        live.set_epoch(epoch)
        mixed, _ = mix(images, LABELS * 2)
        pool = to_pixels(Noise().draw(plan_of((30, 0, 30))[live.rows()]))
        where = (mixed[:, None] == pool[None]).flatten(2).all(2)
        assert where.any(1).all()
        assert (live.labels[where.int().argmax(1)] == (LABELS * 2).numpy()).all()
        seen.append(mixed)
    assert not (seen[0][:, None] == seen[1][None]).flatten(2).all(2).any()


# What may be served


def test_only_what_passed_and_is_not_withdrawn_is_served_also_by_path(cache, images, tmp_path):
    passed = cache.plan["variant"] != 1
    report = SimpleNamespace(identity=cache.identity, passed=passed, verdict="pass")
    cache.withdraw(np.flatnonzero(cache.plan["variant"] == 2))
    mix = MixSynthetic(str(cache.path), audit=report, fraction=1.0)
    served = {row for _ in range(40) for row in rows_of(mix(images, LABELS)[0])}
    assert served == set(np.flatnonzero(cache.plan["variant"] == 0).tolist())
    other = SimpleNamespace(identity={}, passed=passed, verdict="pass")
    with pytest.raises(MismatchError, match="another cache"):
        MixSynthetic(cache, audit=other)
    nothing = SimpleNamespace(identity=cache.identity, passed=passed & False, verdict="fail")
    with pytest.raises(DataError, match="No synthetic image may be served"):
        MixSynthetic(cache, audit=nothing)
    half = SimpleNamespace(identity=cache.identity, passed=cache.labels == 0, verdict="fail")
    with pytest.raises(MismatchError, match="Class 'bee' has no synthetic image"):
        MixSynthetic(cache, audit=half, fraction=1.0)(images, LABELS)


def test_settings_that_make_no_sense_are_refused(cache):
    with pytest.raises(ValueError, match=r"`fraction` must be in \[0, 1\], got 1.5"):
        MixSynthetic(cache, audit=None, fraction=1.5)
    with pytest.raises(ValueError, match="labels_getter"):
        MixSynthetic(cache, audit=None, labels_getter="labels")  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="only the real images have 'cow'"):
        MixSynthetic(cache, audit=None, classes=("ant", "cow"))


@pytest.mark.parametrize("vectors", [False, True])
def test_labels_counted_in_another_order_are_matched_by_name(cache, images, vectors):
    mix = MixSynthetic(cache, audit=None, fraction=1.0, classes=CLASSES[::-1])
    mixed, labels = mix(images, one_hot(LABELS) if vectors else LABELS)
    torch.testing.assert_close(labels, one_hot(LABELS) if vectors else LABELS)
    names = [CLASSES[cache.labels[row]] for row in rows_of(mixed)]
    assert names == [CLASSES[::-1][label] for label in LABELS.tolist()]


def test_a_getter_that_gives_other_tensors_than_the_batch_has_is_refused(cache, images):
    mix = MixSynthetic(cache, audit=None, labels_getter=lambda batch: batch[1].clone())
    with pytest.raises(ValueError, match="one of the tensors of the batch itself"):
        mix(images, LABELS)
