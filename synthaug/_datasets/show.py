"""A mixed data set in a notebook."""

from typing import Any

import numpy as np

from synthaug._pixels import to_pil

_THUMBNAILS = 24


def thumbnails(mixed: Any) -> str:
    """HTML: the text, and up to 24 images of this epoch, half of them synthetic."""
    from markupsafe import escape

    from synthaug._support.html import data_uri

    made = mixed.synthetic_rows() >= 0
    figures = []
    for kind, indices in (("real", np.flatnonzero(~made)), ("synthetic", np.flatnonzero(made))):
        count = min(_THUMBNAILS // 2, len(indices))
        chosen = indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]
        images = "".join(
            f'<img src="{data_uri(to_pil(mixed.read([i])[0]))}" style="width:64px;margin:1px;'
            f'image-rendering:pixelated" title="{escape(mixed.classes[label])}">'
            for i, label in zip(chosen.tolist(), mixed.labels[chosen].tolist(), strict=True)
        )
        figures.append(f"<div>{kind}<br>{images}</div>" if count else "")
    return f"<pre>{escape(repr(mixed))}</pre>{''.join(figures)}"
