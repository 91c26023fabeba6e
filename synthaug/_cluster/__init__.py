"""Where a job runs: its share of the processes that torchrun or a batch system started, or Ray."""

from synthaug._cluster.ranks import Share
from synthaug._cluster.ray import ActorPool, Outcome, RayEngine, Worker, actor_pool, pickled

__all__ = ["ActorPool", "Outcome", "RayEngine", "Share", "Worker", "actor_pool", "pickled"]
