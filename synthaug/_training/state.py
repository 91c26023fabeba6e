"""The state of a training run, and its checkpoint: written whole, or not at all."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthaug._plan import canonical_json
from synthaug._training import checkpoints, recovery
from synthaug.errors import CheckpointError, DivergedError

logger = logging.getLogger("synthaug")


@dataclass
class TrainingState:
    """All that a step of training changes, which is also what a checkpoint holds.

    Weights that do not require a gradient never change, and are not in the checkpoint.
    """

    output_dir: Path
    """The checkpoint is the folder `checkpoint` in it, the one before it `checkpoint-previous`."""
    module: nn.Module
    optimizer: Any
    ema: Any
    """diffusers' `EMAModel` of the trained weights."""
    step: int = 0
    """Optimizer steps taken in all."""
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss since the point before)."""
    recent: list[float] = field(default_factory=list)
    """Losses of the steps since the last point."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def add_losses(self, losses: list[float], learning_rate: float) -> None:
        """Adds the losses of the last steps; one that is not finite is a DivergedError."""
        for step, value in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(value):
                raise DivergedError(
                    f"The loss of step {step} is {value}. {self._last_checkpoint()} Lower "
                    f"`learning_rate` (now {learning_rate}) or use precision float32, and run "
                    "again."
                )
        self.recent.extend(losses)

    def add_point(self) -> float:
        """Ends the loss curve with the mean of the recent losses, and returns it."""
        mean = math.fsum(self.recent) / len(self.recent)
        self.recent.clear()
        self.loss_curve.append((self.step, mean))
        return mean

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block, the module has its average weights and is in evaluation mode."""
        trained = self.trained
        self.ema.store(trained)
        self.ema.copy_to(trained)
        self.module.eval()
        yield
        self.module.train()
        self.ema.restore(trained)

    def check_weights(self) -> None:
        """Refuses weights that are not finite with a DivergedError that names the first of them."""
        for name, weight in self.module.named_parameters():
            if not torch.isfinite(weight).all():
                raise DivergedError(
                    f"The weight {name} is no longer finite. {self._last_checkpoint()} Lower "
                    "`learning_rate` and run again."
                )

    def writing(self, path: Path) -> AbstractContextManager[None]:
        """Names the file, the free space and the last checkpoint if `path` cannot be written."""
        remedy = f"{self._last_checkpoint()} Free some space and run again."
        return checkpoints.writing(path, remedy)

    def save(self, settings: dict[str, Any]) -> None:
        """Writes the checkpoint beside the old ones, then swaps: a kill leaves one of them whole.

        Args:
            settings: All that decides the result of the run.

        Raises:
            CheckpointError: If it cannot be written.
        """
        with self.writing(self._folder):
            self._write(checkpoints.run_record(settings))

    def _write(self, record: dict[str, Any]) -> None:
        frozen, weights = self._frozen(), self.module.state_dict()
        moments = {  # its settings are in the config; what is left are tensors: nothing is pickled
            f"{i:05d}.{name}": value
            for i, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        tensors = {
            "model": {k: v for k, v in weights.items() if k not in frozen},
            "ema": {f"{i:05d}": p for i, p in enumerate(self.ema.shadow_params)},
            "optimizer": moments,
        }
        state = {
            **record,
            "step": self.step,
            "ema_step": self.ema.optimization_step,
            "loss_curve": self.loss_curve,
            "recent": self.recent,
        }
        with recovery.sealed(self._folder) as new:
            for name, values in tensors.items():
                checkpoints.save_tensors(new / f"{name}.safetensors", values)
            (new / "state.json").write_text(canonical_json(state))

    def resume(self, settings: dict[str, Any]) -> None:
        """Loads the last whole checkpoint, if there is one; a warning names one that is damaged.
        One of a run with other settings is a MismatchError, and damage to all a CheckpointError."""

        def read(folder: Path) -> bool:
            self._read(folder, settings)
            return True

        if recovery.newest_whole(self._folder, read, "Delete it to start over."):
            logger.info("resuming %s at step %d", self.output_dir, self.step)

    def _read(self, folder: Path, settings: dict[str, Any]) -> None:
        record = checkpoints.read_json(folder / "state.json")
        checkpoints.check_same_run(folder, record, settings)
        weights, average, moments = (
            checkpoints.load_tensors(folder / f"{name}.safetensors")
            for name in ("model", "ema", "optimizer")
        )
        step, ema_step = _count(record, "step"), _count(record, "ema_step")
        loss_curve = [(int(s), float(v)) for s, v in record["loss_curve"]]
        recent = [float(v) for v in record["recent"]]
        self.module.load_state_dict({**self._frozen(), **weights})
        self._load_moments(moments)
        for shadow, name in zip(self.ema.shadow_params, sorted(average), strict=True):
            shadow.data.copy_(average[name])
        self.step, self.ema.optimization_step = step, ema_step
        self.loss_curve, self.recent = loss_curve, recent

    def _load_moments(self, stored: dict[str, Tensor]) -> None:
        """Puts the optimizer's moments in place."""
        trained = self.trained
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            index, _, name = key.partition(".")
            weight = trained[int(index)]
            if value.shape == weight.shape:  # laid out alike, or the fused update rounds otherwise
                value = torch.empty_like(weight).copy_(value)
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _frozen(self) -> dict[str, Tensor]:
        """The weights that are not trained, by their names."""
        return {k: p.detach() for k, p in self.module.named_parameters() if not p.requires_grad}

    @property
    def _folder(self) -> Path:
        return self.output_dir / "checkpoint"

    def _last_checkpoint(self) -> str:
        """Returns a sentence about the checkpoint that there is, for an error message."""
        state = _saved_state(self.output_dir)
        if state is not None:
            step = state["step"]
            return f"The last checkpoint, of step {step}, is intact in {self.output_dir}."
        if recovery.kept_in(self._folder):
            return f"No checkpoint in {self.output_dir} can be read."
        return "No checkpoint had been written yet."


def _count(record: Mapping[str, Any], name: str) -> int:
    """A number of steps; anything else is a ValueError."""
    value = record[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"`{name}` is {value!r}, expected a number of steps")
    return value


def _saved_state(output_dir: Path) -> dict[str, Any] | None:
    """Returns the record of the last checkpoint of a run, if one can be read."""
    for place in recovery.kept_in(output_dir / "checkpoint"):
        try:
            state = checkpoints.read_json(place / "state.json")
            _count(state, "step")
            return state
        except (CheckpointError, LookupError, TypeError, ValueError):
            continue  # damaged: the one before it is what the next run goes on from
    return None


def saved_progress(output_dir: Path) -> str:
    """Says how far the run that is in a directory is saved; "" if it is not."""
    state = _saved_state(output_dir)
    return "" if state is None else f"Step {state['step']:,} is saved in {output_dir}."


def saved_precision(output_dir: Path) -> object:
    """The precision of the run that is in a directory, if there is one that can be read."""
    try:
        return (_saved_state(output_dir) or {})["settings"]["config"]["precision"]
    except (LookupError, TypeError):
        return None  # `TrainingState.resume` says what is wrong
