"""Synthetic images that are drawn while a classifier trains, with no cache to wait for.

Three things are kept apart. *Which* images an epoch has is a table, a pure function of (seed,
epoch), as everywhere in synthaug. *What* they look like is a pure function of weights, settings and
row. *When* they are drawn is left to a thread, and changes neither.
"""

from synthaug._on_the_fly._dataset import OnTheFlyDataset

__all__ = ["OnTheFlyDataset"]
