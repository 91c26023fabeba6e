"""Results of an audit in files, so that one that was killed continues.

A file is named by a digest of all that its content depends on: the images asked about, the real
ones, the settings of the search, this code, and the libraries that it calls. So results of other
images or settings are never mixed. Files hold distances and row numbers, and no pixels; but like
the features of networks, which lie beside them, they are about images, and `forget` deletes both.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from synthaug._audit.inputs import Contents, Samples, keys
from synthaug._audit.matches import Matches, Near
from synthaug._audit.settings import FeaturesAsGiven, environment
from synthaug._plan import canonical_json
from synthaug._support.digests import check_seal, file_digest, sealed_file
from synthaug._types import JSON
from synthaug.features import Extractor, Pixel, Spectrum, describe

log = logging.getLogger(__name__)

Records: TypeAlias = list[Matches] | list[Near]
"""One answer or several about the same images."""


def can_be_told(extractors: Sequence[Extractor]) -> bool:
    """Whether name and weights say what each extractor computes: they do of ours, and not of a
    foreign one without weights, whose results must not be taken for those of another."""
    known = (Pixel, Spectrum, FeaturesAsGiven)
    return all(isinstance(e, known) or describe(e)["weights"] is not None for e in extractors)


def basis_of(
    train: Samples, contents: Contents, extractors: Sequence[Extractor], k: int, index: str
) -> str:
    """The digest of everything that all results of a search depend on."""
    told: list[JSON] = [
        {**environment(), "created": None},
        _code(),
        [describe(extractor) for extractor in extractors],
        [k, index, str(train.dtype), *train.shape],
    ]
    hashed = hashlib.blake2b(canonical_json({"of": told}).encode(), digest_size=16)
    hashed.update(contents.keys.tobytes())
    return hashed.hexdigest()


def place(folder: Path, samples: Samples, *of: JSON) -> Path:
    """The file of a result about some images, and what else it depends on."""
    hashed = hashlib.blake2b(canonical_json({"of": [*of]}).encode(), digest_size=16)
    hashed.update(keys(samples).tobytes())
    return folder / f"{hashed.hexdigest()}.npz"


def read_records(path: Path | None, kind: type[Matches] | type[Near]) -> Records | None:
    """The records in a file; `None` if there is none, or it is damaged."""
    if path is None:
        return None
    try:
        check_seal(path)
        with np.load(path, allow_pickle=False) as file:
            records: dict[str, dict[str, np.ndarray]] = {}
            for name in file.files:
                number, field = name.split(".")
                records.setdefault(number, {})[field] = file[name]
        return [kind(**record) for record in records.values()]  # type: ignore[return-value]
    except FileNotFoundError:  # also if an audit beside this one has just ended, and deleted it
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s): it is computed again.", path, error)
        return None


def write_records(path: Path | None, records: Records) -> None:
    """Writes records to a file, whole or not at all."""
    if path is None:
        return
    arrays = {f"{i}.{name}": x for i, one in enumerate(records) for name, x in vars(one).items()}
    with sealed_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


@cache
def _code() -> str:
    """The digest of the code of the search, which changes more often than its version."""
    here = Path(__file__).parent
    files = sorted((*here.glob("*.py"), *here.parent.glob("*.py")))
    return hashlib.blake2b("".join(map(file_digest, files)).encode()).hexdigest()
