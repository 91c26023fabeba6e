"""An experiment tracker for tests."""

from typing import Any

from accelerate.tracking import GeneralTracker


class Noted(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "noted"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__(_blank=True)
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.pictures: list[tuple[int, tuple[int, ...]]] = []
        self.finished = 0

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.lines.append((step, values))

    def log_images(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.pictures.append((step, values["samples"].shape))

    def finish(self) -> None:
        self.finished += 1
