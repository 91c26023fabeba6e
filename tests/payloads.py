"""Pickles that leave a mark when they are read."""

from pathlib import Path
from typing import Any


class Payload:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")
