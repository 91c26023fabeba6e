"""Trainings that several processes share, and what each of them does."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from synthaug import TrainingConfig
from synthaug.synthesizers import ClassConditional
from tests.tiny.inversions import Real, fitted


def trained(out: Path, steps: int, batch_size: int = 4) -> Any:
    device = None if "RANK" in os.environ else "cpu"  # ranks find out by themselves
    settings = TrainingConfig(
        steps=steps, batch_size=batch_size, warmup_steps=2, device=device, checkpoint_seconds=1e9
    )
    small: dict[str, Any] = {"channels": 8, "label_dropout": 0.3, "horizontal_flip": True}
    return ClassConditional.fit(Real(10), out, config=settings, progress=False, **small)[1]


def rank_main(folder: str) -> None:
    """What each of two processes does."""
    out = Path(folder)
    curve = trained(out / "shared", 6).loss_curve
    embeddings = fitted(out / "inverted", Real(), block_size=1).digest
    with pytest.raises(ValueError, match="multiple") as refused:
        trained(out / "odd", 2, batch_size=3)
    seen = {"curve": curve, "embeddings": embeddings, "refused": str(refused.value)}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))
