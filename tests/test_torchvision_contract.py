"""What torchvision asks of its own transforms, asked of ours."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug._images.convert import like, pixels_of
from synthaug.transforms import ColdRestore, MixSynthetic, SyntheticVariant
from tests.tiny.cold import inpainter
from tests.variants import make_cache, real_images

REAL = real_images(8, 8)
LABELS = torch.arange(6) % 2
Sample = namedtuple("Sample", "image, label")


@pytest.fixture(params=["SyntheticVariant", "ColdRestore", "MixSynthetic"])
def name(request) -> str:
    return request.param


@pytest.fixture
def transform(name, tmp_path) -> v2.Transform:
    """One that changes every image."""
    if name == "ColdRestore":
        return ColdRestore(inpainter(), severity_range=(0.2, 0.2), p=1.0)
    cache = make_cache(tmp_path, REAL)
    if name == "MixSynthetic":
        return MixSynthetic(cache, audit=None, fraction=1.0)
    return SyntheticVariant(cache, audit=None, p=1.0)


EXAMPLES = {
    "PIL": like(REAL.read([0])[0], REAL[0][0]),
    "tensor": REAL.read([0])[0],
    "float tensor": REAL.read([0])[0] / 255,
    "double tensor": REAL.read([0])[0].double() / 255,
    "tv_tensor": tv_tensors.Image(REAL.read([0])[0]),
    "float tv_tensor": tv_tensors.Image(REAL.read([0])[0] / 255),
}


@pytest.fixture(params=EXAMPLES)
def image(request, name) -> Any:
    """Images of every type that the transform takes; batches for the one that takes batches."""
    example = EXAMPLES[request.param]
    if name != "MixSynthetic":
        return example
    if request.param == "PIL":  # which do not come in batches
        example = EXAMPLES["float tensor"].bfloat16()
    batch = torch.stack([example] * 6)
    return batch if type(example) is Tensor else tv_tensors.wrap(batch, like=example)


def pixels(image: Any) -> Tensor:
    if isinstance(image, Tensor) and image.ndim == 4:
        return torch.stack([pixels_of(part) for part in image])
    return pixels_of(image)


def check_changed(old: Any, new: Any) -> None:
    assert type(new) is type(old)
    if isinstance(old, Tensor):
        assert (new.dtype, new.shape, new.device) == (old.dtype, old.shape, old.device)
    else:
        assert (new.mode, new.size) == (old.mode, old.size)
    assert not torch.equal(pixels(new), pixels(old))


CONTAINERS: dict[str, Any] = {
    "tuple": lambda *x: x,
    "list": lambda *x: list(x),
    "dict": lambda image, label, *x: {"image": image, "label": label, "rest": x},
    "ordered dict": lambda image, label, *x: OrderedDict(image=image, label=label, rest=x),
    "named tuple": lambda image, label, *x: Sample(image, label),
    "nested": lambda image, label, *x: (image, label, {"deep": [x, {"deeper": x}]}),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_any_structure_is_kept_and_what_is_no_image_passes_through(transform, image, container):
    others = (1, 2.5, True, None, "str", Path.cwd(), object(), np.empty(5), torch.empty(5))
    sample = container(image, LABELS, *others)
    flat, spec = tree_flatten(sample)
    before = pixels(image).clone()
    changed, same_spec = tree_flatten(transform(sample))
    assert same_spec == spec
    for old, new in zip(flat, changed, strict=True):
        if old is image:
            check_changed(old, new)
        else:
            assert new is old
    assert torch.equal(pixels(image), before)  # it was not written to


def test_an_image_of_tensors_is_the_first_tensor_unless_there_is_another_image(transform, name):
    one = EXAMPLES["tensor"] if name != "MixSynthetic" else torch.stack([EXAMPLES["tensor"]] * 6)
    other = torch.zeros(5)
    shown, label, same = transform(one, LABELS, other)
    assert not torch.equal(shown, one)
    assert label is LABELS
    assert same is other
    explicit = tv_tensors.Image(one)
    same, label, shown = transform(other, LABELS, explicit)
    assert same is other
    check_changed(explicit, shown)


def test_all_images_of_a_sample_have_the_same_parameters(transform, name):
    one = EXAMPLES["tv_tensor"]
    image = tv_tensors.Image(torch.stack([one] * 6)) if name == "MixSynthetic" else one
    torch.manual_seed(0)
    for _ in range(5):
        first, _, second = transform(image, LABELS, image.clone())
        assert torch.equal(first, second)


def test_copies_do_the_same_and_nothing_is_drawn_when_one_is_made(transform, image):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    twins = [copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))]
    assert torch.equal(torch.get_rng_state(), state)
    expected = pixels(transform(image, LABELS)[0])
    for twin in twins:
        torch.manual_seed(0)
        assert torch.equal(pixels(twin(image, LABELS)[0]), expected)


def test_parameters_are_drawn_in_one_method_and_applied_in_another(transform, image, name):
    inputs = [LABELS, image] if name == "MixSynthetic" else [image]
    params = transform.make_params(inputs)
    once, twice = (pixels(transform.transform(image, params)) for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize(
    "around",
    [
        lambda t: v2.Compose([t, v2.RandomHorizontalFlip(p=0.0)]),
        lambda t: v2.RandomApply([t], p=1.0),
        lambda t: v2.RandomChoice([t]),
        lambda t: v2.RandomOrder([v2.Identity(), t]),
        lambda t: torch.nn.Sequential(v2.Compose([t])),
    ],
    ids=["Compose", "RandomApply", "RandomChoice", "RandomOrder", "Sequential"],
)
def test_it_works_in_every_container_of_transforms(transform, around, name):
    image = EXAMPLES["tv_tensor"]
    image = tv_tensors.Image(torch.stack([image] * 6)) if name == "MixSynthetic" else image
    shown, label = around(transform)((image, LABELS))
    check_changed(image, shown)
    assert label is LABELS


def test_it_is_a_module_without_weights_and_says_what_it_is(transform, name):
    assert isinstance(transform, v2.Transform)
    assert not transform.state_dict()
    assert not list(transform.parameters())
    settings = {
        "ColdRestore": "p=1.0, severity_range=(0.2, 0.2)",
        "MixSynthetic": "fraction=1.0",
        "SyntheticVariant": "p=1.0, on_missing=keep",
    }
    assert repr(transform) == f"{name}({settings[name]})"


def test_what_cannot_follow_an_image_is_refused(transform, name):
    image = tv_tensors.Image(REAL.read(range(6))) if name == "MixSynthetic" else REAL[0][0]
    boxes = tv_tensors.BoundingBoxes(torch.zeros(1, 4), format="XYXY", canvas_size=(8, 8))
    for other in (
        boxes,
        tv_tensors.Mask(torch.zeros(8, 8)),
        tv_tensors.Video(torch.zeros(2, 3, 8, 8)),
    ):
        with pytest.raises(TypeError, match=f"{type(other).__name__} cannot follow an image"):
            transform(image, LABELS, other)
