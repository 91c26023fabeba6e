"""In tests the shapes and dtypes that the mathematics declares are checked at every call."""

import os
from multiprocessing import set_forkserver_preload

from jaxtyping import install_import_hook

CHECKED = ("_noise", "_pixels", "features")

_hook = install_import_hook([f"synthaug.{name}" for name in CHECKED], "beartype.beartype")

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # importing it would ask the network otherwise
set_forkserver_preload(["torchvision.transforms.v2", "synthaug._datasets"])  # fast workers
