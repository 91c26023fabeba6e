"""Ray: joining a cluster, and a pool of actors that outlives the loss of any of them.

    with actor_pool(engine, Model, weights) as pool:  # each actor runs Model().load(weights) first
        results = pool.map(blocks, lambda actor, block: actor.work.remote(block))

Ray places each actor and notices when one is lost. Replacing it and repeating calls is done here,
because Ray's own restarts and retries hide what the caller must know: which item ended an actor,
that an actor never becomes ready, and that no node has room for one.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from synthaug._support.arguments import check_at_least, check_fields
from synthaug._support.extras import from_extra
from synthaug._support.memory import is_device_lost
from synthaug.errors import EngineError

logger = logging.getLogger("synthaug")
T = TypeVar("T")

_REMIND = 30.0  # seconds between two warnings that no actor has a place
_PATIENCE = 600.0
"""Seconds after which a cluster that is too small for an actor is an error: it may grow."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """How a job spreads over a Ray cluster.

        synthaug.generate(synthesizer, plan, "cifar.h5", engine=RayEngine(num_gpus=0.5))

    Args:
        address: Address of a running cluster. By default that of RAY_ADDRESS, else one that runs
            on this machine, else a new one on this machine alone, which ends with the job.
        actors: Number of actors; by default as many as the cluster has room for.
        num_cpus: Processors of each actor.
        num_gpus: GPUs of each actor; a fraction lets several share one. By default 1 if the cluster
            has GPUs; for an audit only if its features are computed on one.
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
        check_fields(self)
        check_at_least(1, actors=self.actors, tries=self.tries)
        check_at_least(0, num_cpus=self.num_cpus, num_gpus=self.num_gpus)

    def needs(self, ray: Any, *, on_gpu: bool = True) -> dict[str, float]:
        """Resources of one actor, in Ray's names; without a GPU if it would not use it."""
        gpus = self.num_gpus
        if gpus is None:
            gpus = 1 if on_gpu and ray.cluster_resources().get("GPU") else 0
        return {name: n for name, n in (("CPU", self.num_cpus), ("GPU", gpus)) if n}


def import_ray() -> Any:
    """The library, or an ImportError that names the extra that installs it."""
    with from_extra("ray", "`engine='ray'` needs Ray", "ray"):
        import ray
    return ray


@contextmanager
def cluster(address: str | None = None) -> Iterator[tuple[Any, bool]]:
    """The library, connected to a cluster; and whether that was made here, and ends with the block.

    A connection that was there before is used and kept.

    Args:
        address: Same as in `RayEngine`.

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


def pickled(value: Any, *, name: str, remedy: str) -> bytes:
    """Pickles what actors load, classes and functions of the user's script included.

    Args:
        value: The object that actors load.
        name: Names it in the error message.
        remedy: Remedy in the error message if it cannot be pickled.

    Raises:
        ImportError: Ray is not installed.
        ValueError: It cannot be pickled.
    """
    cloudpickle = import_ray().cloudpickle
    try:
        parcel: bytes = cloudpickle.dumps(value)
    except Exception as error:  # each class has its own reasons
        raise ValueError(
            f"{name} cannot be pickled for Ray's actors ({type(error).__name__}: {error}). {remedy}"
        ) from error
    return parcel


def capacity(ray: Any, needs: Mapping[str, float]) -> int:
    """How many actors with these needs the cluster's nodes hold together, if nothing else runs."""
    return sum(
        min((int(node["Resources"].get(k, 0) / n) for k, n in needs.items()), default=1)
        for node in ray.nodes()
        if node["Alive"]
    )


def room(ray: Any, needs: Mapping[str, float]) -> str:
    """Returns a sentence about the resources that an actor needs, and those there are."""
    there, free = ray.cluster_resources(), ray.available_resources()
    resources = ", ".join(
        f"{n:g} {name} (the cluster has {there.get(name, 0):g}, free {free.get(name, 0):g})"
        for name, n in needs.items()
    )
    return f"Each needs {resources}."


@dataclass(eq=False)
class Worker:
    """One actor of a pool."""

    actor: Any
    speed: float = float("inf")
    """Set by the caller; among idle workers the fastest is asked first, new ones before all."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a call ended."""

    item: T
    worker: Worker
    value: Any = None
    error: Exception | None = None
    """What the call raised, or how the actor was lost."""
    died: bool = False
    """Whether the actor was lost; the pool replaces it by a new one."""


@contextmanager
def actor_pool(
    engine: RayEngine, kind: type, *arguments: Any, most: int | None = None, on_gpu: bool = True
) -> Iterator["ActorPool"]:
    """Joins a cluster and opens a pool of actors there.

    Args:
        engine: How many actors, where, and what each of them needs.
        kind: Class of the actors. It has a method `load`, which is called first.
        arguments: Arguments of `load`; shipped to each node once.
        most: More actors than this would have nothing to do.
        on_gpu: Whether an actor computes on a GPU where the cluster has some.

    Raises:
        ImportError: Ray is not installed.
        EngineError: No cluster answers at the engine's address.
    """
    with cluster(engine.address) as (ray, started_here):
        needs = engine.needs(ray, on_gpu=on_gpu)
        size = engine.actors or max(1, capacity(ray, needs))
        options = {"num_cpus": engine.num_cpus, "num_gpus": needs.get("GPU", 0)}
        pool = ActorPool(
            ray,
            ray.remote(kind).options(**options).remote,
            size if most is None else min(size, most),
            arguments=[ray.put(argument) for argument in arguments],
            needs=needs,
            patience=0 if started_here else _PATIENCE,  # a cluster of our own does not grow
        )
        with pool:
            yield pool


_LOAD = object()
"""The item of an actor's first call, which makes it ready."""


@dataclass
class ActorPool:
    """Actors that do blocks of work; those that die are replaced.

    Args:
        ray: The library, connected to a cluster.
        create: Makes an actor, which neither restarts by itself nor repeats calls: Ray's defaults.
        size: Number of actors. The pool works with fewer while there is no room for all.
        arguments: Arguments of the actors' method `load`.
        needs: Resources of an actor, for the message if there is no room for any.
        patience: Seconds after which that message is an error.
    """

    ray: Any
    create: Callable[[], Any]
    size: int
    arguments: Sequence[Any] = ()
    needs: Mapping[str, float] = field(default_factory=dict)
    patience: float = _PATIENCE

    _calls: dict[Any, tuple[Worker, Any]] = field(default_factory=dict, init=False)
    _idle: list[Worker] = field(default_factory=list, init=False)
    _stillborn: int = field(default=0, init=False)
    """Actors that died one after the other before they were ready."""
    _waits_since: float = field(default_factory=time.monotonic, init=False)
    _warned: float = field(default_factory=time.monotonic, init=False)

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._calls.values())]:
            self._kill(worker)

    def run(self, queue: "deque[T]", call: Callable[[Any, T], Any]) -> Iterator[Outcome[T]]:
        """Works the queue off, and yields how each call ended, in the order in which they do.

        Items that are put into the queue meanwhile are done too.

        Args:
            queue: The items to work on, in order.
            call: Starts the work on an item: `lambda actor, item: actor.work.remote(item)`.

        Raises:
            EngineError: If Ray cannot schedule an actor, or each one dies before it is ready.
            Exception: Any error that `load` raised in an actor.
        """
        while queue or len(self._calls) > self._loading:
            while queue and self._idle:
                worker = max(self._idle, key=lambda w: w.speed)
                self._idle.remove(worker)
                item = queue.popleft()
                self._calls[call(worker.actor, item)] = worker, item
            missing = self.size - len(self._idle) - len(self._calls)
            for _ in range(min(missing, len(queue) - self._loading)):
                worker = Worker(self.create())
                self._calls[worker.actor.load.remote(*self.arguments)] = worker, _LOAD
            done, _ = self.ray.wait([*self._calls], timeout=1)
            for outcome in map(self._outcome, done):
                if outcome.item is _LOAD:
                    self._check_loaded(outcome)
                else:
                    yield outcome
            self._check_patience()

    def map(
        self, items: Sequence[T], call: Callable[[Any, T], Any], *, tries: int = 3
    ) -> list[Any]:
        """Returns the results of the calls, in the order of their items; calls of lost actors are
        repeated.

        Args:
            items: The items to work on.
            call: See `run`.
            tries: How many actors an item may lose.

        Raises:
            EngineError: Under the same conditions as `run`, and for an item that has lost that
                many.
            Exception: Any error that a call raised.
        """
        queue, losses, values = deque(range(len(items))), Counter[int](), dict[int, Any]()
        for outcome in self.run(queue, lambda actor, number: call(actor, items[number])):
            if outcome.error is None:
                values[outcome.item] = outcome.value
                continue
            if not outcome.died:
                raise outcome.error
            losses[outcome.item] += 1
            if losses[outcome.item] >= tries:
                raise EngineError(
                    f"{tries} actors were lost with the same work: {outcome.error}"
                ) from outcome.error
            queue.append(outcome.item)
        return [values[number] for number in range(len(items))]

    @property
    def _loading(self) -> int:
        """Number of actors that are not ready yet."""
        return sum(item is _LOAD for _, item in self._calls.values())

    def _outcome(self, ref: Any) -> Outcome[Any]:
        """How a call ended; its worker is idle again, or dead."""
        worker, item = self._calls.pop(ref)
        try:
            value, error = self.ray.get(ref), None
        except self.ray.exceptions.RayTaskError as raised:  # by the code in the actor
            value, error = None, raised.cause if isinstance(raised.cause, Exception) else raised
            if is_device_lost(error):  # whatever it is given next would fail
                self._kill(worker)
                return Outcome(item, worker, error=error, died=True)
        except self.ray.exceptions.RayError as lost:
            self._kill(worker)  # out of reach is not dead: two must not do the same
            return Outcome(item, worker, error=lost, died=True)
        self._idle.append(worker)
        return Outcome(item, worker, value, error)

    def _kill(self, worker: Worker) -> None:
        with suppress(Exception):  # lost already
            self.ray.kill(worker.actor)

    def _check_loaded(self, outcome: Outcome[Any]) -> None:
        """Gives up if `load` raised an error, or too many actors died in it."""
        self._stillborn = self._stillborn + 1 if outcome.died else 0
        if self._stillborn >= self.size + 2:  # a node may take all with it that load there
            raise EngineError(
                f"{self._stillborn} actors died one after the other before they were ready; "
                f"the last: {outcome.error}. Does the model fit into their memory?"
            ) from outcome.error
        if outcome.error is not None and not outcome.died:
            raise outcome.error

    def _check_patience(self) -> None:
        """Says why nothing happens while no actor is ready."""
        now = time.monotonic()
        if self._idle or len(self._calls) > self._loading:
            self._waits_since = self._warned = now
            return
        waited = now - self._waits_since
        if waited > self.patience and not capacity(self.ray, self.needs):
            raise EngineError(
                f"Ray cannot schedule an actor. {room(self.ray, self.needs)} No node is large "
                "enough. Request fewer resources, or add a node."
            )
        if now - self._warned > _REMIND:
            self._warned = now
            logger.warning("No actor is ready. %s Waiting.", room(self.ray, self.needs))
