"""Ray: joining a cluster, and a pool of actors that outlives the loss of any of them.

    with cluster(address), ActorPool(create, 4, start=lambda actor: actor.load.remote()) as pool:
        for block, result in pool.map(blocks, lambda actor, block: actor.work.remote(block)):
            ...

Ray finds the place for each actor and notices when one is lost. It does not repeat calls: how often
is enough, and with `run` instead of `map` what is left of a block, the caller decides.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from synthaug.errors import EngineError

logger = logging.getLogger("synthaug")
T = TypeVar("T")

_REMIND = 30.0  # seconds between two warnings that no actor has a place


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """How a job spreads over a Ray cluster.

        synthaug.generate(synthesizer, plan, "cifar.h5", engine=RayEngine(num_gpus=0.5))

    Args:
        address: Of a running cluster. By default that of RAY_ADDRESS, else one that runs on this
            machine, else a new one on this machine alone, which ends with the job.
        actors: Number of actors; by default as many as the cluster has room for.
        num_cpus: Processors of each actor.
        num_gpus: GPUs of each actor; a fraction lets several share one. By default 1 if the cluster
            has GPUs.
        load: Makes the synthesizer in each actor, for one that cannot be pickled, or should take
            another device there: `lambda: ClassConditional.from_pretrained("runs/cifar")`.
        tries: How often a row may end its actor, drawn alone, before it is given up.
    """

    address: str | None = None
    actors: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    load: Callable[[], Any] | None = None
    tries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("actors", 1), ("tries", 1), ("num_cpus", 0), ("num_gpus", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")

    def needs(self, ray: Any) -> dict[str, float]:
        """Resources of one actor, in Ray's names."""
        gpus = self.num_gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        return {name: n for name, n in (("CPU", self.num_cpus), ("GPU", gpus)) if n}


def import_ray() -> Any:
    """The library.

    Raises:
        ImportError: Names the extra that installs it.
    """
    try:
        import ray
    except ImportError:
        raise ImportError(
            "`engine='ray'` needs Ray. Install it with `pip install 'synthaug[ray]'`."
        ) from None
    return ray


@contextmanager
def cluster(address: str | None = None) -> Iterator[tuple[Any, bool]]:
    """The library, connected to a cluster; and whether that was made here, and ends with the block.

    A connection that was there before is used and kept.

    Args:
        address: As in `RayEngine`.

    Raises:
        ImportError: Ray is not installed.
        EngineError: No cluster answers at `address`.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray, False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    own, quiet = False, {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address=address or "auto", **quiet)
    except Exception as error:  # which ones is not documented
        if address or os.environ.get("RAY_ADDRESS"):
            where = address or os.environ["RAY_ADDRESS"]
            raise EngineError(
                f"No Ray cluster answers at {where!r} ({error}). Start one with `ray start "
                "--head`, or leave the address out to use this machine."
            ) from error
        own = True
        _start(ray, quiet)
    try:
        yield ray, own
    finally:
        ray.shutdown()


def _start(ray: Any, settings: Mapping[str, Any]) -> None:
    """A new cluster on this machine."""
    try:
        ray.init(address="local", include_dashboard=False, **settings)
    except Exception as error:
        ray.shutdown()
        raise EngineError(
            f"Ray could not be started on this machine: {error} Run again when there is less load, "
            "or join a cluster by its address."
        ) from error


def capacity(ray: Any, needs: Mapping[str, float]) -> int:
    """How many actors with these needs the cluster's nodes hold together, if nothing else runs."""
    return sum(
        min((int(node["Resources"].get(k, 0) / n) for k, n in needs.items()), default=1)
        for node in ray.nodes()
        if node["Alive"]
    )


def room(ray: Any, needs: Mapping[str, float]) -> str:
    """What an actor needs, and what there is."""
    there, free = ray.cluster_resources(), ray.available_resources()
    return (
        "Each needs "
        + ", ".join(
            f"{n:g} {name} (the cluster has {there.get(name, 0):g}, free {free.get(name, 0):g})"
            for name, n in needs.items()
        )
        + "."
    )


@dataclass(eq=False)
class Worker:
    """One actor of a pool."""

    actor: Any
    speed: float = float("inf")
    """Set by whoever knows; among idle workers the fastest is asked first, new ones before all."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a call ended."""

    item: T
    worker: Worker
    value: Any = None
    error: Exception | None = None
    """What the call raised, or how the actor was lost."""
    died: bool = False
    """Whether the actor was lost; the pool has replaced it by a new one."""


@dataclass
class ActorPool:
    """Actors that do blocks of work; those that die are replaced.

    Args:
        create: Makes an actor. It should not restart by itself, nor repeat its calls, which are
            Ray's defaults.
        size: Number of actors. The pool works with fewer while there is no room for all.
        start: The first call to each actor, which makes it ready: loads a model, say.
        started: Called with what `start` returned.
        needs: Resources of an actor, for the message if there is no room for any.
        patience: Seconds after which that message is an error.
    """

    create: Callable[[], Any]
    size: int
    start: Callable[[Any], Any]
    started: Callable[[Any], object] = lambda value: None
    needs: Mapping[str, float] = field(default_factory=dict)
    patience: float = 600

    _starting: dict[Any, Worker] = field(default_factory=dict, init=False)
    _idle: list[Worker] = field(default_factory=list, init=False)
    _busy: dict[Any, tuple[Worker, Any]] = field(default_factory=dict, init=False)
    _stillborn: int = field(default=0, init=False)
    """Actors that died one after the other before they were ready."""
    _waits_since: float = field(default_factory=time.monotonic, init=False)
    _warned: float = field(default_factory=time.monotonic, init=False)

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(self, *_: object) -> None:
        ray = import_ray()
        busy = [worker for worker, _ in self._busy.values()]
        for worker in [*self._starting.values(), *self._idle, *busy]:
            with suppress(Exception):  # lost already
                ray.kill(worker.actor)

    def run(self, queue: "deque[T]", call: Callable[[Any, T], Any]) -> Iterator[Outcome[T]]:
        """Works the queue off, and yields how each call ended, in the order in which they do.

        Items that are put into the queue meanwhile are done too.

        Args:
            queue: What to do, in order.
            call: Starts the work on an item: `lambda actor, item: actor.work.remote(item)`.

        Raises:
            EngineError: No actor finds a place, or each one dies before it is ready.
            Exception: What `start` raised in an actor.
        """
        ray = import_ray()
        while queue or self._busy:
            while queue and self._idle:
                worker = max(self._idle, key=lambda w: w.speed)
                self._idle.remove(worker)
                item = queue.popleft()
                self._busy[call(worker.actor, item)] = worker, item
            missing = self.size - len(self._starting) - len(self._idle) - len(self._busy)
            for _ in range(min(missing, len(queue) - len(self._starting))):
                worker = Worker(self.create())
                self._starting[self.start(worker.actor)] = worker
            done, _ = ray.wait([*self._busy, *self._starting], timeout=1)
            for ref in done:
                if ref in self._starting:
                    self._ready(ray, ref)
                else:
                    yield self._ended(ray, ref)
            self._check_patience(ray)

    def map(
        self, items: Iterable[T], call: Callable[[Any, T], Any], *, tries: int = 3
    ) -> Iterator[tuple[T, Any]]:
        """Each item with what its call returned, as they end; those of lost actors are repeated.

        Args:
            items: What to do.
            call: As in `run`.
            tries: How many actors an item may lose.

        Raises:
            EngineError: As `run`, and for an item that has lost that many.
            Exception: What a call raised.
        """
        queue = deque(enumerate(items))
        losses = Counter[int]()
        for outcome in self.run(queue, lambda actor, pair: call(actor, pair[1])):
            number, item = outcome.item
            if outcome.error is None:
                yield item, outcome.value
                continue
            if not outcome.died:
                raise outcome.error
            losses[number] += 1
            if losses[number] >= tries:
                raise EngineError(
                    f"{tries} actors were lost with the same work: {outcome.error}"
                ) from outcome.error
            queue.append(outcome.item)

    def _check_patience(self, ray: Any) -> None:
        """Says why nothing happens while no actor is ready."""
        now = time.monotonic()
        if self._busy or self._idle:
            self._waits_since = self._warned = now
            return
        waited = now - self._waits_since
        if waited > self.patience and not capacity(ray, self.needs):
            raise EngineError(
                f"No actor finds a place. {room(ray, self.needs)} No node is large enough: ask for "
                "less, or add one."
            )
        if now - self._warned > _REMIND:
            self._warned = now
            logger.warning("No actor is ready. %s Waiting.", room(ray, self.needs))

    def _ready(self, ray: Any, ref: Any) -> None:
        worker = self._starting.pop(ref)
        try:
            value = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from error
        except ray.exceptions.RayError as error:
            self._stillborn += 1
            if self._stillborn >= self.size + 2:  # a node may take all with it that load there
                raise EngineError(
                    f"{self._stillborn} actors died one after the other before they were ready; "
                    f"the last: {error}. Does the model fit into their memory?"
                ) from error
            return
        self._stillborn = 0
        self.started(value)
        self._idle.append(worker)

    def _ended(self, ray: Any, ref: Any) -> Outcome[Any]:
        worker, item = self._busy.pop(ref)
        try:
            value = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            return Outcome(item, worker, error=cause_of(error))
        except ray.exceptions.RayError as error:
            with suppress(Exception):  # out of reach is not dead: two must not do the same
                ray.kill(worker.actor)
            return Outcome(item, worker, error=error, died=True)
        self._idle.append(worker)
        return Outcome(item, worker, value)


def cause_of(error: Any) -> Exception:
    """What the code in an actor raised, from what Ray made of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
