"""Tools for cache files, what they cost to fill, and engines that fill them on many machines.

    from synthaug import caches

    caches.merge(["part-0.h5", "part-1.h5"], "cifar.h5")
    caches.export(cache, "cifar-synthetic", format="folder", rows=np.flatnonzero(report.passed))

Every image is compared with its checksum when it is read.
"""

from synthaug._audit.merging import merge
from synthaug._cache import (
    Forgotten,
    check_sources,
    contact_sheet,
    export,
    forget,
    import_images,
    info,
)
from synthaug._cache.citations import cite
from synthaug._cache.credentials import ContentCredentials
from synthaug._cache.licenses import LICENSES, license_of
from synthaug._cache.masks import SourceMasks
from synthaug._cache.remote import upload
from synthaug._cluster import RayEngine
from synthaug._generate.cost import estimate_cost, evaluations_per_second

__all__ = [
    "LICENSES",
    "ContentCredentials",
    "Forgotten",
    "RayEngine",
    "SourceMasks",
    "check_sources",
    "cite",
    "contact_sheet",
    "estimate_cost",
    "evaluations_per_second",
    "export",
    "forget",
    "import_images",
    "info",
    "license_of",
    "merge",
    "upload",
]
