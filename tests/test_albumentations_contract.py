"""What albumentations asks of its own transforms, asked of ours."""

import importlib
import io
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest

from synthaug.albumentations import ColdRestore, SyntheticVariant
from tests.tiny.cold import inpainter
from tests.variants import make_cache, real_images

REAL = real_images(8, 8)
IMAGE = np.array(REAL[0][0])


class Make:
    """Makes transforms of one kind, from paths alone."""

    def __init__(self, kind: Any, path: Path) -> None:
        self.kind, self.path = kind, path

    def __call__(self, p: float = 1.0) -> Any:
        if self.kind is ColdRestore:
            return ColdRestore(str(self.path), severity_range=(0.1, 0.3), p=p)
        return SyntheticVariant(self.path, audit=None, p=p)


@pytest.fixture(params=[SyntheticVariant, ColdRestore], ids=lambda kind: kind.__name__)
def make(request, tmp_path) -> Make:
    if request.param is SyntheticVariant:
        return Make(request.param, make_cache(tmp_path, REAL).path)
    inpainter().save_pretrained(tmp_path / "cold")
    return Make(request.param, tmp_path / "cold")


IMAGES = {
    "uint8": IMAGE,
    "float32": (IMAGE / 255).astype(np.float32),
    "strided": np.repeat(IMAGE, 2, axis=1)[:, ::2],
}


@pytest.fixture(params=IMAGES)
def image(request) -> Any:
    return IMAGES[request.param]


def same(one: Any, two: Any) -> bool:
    """Equal within one of 256 levels: weights that were copied may lie otherwise in memory."""
    scale = 255 if one.dtype == np.float32 else 1
    return one.dtype == two.dtype and bool(np.abs(scale * (one.astype(float) - two)).max() <= 1)


def test_dtype_shape_and_the_given_array_are_kept(make, image):
    before = image.copy()
    shown = A.Compose([make()], seed=0)(image=image)["image"]
    assert (shown.dtype, shown.shape) == (image.dtype, image.shape)
    assert shown.flags["C_CONTIGUOUS"]
    assert not np.array_equal(shown, image)
    assert np.array_equal(image, before)


def test_the_seed_of_compose_fixes_the_draws_and_set_random_seed_repeats_them(make):
    def run(pipeline: Any, n: int = 8) -> Any:
        return [pipeline(image=IMAGE)["image"].tolist() for _ in range(n)]

    pipeline = A.Compose([make(p=0.5), A.HorizontalFlip()], seed=5)
    first = run(pipeline)
    assert run(A.Compose([make(p=0.5), A.HorizontalFlip()], seed=5)) == first
    assert run(pipeline) != first
    pipeline.set_random_seed(5)
    assert run(pipeline) == first
    assert run(A.Compose([make(p=0.5), A.HorizontalFlip()], seed=6)) != first


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_probability_of_a_change(make, p):
    (transform,) = A.Compose([make(p)], seed=0).transforms
    share = np.mean([transform.should_apply() for _ in range(1000)])
    assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 1000)
    pipeline = A.Compose([transform], seed=0)
    for _ in range(6):
        changed = not np.array_equal(pipeline(image=IMAGE)["image"], IMAGE)
        assert changed == bool(transform.params)


def test_our_draws_are_not_those_of_the_transforms_beside_them(tmp_path):
    ours = [
        SyntheticVariant(make_cache(tmp_path, REAL), audit=None, p=0.5),
        ColdRestore(inpainter(), p=0.5),
    ]
    pipeline = A.Compose([*ours, A.HorizontalFlip(p=0.5), A.InvertImg(p=0.5)], seed=0)
    applied = [[t.should_apply() for t in pipeline.transforms] for _ in range(1000)]
    correlation = np.corrcoef(np.array(applied).T)
    assert correlation[2, 3] > 0.9  # what we would have had
    assert np.abs(np.triu(correlation, 1)[:2]).max() < 4 / 1000**0.5


def test_several_images_and_further_targets_share_the_parameters(make):
    both = A.Compose([make()], additional_targets={"other": "image"}, seed=0)
    for _ in range(4):
        made = both(image=IMAGE, other=IMAGE)
        assert np.array_equal(made["image"], made["other"])
    stacked = A.Compose([make()], seed=0)(images=np.stack([IMAGE, IMAGE]))["images"]
    assert np.array_equal(stacked[0], stacked[1])


@pytest.mark.parametrize(
    "around",
    [
        lambda t: A.OneOf([t], p=1.0),
        lambda t: A.SomeOf([t, A.NoOp()], n=2, p=1.0),
        lambda t: A.Sequential([t], p=1.0),
        lambda t: A.OneOrOther(t, t, p=1.0),
        lambda t: A.Compose([t], strict=True),
    ],
    ids=["OneOf", "SomeOf", "Sequential", "OneOrOther", "strict"],
)
def test_it_works_in_every_composition(make, around):
    pipeline = A.Compose([around(make())], seed=0)
    assert not np.array_equal(pipeline(image=IMAGE)["image"], IMAGE)


def through_text(pipeline: Any, form: Any) -> Any:
    text = io.StringIO()
    A.save(pipeline, text, data_format=form)
    text.seek(0)
    return A.load(text, data_format=form)


RESTORED = {
    "to_dict": lambda pipeline: A.from_dict(json.loads(json.dumps(A.to_dict(pipeline)))),
    "json": lambda pipeline: through_text(pipeline, "json"),
    "yaml": lambda pipeline: through_text(pipeline, "yaml"),
    "pickle": lambda pipeline: pickle.loads(pickle.dumps(pipeline)),
}


@pytest.mark.parametrize("restored", RESTORED.values(), ids=RESTORED)
def test_a_description_makes_the_same_pipeline_again(make, image, restored):
    pipeline = A.Compose([make(p=0.7), A.HorizontalFlip()])
    again = restored(pipeline)
    assert repr(again) == repr(pipeline)
    for transform in (pipeline, again):
        transform.set_random_seed(3)
    for _ in range(6):
        expected = pipeline(image=image)["image"]
        assert same(again(image=image)["image"], expected)


def test_a_replay_does_the_same_to_another_image(make, image):
    pipeline = A.ReplayCompose([make(p=0.5), A.HorizontalFlip()])
    pipeline.set_random_seed(0)
    kinds = set()
    for _ in range(12):
        made = pipeline(image=image)
        replay = made["replay"]
        kinds.add(replay["transforms"][0]["applied"])
        replayed = A.ReplayCompose.replay(replay, image=image)["image"]
        assert same(replayed, made["image"])
    assert kinds == {True, False}


def test_what_a_path_leads_to_is_opened_once(make):
    first, second = (
        t._restoration.cold if make.kind is ColdRestore else t._variants.cache
        for t in (make(), make(p=0.5))
    )
    assert first is second


def test_parameters_say_what_was_applied(make):
    transform = make()
    pipeline = A.Compose([transform], seed=0, save_applied_params=True)
    made = pipeline(image=IMAGE)
    ((name, params),) = made["applied_transforms"]
    assert name == type(transform).__name__
    assert np.array_equal(transform.apply_with_params(params, image=IMAGE)["image"], made["image"])


def test_it_prints_how_to_make_it_again(make):
    text = repr(make(p=0.25))
    assert text.startswith(f"{make.kind.__name__}(p=0.25, ")
    assert repr(str(make.path)) in text


def test_what_has_no_path_cannot_be_described(tmp_path):
    cache = make_cache(tmp_path, REAL)
    report = types.SimpleNamespace(
        identity=cache.identity, passed=np.ones(len(cache), bool), verdict="pass"
    )
    for transform, name in [
        (ColdRestore(inpainter()), "cold"),
        (SyntheticVariant(cache, audit=report), "audit"),
    ]:
        with pytest.raises(NotImplementedError, match=f"was given `{name}` as an object.*its path"):
            A.to_dict(A.Compose([transform]))
    assert A.to_dict(A.Compose([SyntheticVariant(cache, audit=None)]))


@pytest.mark.parametrize("version", ["2.5.1", "2.0.19"])
def test_the_successor_package_is_recognized(monkeypatch, version):
    successor = types.ModuleType("albumentations")
    hooks: dict[str, Any] = {} if version == "2.5.1" else {"sample_parameters": lambda self: {}}
    successor.ImageOnlyTransform = type("ImageOnlyTransform", (), hooks)  # type: ignore[attr-defined]
    successor.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "albumentations", successor)
    monkeypatch.delitem(sys.modules, "synthaug.albumentations")
    with pytest.raises(ImportError, match=rf"found version {version}: AlbumentationsX, .*2\.0\.8"):
        importlib.import_module("synthaug.albumentations")
