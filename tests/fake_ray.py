"""As much of Ray as our pool uses, in this process: which call ends next is drawn from a seed.

So what becomes of lost actors can be tested in any order of events, and in the same one each time.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.drawing import Killed


class RayError(Exception):
    """An actor is lost."""


class RayTaskError(RayError):
    """Code in an actor raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Actor:
    """Does its work when the result is asked for; dead once that raised `Killed`."""

    def __init__(self, work: Any) -> None:
        self.work, self.alive = work, True

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Ref(self, name, arguments))


@dataclass(eq=False)
class Ref:
    """What a call will return."""

    actor: Actor
    name: str
    arguments: tuple[Any, ...]

    def result(self) -> Any:
        if not self.actor.alive:
            raise RayError("killed before")
        try:
            return getattr(self.actor.work, self.name)(*self.arguments)
        except Killed:
            self.actor.alive = False
            raise RayError("the worker died") from None
        except Exception as error:
            raise RayTaskError(error) from error


class FakeRay:
    """In the place of the module.

    Args:
        seed: Of the order in which calls end.
        cpus: Of its one node.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, seed: int = 0, cpus: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.resources = {"CPU": cpus}
        self.sent: list[Any] = []
        self.cloudpickle = SimpleNamespace(dumps=self._dumps, loads=lambda n: self.sent[int(n)])

    def _dumps(self, value: Any) -> bytes:
        self.sent.append(value)
        return b"%d" % (len(self.sent) - 1)

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[Any]:
        return [{"Alive": True, "Resources": self.resources}]

    def cluster_resources(self) -> dict[str, int]:
        return self.resources

    available_resources = cluster_resources

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        made = SimpleNamespace(remote=lambda: Actor(kind()))
        return SimpleNamespace(options=lambda **_: made)

    def wait(self, refs: list[Ref], timeout: float) -> tuple[list[Ref], list[Ref]]:
        del timeout
        if self.resources["CPU"] < 1:
            return [], refs
        chosen = refs[self.rng.integers(len(refs))]
        return [chosen], [ref for ref in refs if ref is not chosen]

    def get(self, ref: Ref) -> Any:
        return ref.result()

    def kill(self, actor: Actor) -> None:
        actor.alive = False
