"""What the audit is measured with stays what it is: names, strengths and outputs of thirty kinds.

`audit_kinds.png` holds two small scenes and, kind by kind, the copy of the first one (beside the
second) that was made when the kinds were fixed. Files of another codec may differ by rounding,
another kind may not.
"""

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
SIDE, ACROSS = 32, 8
FIXED = "6e52f68b307ea324c09c689e6f4022e20b5392e661272c3363dc2f2e98799f61"
"""Of names, strengths and whether colors are needed, in their order."""

ROUNDING = 1.0
"""Mean absolute difference, in gray levels, that another version of a codec may make."""


def audit_kinds() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE.parent / "benchmarks"))
        return importlib.import_module("audit_kinds")


def scenes_and_copies() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    sheet = np.asarray(Image.open(HERE / "audit_kinds.png").convert("RGB"))
    tiles = sheet.reshape(-1, SIDE, ACROSS, SIDE, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(-1, 3, SIDE, SIDE)
    return tiles[:2], tiles[2:]


def test_names_and_strengths_are_the_fixed_ones():
    kinds = audit_kinds().KINDS
    assert len(kinds) == len({kind.name for kind in kinds}) == 30
    listed = json.dumps([[kind.name, kind.strength, kind.colors] for kind in kinds])
    assert hashlib.sha256(listed.encode()).hexdigest() == FIXED


def test_copies_are_the_fixed_ones():
    scenes, copies = scenes_and_copies()
    assert len(copies) == 30
    for kind, fixed in zip(audit_kinds().KINDS, copies, strict=True):
        off = np.abs(kind.apply(scenes[:1], scenes[1:])[0].astype(float) - fixed).mean()
        assert off <= ROUNDING, f"{kind.name}: {off:.2f} gray levels from the fixed copy"


def test_every_copy_is_far_from_its_original():
    scenes, copies = scenes_and_copies()
    far = audit_kinds().distances(scenes[:1], copies)
    assert (far > 10).all(), far


def test_gray_images_are_changed_by_the_kinds_that_need_no_color():
    scenes, _ = scenes_and_copies()
    gray = scenes[:, :1]
    for kind in audit_kinds().KINDS:
        if kind.colors:
            with pytest.raises(ValueError, match="needs images in color"):
                kind.apply(gray, gray)
        else:
            copies = kind.apply(gray, gray[::-1])
            assert copies.shape == gray.shape
            assert (copies != gray).any(axis=(1, 2, 3)).all(), kind.name


def test_what_is_drawn_follows_from_seed_and_number():
    scenes, _ = scenes_and_copies()
    kind = next(kind for kind in audit_kinds().KINDS if kind.name == "salt and pepper")
    assert np.array_equal(kind.apply(scenes, scenes, 3), kind.apply(scenes, scenes, 3))
    assert not np.array_equal(kind.apply(scenes, scenes, 3), kind.apply(scenes, scenes, 4))
    twice = np.repeat(scenes[:1], 2, 0)
    first, second = kind.apply(twice, twice)
    assert not np.array_equal(first, second)
