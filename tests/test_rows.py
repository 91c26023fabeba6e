"""Rows that a caller selects: everywhere numbers or a mask of full length, and nothing else."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from synthaug import MixedDataset, OnTheFlyDataset, Plan, caches, load_dataset
from synthaug._audit import AuditReport
from synthaug._images.source import ImageSource
from synthaug._plan.quota import matching_quota
from synthaug.synthesizers import Constant
from tests.drawing import Noise, plan_of
from tests.mixtures import CLASSES, fill, make_cache, real_images

N = 60
MASK = np.arange(N) % 7 == 3


@pytest.fixture(scope="module")
def selectors(tmp_path_factory) -> dict[str, Callable[[Any], Any]]:
    """Whatever takes rows of 60 images, as functions of these rows whose results have a length."""
    folder = tmp_path_factory.mktemp("rows")
    real = real_images()
    cache = make_cache(folder, (20, 20, 20))
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    live = OnTheFlyDataset(Noise(), plan_of((20, 20, 20)), background=False)
    with h5py.File(folder / "real.hdf5", "w") as file:
        file["images"], file["labels"] = real.read(np.arange(N)).numpy(), real.labels
        file.attrs["classes"] = CLASSES
    late = load_dataset(f"hdf5:{folder}/real.hdf5", memory_limit=0)
    written = fill(folder, cache.plan, (3, 6, 5))
    pixels = torch.zeros(N, 3, 6, 5, dtype=torch.uint8)
    source = ImageSource.open(Subset(real, range(N)))

    def write(rows: Any) -> str:
        written.write(rows, pixels[: len(real.read(rows))])
        return ""

    return {
        "LabeledImages.read": real.read,
        "LabeledImages.subset": real.subset,
        "LabeledImages.__getitems__": real.__getitems__,
        "HDF5": late.read,
        "ImageSource.pixels": source.pixels,
        "SynthCache.read": cache.read,
        "SynthCache.__getitems__": cache.__getitems__,
        "SynthCache.write": write,
        "SynthCache.state_of": cache.state_of,
        "MixedDataset.read": mixed.read,
        "MixedDataset.__getitems__": mixed.__getitems__,
        "MixedDataset.synthetic_rows": mixed.synthetic_rows,
        "OnTheFlyDataset.read": live.read,
        "OnTheFlyDataset.rows": live.rows,
        "Plan": cache.plan.__getitem__,
    }


def plain(selected: Any) -> Any:
    """What was selected, to be compared."""
    if isinstance(selected, Plan):
        return selected.columns["seed"].tolist()
    if isinstance(selected, list):
        return [(np.asarray(image).tolist(), label) for image, label in selected]
    if hasattr(selected, "read"):
        return plain(selected.read(np.arange(len(selected))))
    return selected if isinstance(selected, str) else np.asarray(selected).tolist()


@pytest.mark.parametrize("empty", [[], np.array([]), np.zeros(N, bool)], ids=["[]", "()", "0"])
def test_a_mask_selects_and_an_empty_selection_gives_an_empty_result(selectors, empty):
    for name, select in selectors.items():
        assert plain(select(MASK)) == plain(select(np.flatnonzero(MASK).tolist())), name
        assert plain(select(MASK.tolist())) == plain(select(torch.from_numpy(MASK))), name
        assert len(select(empty)) == 0, name


@pytest.mark.parametrize("cut", [[1.9], np.array([0.0, 1.0]), [False, True]], ids=str)
def test_what_would_be_cut_or_taken_for_row_numbers_is_refused(selectors, cut):
    for name, select in selectors.items():
        with pytest.raises((TypeError, ValueError)) as error:
            select(cut)
        message = str(error.value)
        assert "expected integers" in message or "mask of 2 values, and" in message, name


@pytest.mark.parametrize("index", [True, np.bool_(True), 1.5, slice(0, 2), "0", None, [0]], ids=str)
def test_an_item_is_asked_for_by_one_whole_number(tmp_path, index):
    mixed = MixedDataset(real_images(), make_cache(tmp_path), audit=None, fraction=0.5)
    for item_of in (real_images().__getitem__, mixed.__getitem__, mixed.provenance):
        with pytest.raises(TypeError, match=r"`index` is .*, expected a whole number"):
            item_of(index)
        with pytest.raises(IndexError, match=r"Index 60 is out of range for 60 items"):
            item_of(60)
    last: Any = torch.tensor(59)
    assert mixed.provenance(-1) == mixed.provenance(59) == mixed.provenance(last)


def test_a_subset_by_a_mask_is_refused_as_torch_would_take_its_rows_0_and_1():
    wrong: list[Any] = [[True] * N, [1.5]]
    for rows in wrong:
        with pytest.raises(TypeError, match=r"`Subset` cannot be read.*flatnonzero\(mask\)"):
            ImageSource.open(Subset(real_images(), rows))


def test_an_export_takes_a_mask(tmp_path):
    cache = make_cache(tmp_path)
    out = caches.export(cache, tmp_path / "out", format="folder", rows=cache.labels == 1)
    assert len(list(out.glob("*/*.png"))) == 5
    with pytest.raises(TypeError, match="`rows` is float64"):
        caches.export(cache, tmp_path / "other", format="folder", rows=[0.5])


def test_labels_sources_and_keys_that_would_be_cut_are_refused():
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: matching_quota([0.0, 1.9], 2, ratio=1.0),
        lambda: Constant(pixels, [0.2, 1.9]),
        lambda: ImageSource.open([(0, 0), (0, 1)]).relabeled([0.0, 1.9]),
        lambda: Plan.build(
            [1], classes=["a"], settings={}, seed=0, sources=[[0.9]], source_keys=[7]
        ),
        lambda: caches.forget([], np.array([1.5])),
        lambda: caches.forget([], [True]),
        lambda: AuditReport.copies_of(SimpleNamespace(), MASK),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"expected integers|whole numbers"):
            call()
