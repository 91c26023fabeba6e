"""Real and synthetic images in one data set."""

from synthaug._datasets._batches import MixedBatchSampler
from synthaug._datasets._mixed import MixedDataset
from synthaug._datasets._samplers import SeededSampler

__all__ = ["MixedBatchSampler", "MixedDataset", "SeededSampler"]
