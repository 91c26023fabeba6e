"""Where a job runs: its share of the processes that torchrun or a batch system started, or Ray."""

from synthaug._cluster.ranks import Share
from synthaug._cluster.ray import (
    ActorPool,
    Outcome,
    RayEngine,
    Worker,
    capacity,
    cluster,
    import_ray,
)

__all__ = [
    "ActorPool",
    "Outcome",
    "RayEngine",
    "Share",
    "Worker",
    "capacity",
    "cluster",
    "import_ray",
]
