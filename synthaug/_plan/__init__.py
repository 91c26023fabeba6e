"""The plan: a table with one row per synthetic image, complete before any image is made."""

from synthaug._plan.layout import InTurnByClass, row_seed
from synthaug._plan.plan import Plan, check_values
from synthaug._plan.quota import (
    balanced_quota,
    filling_quota,
    given_quota,
    largest_remainders,
    matching_quota,
    rounded_multiple,
)
from synthaug._plan.rows import REQUIRED, AbstractRows, Selection
from synthaug._plan.text import bytes_text, canonical_json, settings_digest, time_text

__all__ = [
    "REQUIRED",
    "AbstractRows",
    "InTurnByClass",
    "Plan",
    "Selection",
    "balanced_quota",
    "bytes_text",
    "canonical_json",
    "check_values",
    "filling_quota",
    "given_quota",
    "largest_remainders",
    "matching_quota",
    "rounded_multiple",
    "row_seed",
    "settings_digest",
    "time_text",
]
