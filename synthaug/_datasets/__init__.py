"""Real and synthetic images in one data set."""

from synthaug._datasets.batches import MixedBatchSampler
from synthaug._datasets.losses import check_loss
from synthaug._datasets.mixed import MixedDataset
from synthaug._datasets.on_the_fly import OnTheFlyDataset
from synthaug._datasets.samplers import SeededSampler

__all__ = ["MixedBatchSampler", "MixedDataset", "OnTheFlyDataset", "SeededSampler", "check_loss"]
