"""In tests the shapes and dtypes that the mathematics declares are checked at every call."""

from jaxtyping import install_import_hook

CHECKED = ("_noise", "_pixels", "features")

_hook = install_import_hook([f"synthaug.{name}" for name in CHECKED], "beartype.beartype")
