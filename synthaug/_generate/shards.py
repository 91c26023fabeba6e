"""Drawing one process's share of a job: of torchrun's ranks, or of a job array."""

import logging

import numpy as np

from synthaug._cache import State, SynthCache
from synthaug._cache.synthesizer import Synthesizer
from synthaug._cluster import Share
from synthaug._generate.parts import assemble, draw_part, lay_out, left, mend, parts_of
from synthaug._support.progress import bar

logger = logging.getLogger("synthaug")


def draw_share(
    synthesizer: Synthesizer, whole: SynthCache, share: Share, *, batch_size: int, progress: bool
) -> None:
    """Draws every n-th part of a cache; whoever ends last puts the parts together.

    The processes need not run at the same time, and never wait for each other.

    Args:
        synthesizer: Has the recipe of the cache.
        whole: The cache.
        share: The parts of this process.
        batch_size: Rows per call of `draw`.
        progress: Show a bar, over the rows of the share.
    """
    parts = parts_of(whole.path, len(whole))
    own = share.of(parts)
    for part in own:  # all before the first image: a full disk is met now
        lay_out(part, whole)
    rest = {part: len(left(part, whole)) for part in parts}  # checks that those of others fit, too
    total = sum(map(len, own))
    begun = total - sum(rest[part] for part in own)
    with bar(total, "generate", "image", initial=begun, progress=progress) as shown:
        for part in own:
            pending = np.flatnonzero(whole.state_of(slice(part.start, part.stop)) == State.PENDING)
            if len(pending):  # perhaps just by what `mend` finds
                mend(SynthCache(part.path))
                _, _, batch_size = draw_part(
                    synthesizer, part, pending, batch_size=batch_size, drawn=shown.update
                )
    if not assemble(parts, whole):
        logger.info(
            "%s: this share is complete. The process that completes the last one joins the parts.",
            whole.path,
        )
