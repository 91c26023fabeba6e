"""Experiment trackers (TensorBoard, Weights & Biases, MLflow), by way of accelerate's."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from synthaug._support.arguments import check_choice
from synthaug._training.training_config import TRACKERS, TrainingConfig
from synthaug._types import StrPath
from synthaug.errors import DataError

_PROJECT, _TAG = "synthaug", "synthaug.run"
Log: TypeAlias = Callable[[Mapping[str, float], int], None]
"""Sends values by name, and the step that they belong to."""


def check_tracker(log_with: Any) -> None:
    """Refuses an unknown tracker with a ValueError, and one whose library is missing with an
    ImportError, before any work."""
    from accelerate.tracking import GeneralTracker, get_available_trackers

    if log_with is None or isinstance(log_with, GeneralTracker):
        return
    check_choice(TRACKERS, "Or give a `GeneralTracker` of accelerate.", log_with=log_with)
    if log_with not in map(str, get_available_trackers()):
        raise ImportError(
            f"`log_with` is {log_with!r}, which is not installed. Install it with "
            f"`pip install 'synthaug[{log_with}]'`."
        )


@contextmanager
def tracking(
    accelerator: Any, log_with: Any, facts: Mapping[str, Any], output_dir: Path
) -> Iterator[Any]:
    """Begins what an accelerator was told to log with, and ends it, however the run ends.

    Args:
        accelerator: Has the trackers.
        log_with: The accelerator's `log_with`; `None` does nothing.
        facts: Settings of the run, which trackers show.
        output_dir: The folder that is one run.

    Raises:
        DataError: If the tracker cannot begin: no network, no login, a store that it does not take.
    """
    if log_with is not None:
        settings: dict[str, Any] | None = {name: _plain(value) for name, value in facts.items()}
        # One directory is one run, so what is resumed goes on where its curve stopped.
        run = hashlib.blake2b(str(output_dir.resolve()).encode(), digest_size=8).hexdigest()
        resumed: dict[str, dict[str, Any]] = {
            "wandb": {"id": run, "resume": "allow", "dir": str(output_dir)}
        }
        try:
            if log_with == "mlflow":
                known = _mlflow_run(run)
                resumed["mlflow"] = {"run_id": known, "tags": {_TAG: run}}
                if known is not None:
                    settings = None  # it refuses what changed, as the steps
            accelerator.init_trackers(_PROJECT, settings, resumed)
        except Exception as error:  # each library has errors of its own
            name = log_with if isinstance(log_with, str) else type(log_with).__name__
            raise DataError(
                f"`log_with` is {name!r}, and this tracker cannot begin: {error} Set it up as its "
                "documentation says, or leave it out."
            ) from error
    try:
        yield accelerator
    finally:  # not `end_training`, which would part the processes as well
        for tracker in accelerator.trackers if log_with is not None else ():
            tracker.finish()


@contextmanager
def logging_to(log_with: Any, facts: Mapping[str, Any], folder: StrPath) -> Iterator[Log]:
    """A function that sends values to a tracker, for jobs of one process.

    Args:
        log_with: A name, a `GeneralTracker`, or `None` to send nothing.
        facts: Settings of the job, which trackers show.
        folder: The folder that is one run; TensorBoard writes into it.

    Raises:
        ValueError: For another name, or in one of several processes.
        ImportError: If the library of the tracker is not installed.
    """
    check_tracker(log_with)
    if log_with is None:
        yield lambda values, step: None
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("`log_with` is for a job of one process. Leave it out.")
    from accelerate import Accelerator

    Path(folder).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        log_with=log_with, project_dir=os.fspath(folder), device_placement=False
    )

    def log(values: Mapping[str, float], step: int) -> None:
        # MLflow takes no other characters in a name.
        named = {re.sub(r"[^\w. /-]", "", name): value for name, value in values.items()}
        accelerator.log(named, step=step)

    with tracking(accelerator, log_with, facts, Path(folder)):
        yield log


def log_picture(config: TrainingConfig, output_dir: str, path: Path, step: int) -> None:
    """Hands a picture to the tracker of a run, if it takes images or files."""
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from PIL import Image

    if config.log_with is None or not path.exists():
        return
    named = isinstance(config.log_with, str)
    kind = LOGGER_TYPE_TO_CLASS[config.log_with] if named else type(config.log_with)
    if not {"log_images", "log_artifact"} & {*vars(kind)}:  # asked before a run is opened again
        return
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))[None]
    accelerator = Accelerator(
        log_with=config.log_with, project_dir=output_dir, device_placement=False
    )
    with tracking(accelerator, config.log_with, vars(config), Path(output_dir)):
        for tracker in accelerator.trackers:
            # TensorBoard's alone would take the colors for the first axis.
            how = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if "log_images" in vars(kind):
                tracker.log_images({"samples": pixels}, step=step, **how)
            else:
                tracker.log_artifact(str(path))


def _mlflow_run(run: str) -> str | None:
    """The run in MLflow's store that a directory was logged in before; it gives runs their ids."""
    import mlflow

    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`{_TAG}` = '{run}'", output_format="list"
    )
    return str(runs[0].info.run_id) if runs else None


def _plain(value: Any) -> Any:
    """A setting as trackers store it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
