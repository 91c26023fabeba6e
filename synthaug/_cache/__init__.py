"""The cache: one plain HDF5 file that is laid out completely before its first image is made.

    data set      dtype, shape             meaning
    images        uint8  (N, C, H, W)      the pixels
    labels        int64  (N,)              the plan's column `label`
    state         uint8  (N,)              0 pending, 1 done, 2 withdrawn (pixels zeroed)
    checksum      uint32 (N,)              CRC-32C of the image's bytes
    plan/<column> int64, uint64, float64   one per further column of the plan
    tombstones    uint64 (M,)          content keys of what was forgotten, zeros, complements

    attribute         of the root group
    format            "synthaug-cache"
    format_version    2
    manifest          JSON: recipe, weights, source data, classes, versions, license, "synthetic"
    manifest_digest   32 hexadecimal digits of blake2b over the text of `manifest`
    plan_digest       `Plan.digest` of the rows

That is version 2. Where images are encoded (version 3), files of images and an index of them take
the place of `images`; see `encoded_rows`.

Every data set is contiguous and allocated at creation. After that no HDF5 metadata ever changes:
rows are written in place at their file offsets, image first, then checksum, then state. So a
process killed at any instant leaves a valid file in which every row is done and intact, or pending.
Readers map the file and gather a batch in one indexing call.
"""

from synthaug._cache.exporting import export
from synthaug._cache.facts import contact_sheet, info, info_text
from synthaug._cache.forgetting import Forgotten, forget, image_shapes
from synthaug._cache.format import FORMAT, FORMAT_VERSION, State
from synthaug._cache.store import SynthCache
from synthaug._cache.tools import check_sources, import_images, merge_rows

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Forgotten",
    "State",
    "SynthCache",
    "check_sources",
    "contact_sheet",
    "export",
    "forget",
    "image_shapes",
    "import_images",
    "info",
    "info_text",
    "merge_rows",
]
