"""Two flat classes to fine-tune on, and the job that does it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug.synthesizers.class_conditional._config import FineTuningConfig
from synthaug.synthesizers.class_conditional._fine_tuning import FineTuneJob


class Real:
    """Eight flat images of 8x8 pixels, of two classes: a dark one and a bright one."""

    def __init__(self, channels: int = 1, classes: tuple[str, ...] = ("bee", "emu")) -> None:
        self.classes, self.image_shape = classes, (channels, 8, 8)
        self.targets = [i % len(classes) for i in range(8)]
        self.fingerprint = "real"
        levels = torch.tensor(self.targets) * 160 + 40 + torch.arange(8)
        self.pixels = levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *self.image_shape)

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.tensor(np.asarray(indices))].clone()


def job_of(checkpoint: Path, real: Any = None, **changes: Any) -> FineTuneJob:
    adaptation = FineTuningConfig(class_learning_rate=7.0, **changes)
    return FineTuneJob(checkpoint, real or Real(), adaptation, learning_rate=1.0, device="cpu")
