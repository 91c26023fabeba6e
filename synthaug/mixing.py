"""How real and synthetic images are mixed: shares, schedules, filters, draws, items, the log.

from synthaug import mixing

MixedDataset(real, cache, audit=report, fraction=mixing.Linear(0.0, 0.5, epochs=10))
MixedDataset(real, cache, audit=report, fraction={"cat": 0.5, "dog": 0.2})
MixedDataset(real, cache, audit=report, mode="append", ratio=mixing.Balance())
MixedDataset(real, cache, audit=report, fraction=0.5,
             filters=[mixing.AtLeast(check, 0.5), mixing.Highest(hardness, 0.2)],
             draw=mixing.Weighted(weights))
MixedDataset(real, cache, audit=report, fraction=0.5,
             items=mixing.ItemFormat(fields=mixing.Fields("img", "fine_label")))
"""

from synthaug._datasets.draws import Stratified, Weighted, WeightedDraws
from synthaug._datasets.filters import AtLeast, AtMost, Highest, Lowest
from synthaug._datasets.fractions import Balance, Schedule, Share
from synthaug._datasets.items import ItemFormat
from synthaug._datasets.log import read_log
from synthaug._datasets.losses import check_loss
from synthaug._datasets.samplers import SeededSampler
from synthaug._datasets.schedules import Cosine, Linear
from synthaug._images.fields import Adapter, Fields

__all__ = [
    "Adapter",
    "AtLeast",
    "AtMost",
    "Balance",
    "Cosine",
    "Fields",
    "Highest",
    "ItemFormat",
    "Linear",
    "Lowest",
    "Schedule",
    "SeededSampler",
    "Share",
    "Stratified",
    "Weighted",
    "WeightedDraws",
    "check_loss",
    "read_log",
]
