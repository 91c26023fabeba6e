"""A mixed data set in a notebook."""

from typing import Any

import numpy as np

from synthaug._cache.show import evenly
from synthaug._pixels import to_pil
from synthaug._support.html import Part, blocks, data_uri, preformatted, thumbnails

_THUMBNAILS = 24


def notebook(mixed: Any) -> str:
    """HTML: the text, and up to 24 images of this epoch, half of them synthetic."""
    made = mixed.synthetic_rows() >= 0
    parts: list[Part] = [preformatted(repr(mixed))]
    for kind, indices in (("real", np.flatnonzero(~made)), ("synthetic", np.flatnonzero(made))):
        chosen = evenly(indices, _THUMBNAILS // 2)
        pictures = (
            (data_uri(to_pil(mixed.read([i])[0])), mixed.classes[mixed.labels[i]])
            for i in chosen.tolist()
        )
        parts += [kind, thumbnails(pictures)] if len(chosen) else []
    return str(blocks(*parts))
