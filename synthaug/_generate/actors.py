"""Drawing a job on Ray: actors take parts, and the states of the rows say what is left of them."""

import math
import platform
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from synthaug._cache import State, SynthCache
from synthaug._cache.files import parts_folder
from synthaug._cache.synthesizer import Synthesizer, as_recorded
from synthaug._cluster import Outcome, RayEngine, actor_pool, pickled
from synthaug._generate import parts
from synthaug._generate.parts import Part
from synthaug._plan import canonical_json
from synthaug._support.memory import is_out_of_memory
from synthaug._support.progress import bar
from synthaug._types import Indices
from synthaug.errors import CacheError, EngineError

_SECONDS = 5.0
"""How long an actor draws before it reports, and may be given another part."""
_WHOLE_BATCHES = 2
"""How often a batch may end its actor before its rows are drawn one by one."""


def pack(synthesizer: Synthesizer, engine: RayEngine) -> bytes:
    """Returns the bytes that carry a synthesizer to an actor: `engine.load`, or itself, pickled.
    Without Ray an ImportError, and a ValueError if it cannot be pickled."""
    name = type(synthesizer).__name__
    remedy = (
        "Say how an actor makes its own, for example with "
        f"`RayEngine(load=lambda: {name}.from_pretrained(path))`."
    )
    return pickled(engine.load or (lambda: synthesizer), name=name, remedy=remedy)


class Drawer:
    """An actor: loads the synthesizer once, and draws parts with it."""

    fits: float = math.inf
    """The largest batch that may fit into memory."""

    def load(self, parcel: bytes, recipe: dict[str, Any]) -> None:
        """Unpacks the synthesizer, in the precision of `recipe` if it may choose. An EngineError if
        it cannot be unpacked here or has another recipe."""
        import ray

        host = platform.node()
        try:
            self.synthesizer = as_recorded(ray.cloudpickle.loads(parcel)(), recipe)
            loaded_recipe = self.synthesizer.recipe()
        except Exception as error:
            raise EngineError(
                f"An actor on {host} could not load the synthesizer: {type(error).__name__}: "
                f"{error}. Its modules and files must be there too, and weights that are on a GPU "
                "here need one there; `RayEngine(load=...)` loads it in a way of your own."
            ) from None
        if canonical_json(loaded_recipe) != canonical_json(recipe):
            raise EngineError(
                f"The actor on {host} loaded another synthesizer, with the recipe "
                f"{loaded_recipe}. Weights and settings must be the same on every node."
            )

    def draw(self, part: Part, rows: Indices, batch_size: int, check: bool) -> tuple[int, float]:
        """Draws those of `rows` that are pending, for some seconds; rows left, and per second.

        Args:
            part: Its file is there.
            rows: Row numbers, counted from the part's start.
            batch_size: Rows at a time, fewer if memory does not hold them.
            check: Whether to compare what is there with its checksums first.
        """
        if not part.path.exists():
            raise EngineError(
                f"{part.path} is not there on {platform.node()}. The cache must be in a folder "
                "that every node of the cluster shares."
            )
        if check:
            parts.mend(SynthCache(part.path))
        started = time.monotonic()
        asked = int(min(batch_size, self.fits))
        drawn, rest, fits = parts.draw_part(
            self.synthesizer, part, rows, batch_size=asked, seconds=_SECONDS
        )
        if fits < asked:
            self.fits = fits
        return rest, drawn / (time.monotonic() - started)


@dataclass(eq=False)
class Task:
    """A part that is not complete, and what went wrong with it."""

    part: Part
    whole: SynthCache
    batch_size: int
    checked: bool = False
    """Whether its rows of an earlier run were compared with their checksums."""
    given_up: list[int] = field(default_factory=list)
    """Rows, counted from the part's start, that ended every actor that drew them."""
    suspect: int = -1
    """The first row that was pending when an actor was last lost."""
    losses: int = 0
    """Actors lost since without a row being drawn."""

    def __post_init__(self) -> None:
        self.usual_size = self.batch_size
        # What the part must hold. Some may be there, intact or damaged: actors find out.
        rows = slice(self.part.start, self.part.stop)
        absent = self.whole.state_of(rows) == State.PENDING
        self.wanted = np.flatnonzero(absent)
        self.rest = len(self.pending())

    def pending(self) -> Indices:
        """Returns the rows still to be drawn, as the files show, whatever actors reported."""
        return np.setdiff1d(parts.left(self.part, self.whole), self.given_up)

    def progress(self, rest: int) -> int:
        """Rows drawn since the last call, now that `rest` are left."""
        before, self.rest = self.rest, rest
        return before - rest

    def lost(self, tries: int) -> None:
        """Decides how to go on after an actor was lost, or ran out of memory, drawing this part.

        Actors are lost for many reasons, so the batch is drawn again. If it ends an actor once
        more, its rows are drawn one by one, and one that goes on doing so is given up.
        """
        rows = self.pending()
        if not len(rows):
            return
        self.losses = self.losses + 1 if rows[0] == self.suspect else 1
        self.suspect = int(rows[0])
        if self.batch_size > 1 and self.losses >= _WHOLE_BATCHES:
            self.batch_size, self.losses = 1, 0
        elif self.batch_size == 1 and self.losses >= tries:
            self.given_up.append(self.suspect)
            self.wanted = np.setdiff1d(self.wanted, self.given_up)
            self.batch_size, self.losses = self.usual_size, 0


def draw_on_ray(
    synthesizer: Synthesizer,
    whole: SynthCache,
    engine: RayEngine,
    parcel: bytes,
    *,
    batch_size: int,
    progress: bool,
) -> None:
    """Draws a cache's pending rows on a Ray cluster, and puts the parts together.

    Args:
        synthesizer: Has the recipe of the cache.
        whole: The cache, in a folder that all nodes share.
        engine: How to spread.
        parcel: The synthesizer as `pack` packs it.
        batch_size: Rows per call of `draw`.
        progress: Show a bar.

    Raises:
        EngineError: If no actor gets ready, or rows ended every actor that drew them.
            All other rows are kept.
        Exception: Any error that `draw` raised. Rows already done are kept.
    """
    every = parts.parts_of(whole.path, len(whole))
    for part in every:  # all before the first image: a full disk is met now
        parts.lay_out(part, whole)
    tasks = [Task(part, whole, batch_size) for part in every]
    queue = deque(task for task in tasks if len(task.wanted))
    if queue:
        done = len(whole) - sum(task.rest for task in queue)
        with (
            bar(len(whole), "generate", "image", initial=done, progress=progress) as shown,
            actor_pool(engine, Drawer, parcel, synthesizer.recipe(), most=len(queue)) as pool,
        ):
            for outcome in pool.run(queue, _call):
                task: Task = outcome.item
                rest = _learned(outcome, engine.tries)
                shown.update(task.progress(rest))
                if rest:
                    queue.appendleft(task)  # for whichever idle actor is fastest
    bad = [task.part.start + row for task in tasks for row in task.given_up]
    if bad:
        also = f" So did {len(bad) - 1:,} more." if len(bad) > 1 else ""
        folder = parts_folder(whole.path)
        raise EngineError(
            f"Row {bad[0]} ended each of the last {engine.tries} actors that drew it, alone: "
            f"{whole.plan.row(bad[0])}.{also} All other rows are kept in {folder}. "
            "Give the actors more memory if that was the reason, and run the job again."
        )
    if not parts.assemble(every, whole):
        raise CacheError(
            f"Another process is writing to {whole.path}. Run the job again when it has ended."
        )


def _call(actor: Any, task: Task) -> Any:
    return actor.draw.remote(task.part, task.wanted, task.batch_size, not task.checked)


def _learned(outcome: Outcome[Task], tries: int) -> int:
    """Rows of the task that are left after a call, however it ended."""
    task = outcome.item
    if outcome.error is None:
        rest, speed = outcome.value
        outcome.worker.speed = speed or outcome.worker.speed  # 0 if nothing was missing
        task.checked = True
        return int(rest)
    if not (outcome.died or is_out_of_memory(outcome.error)):
        raise outcome.error
    task.lost(tries)
    return len(task.pending())
