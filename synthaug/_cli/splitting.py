"""The command that divides a folder of images into two."""

import os
import shlex
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from synthaug._cli.call import Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import FileOptions

SPLIT = defaults("_audit.split:split_for_audit")
_COMPARED = (3, 32, 32)
"""The shape at which images are compared; the files themselves stay as they are."""


def split(
    data: str,
    out: str,
    files: FileOptions,
    *,
    test: float = 0.2,
    link: bool = False,
    seed: int = SPLIT.seed,
) -> Result:
    """Divide a folder of images into some to train with and some to test with, by class.

    synthaug split folder:photos photos-split --test 0.2

    Args:
        data: folder:PATH, with a folder per class.
        out: A folder that does not exist yet. The images are copied to OUT/train and OUT/test under
            the names that they have, near-duplicates to one side.
        files: For the folder.
        test: Share of the images of every class that goes to OUT/test.
        link: Make symbolic links in place of copies.
        seed: Seed of the choice.
    """
    import numpy as np

    from synthaug._audit import split_for_audit
    from synthaug._cache.files import new_folder
    from synthaug._images.loaders import parse_spec
    from synthaug._printable import amount
    from synthaug._support.progress import bar

    kind, where, _ = parse_spec(data, None)
    if kind != "folder":
        raise ValueError(
            f"Got the data set {data!r}, expected `folder:PATH`: files are copied. It takes a "
            "folder with one folder of image files per class, and neither lists nor tables."
        )
    root, target = Path(os.path.abspath(Path(where).expanduser())), Path(out).absolute()
    if not 0 < test < 1:
        raise ValueError(f"`test` must lie between 0 and 1, got {test}.")
    if target.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies in {where}, where it would be a class. Choose another place.")
    real = files.opened(data, image_shape=_COMPARED)
    rows = split_for_audit(real, holdout=test, labels=real.labels, seed=seed)
    sides = dict(zip(("train", "test"), rows, strict=True))
    with new_folder(target) as folder, bar(len(real), "split", "image") as shown:
        for side, chosen in sides.items():
            for file in map(real.paths.__getitem__, chosen.tolist()):
                place = folder / side / Path(file).relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                _put(file, place, link)
                shown.update(1)
    _warn_of_names([str(Path(file).relative_to(root).as_posix()) for file in real.paths])
    counts = [np.bincount(real.labels[rows], minlength=len(real.classes)) for rows in rows]
    classes = dict(zip(real.classes, np.stack(counts, 1).tolist(), strict=True))
    lines = [
        f"{amount(len(rows), 'image')} to {side} with, near-duplicates together: {Path(out) / side}"
        for side, rows in sides.items()
    ]
    lines += _untested([name for name, (_, count) in classes.items() if count == 0])
    trained = shlex.join(["folder:" + str(Path(out) / "train"), f"runs/{target.name}"])
    lines.append(f"Next: synthaug train {trained}")
    record = {**{side: str(Path(out) / side) for side in sides}, "classes": classes}
    return Result(record=record, text="\n".join(lines))


def _put(file: str, place: Path, link: bool) -> None:
    """Copies or links one file, and never in the place of another."""
    if os.path.lexists(place):
        raise ValueError(
            f"{file} and another file have one name on this disk, where upper and lower case are "
            "one. Nothing was written: rename one of them."
        )
    if link:
        place.symlink_to(file)
    else:
        shutil.copy2(file, place)


def _warn_of_names(paths: Sequence[str]) -> None:
    """Warns of files that another system cannot hold under the names that they have here."""
    from synthaug._support.names import one_for_all_systems, path_fault

    folded = Counter(map(one_for_all_systems, paths))
    same = "another differs in upper and lower case alone"
    faults = {
        path: path_fault(f"train/{path}") or same * (folded[one_for_all_systems(path)] > 1)
        for path in paths
    }
    odd = [path for path, fault in faults.items() if fault]
    if odd:
        warnings.warn(
            f"{len(odd):,} of {len(paths):,} files cannot be copied to every system, the first is "
            f"{odd[0]!r}: {faults[odd[0]]}. Rename them if the folders will travel.",
            stacklevel=2,
        )


def _untested(classes: Sequence[str]) -> list[str]:
    """Sentences about classes of which there is no image to test with."""
    if not classes:
        return []
    from synthaug._printable import printable_line

    names = ", ".join(map(printable_line, classes))
    return [
        f"{'Class' if len(classes) == 1 else 'Classes'} {names}: no image to test with, since all "
        "are near-duplicates of each other. Neither an audit nor an evaluation can judge such a "
        "class: give other images of it, or leave it out."
    ]
