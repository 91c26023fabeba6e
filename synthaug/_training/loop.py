"""One trainer, on accelerate: EMA, bfloat16, checkpoints, exact resume, progress.

What to optimize is a function `loss(module, indices)`. All randomness of step `i` comes from
torch's global generator, which is seeded anew from (seed, i) at each step, so a run that was killed
and resumed equals one that was not.

Several processes, started by `accelerate launch` or torchrun, split each batch. All of them draw
the noise of the whole batch and use that of their own examples (`own_rows`). So their number
changes nothing but the order in which gradients are summed, and may change when a run is resumed.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._noise import counter_rng
from synthaug._support.arguments import check_at_least
from synthaug._support.devices import choose_device
from synthaug._support.files import check_folder, write_text
from synthaug._support.layout import settle_layout
from synthaug._support.precision import Resolved, resolve_precision
from synthaug._support.progress import bar
from synthaug._support.reading import parse_json, read_text
from synthaug._support.stopping import StopRequest, kept_at_stop, stop_requests
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.checkpoints import reading
from synthaug._training.state import TrainingState, saved_precision, saved_progress
from synthaug._training.trackers import check_tracker, tracking
from synthaug._training.training_config import TrainingConfig
from synthaug._types import Indices, Integers
from synthaug.errors import CheckpointError

logger = logging.getLogger("synthaug")

Loss = Callable[[nn.Module, Indices], Tensor]
"""`loss(module, indices)`: the mean loss of the training examples `indices`, a scalar. With
precision bfloat16 it runs under autocast, so it should end in float32: `prediction.float()`."""


@dataclass
class TrainingResult:
    """Result of a training run."""

    step: int
    """Optimizer steps taken in all."""
    loss_curve: list[tuple[int, float]] = field(default_factory=list, repr=False)
    """(step, mean loss since the point before)."""
    examples_per_second: float = 0.0
    """Measured over this run, checkpoints included."""
    precision: Resolved = "float32"
    """What it was trained in."""


_part = (0, 1)  # this process among those that split the batch; others draw for all alike


def own_rows(count: int) -> tuple[int, slice]:
    """How many examples the whole batch has if this process has `count`, and which are its own.

        size, own = own_rows(len(x0))
        noise = torch.randn(size, *x0.shape[1:])[own]  # what one process alone would have drawn

    Dropout is not drawn so: there, examples at the same place in two processes are treated alike.
    """
    rank, processes = _part
    return count * processes, slice(count * rank, count * (rank + 1))


@contextmanager
def _among(rank: int, processes: int) -> Iterator[None]:
    global _part
    before, _part = _part, (rank, processes)
    try:
        yield
    finally:
        _part = before


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> Integers:
    return counter_rng(seed, 1, epoch).permutation(num_examples)


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> Indices:
    """The examples of one step: consecutive entries of one shuffle per epoch, int64 (batch_size,).

    A pure function of its arguments, so a resumed run needs no loader state. Epochs join inside a
    batch, so no example is dropped.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(positions, num_examples)
    return np.array(
        [_permutation(seed, int(e), num_examples)[i] for e, i in zip(epochs, within, strict=True)],
        np.int64,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A module to train, its loss, and the caller's hooks."""

    module: nn.Module
    """The network, in float32, on any device. Weights that do not require a gradient are left
    alone, and are not in the checkpoints."""
    loss: Loss
    num_examples: int
    """Size of the training set."""
    identity: Any
    """JSON that names data and model. A checkpoint of another identity is refused."""
    on_checkpoint: Callable[[nn.Module, int], None] = lambda module, step: None
    """Called with the averaged module and the step, after every checkpoint."""
    checkpoint_steps: Collection[int] = ()
    """Steps after which there is a checkpoint whatever the clock says; if a kill came before its
    `on_checkpoint` had ended, that is called anew."""
    rate_factor: Callable[[str], float] = lambda name: 1.0
    """By what a parameter's learning rate differs from that of the `TrainingConfig`, by its name in
    `module`. Name it in `identity` if it is not 1."""

    def __post_init__(self) -> None:
        check_at_least(1, num_examples=self.num_examples)


@lasting_tensors()
def train(
    task: TrainingTask, config: TrainingConfig, output_dir: str | Path, *, progress: bool = True
) -> TrainingResult:
    """Optimizes the task's module, and leaves its moving average in it.

    Args:
        task: The task to train.
        config: How to optimize.
        output_dir: Checkpoints go to `checkpoint/` in it, the one before the last to
            `checkpoint-previous/`; the log to `train.jsonl`.
        progress: Show a bar with rate and time left.

    Ctrl-C and SIGTERM end it after the step under way, with a checkpoint; a second one at once.

    Raises:
        KeyboardInterrupt: If Ctrl-C ended it; its text names the step that is saved.
        ValueError: If there is no such device, `output_dir` is a file, or the checkpoint is already
            beyond `config.steps`.
        DivergedError: If the loss or a weight is not finite. The last checkpoint stays.
        MismatchError: If the directory holds a checkpoint of another run.
        CheckpointError: If it holds damaged ones only, or one cannot be written. The last one
            stays.
    """
    check_folder(output_dir)
    with kept_at_stop(lambda: saved_progress(Path(output_dir))):
        return _train(task, config, Path(output_dir), progress=progress)


def _train(
    task: TrainingTask, config: TrainingConfig, output_dir: Path, *, progress: bool
) -> TrainingResult:
    run = _Run(task, config, output_dir)
    state, steps = run.state, run.config.steps
    first_step = state.step
    started = time.monotonic()
    with (
        own_randomness(run.device),
        _among(run.rank, run.processes),
        tracking(run.accelerator, run.config.log_with, vars(run.config), output_dir),
        bar(
            steps,
            "train",
            "step",
            initial=first_step,
            progress=run.main and progress,
            smoothing=0.05,
        ) as shown,
        stop_requests() as request,
    ):
        run.take_steps(shown, request)
    taken, seconds = state.step - first_step, time.monotonic() - started
    state.ema.copy_to(state.trained)
    state.module.eval()
    return TrainingResult(
        step=state.step,
        loss_curve=state.loss_curve,
        examples_per_second=taken * config.batch_size / seconds if taken else 0.0,
        precision=run.precision,
    )


class _Run:
    """One call of `train` on this process: prepares or resumes the run, then takes its steps."""

    def __init__(self, task: TrainingTask, config: TrainingConfig, output_dir: Path) -> None:
        from diffusers.training_utils import EMAModel

        self.task, self.output_dir = task, output_dir
        check_tracker(config.log_with)
        self.accelerator, self.device = _accelerator(config, output_dir)
        self.main = self.accelerator.is_main_process
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        if config.batch_size % self.processes:
            raise ValueError(
                f"`batch_size` {config.batch_size} is the batch of all processes together, and not "
                f"a multiple of their number, {self.processes}. Change one of the two."
            )
        settle_layout(task.module.to(self.device)).train()
        optimizer = _optimizer(task, config)
        trained = [p for p in task.module.parameters() if p.requires_grad]
        ema = EMAModel(trained, decay=config.ema_decay, foreach=True)
        self.state = TrainingState(output_dir, task.module, optimizer, ema)
        self.precision = self._choose_precision(config, task.module)
        self.config = replace(config, precision=self.precision)
        self.settings = self.config.binding(task.identity)
        self._resume()
        module: Any = torch.compile(task.module) if config.compile else task.module
        self._runner = self._distributed(module)
        self._autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        if self.main and self.state.step in task.checkpoint_steps:
            self._report()

    def _distributed(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over all processes.

        Accelerate's `prepare` would also obey what `accelerate launch` has in the environment:
        another precision, gradients over several steps, compilation. The config says these things.
        """
        if self.processes == 1:
            return module
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(module, device_ids=devices)

    def _choose_precision(self, config: TrainingConfig, network: nn.Module) -> Resolved:
        from accelerate.utils import broadcast_object_list

        with self.accelerator.main_process_first():  # it may have to repair what a kill left
            begun = saved_precision(self.output_dir)
        chosen = resolve_precision(config.precision, self.device, begun=begun, network=network)
        (chosen,) = broadcast_object_list([chosen])  # the ranks may have different processors
        return chosen

    def _resume(self) -> None:
        """Goes back to the last checkpoint, if there is one, and begins or shortens the log."""
        from accelerate.utils import broadcast_object_list

        state, steps = self.state, self.config.steps
        with self.accelerator.main_process_first():  # which sets a damaged checkpoint aside
            state.resume(self.settings)
        first = [state.step]
        broadcast_object_list(first)
        if first != [state.step]:
            raise CheckpointError(
                f"Process {self.rank} found the checkpoint of step {state.step} in "
                f"{self.output_dir}, and process 0 that of step {first[0]}. Run again. If "
                "the error comes back, put the directory where all processes see the same "
                "files."
            )
        if state.step > steps:
            raise ValueError(
                f"`steps` is {steps}, but the run in {self.output_dir} has already taken "
                f"{state.step}. Ask for at least as many, or use another output directory."
            )
        if self.main:
            with state.writing(self.output_dir):
                self.output_dir.mkdir(parents=True, exist_ok=True)
                _forget_later_lines(self.output_dir / "train.jsonl", state.step)
            logger.info(
                "training %s parameters on %s examples from step %d to %d, %s",
                f"{sum(p.numel() for p in state.trained):,}",
                f"{self.task.num_examples:,}",
                state.step,
                steps,
                self.config,
            )

    def take_steps(self, shown: Any, request: StopRequest) -> None:
        """Takes all steps that are left, with losses and checkpoints; `shown` is the bar. A
        KeyboardInterrupt, after a checkpoint, if another process of the run was asked to stop."""
        state, config = self.state, self.config
        trained = state.trained
        started, first_step = time.monotonic(), state.step
        saved_at = started
        log_every = max(1, config.steps // 200)
        losses: list[Tensor] = []  # of the last steps, still on the device
        for step in range(state.step, config.steps):
            losses.append(self._step(step, trained))
            state.step = step + 1
            shown.update()
            due, stopped = self._is_checkpoint_due(saved_at, request)
            point = state.step % log_every == 0 or state.step == config.steps
            if due or point:
                means = self.accelerator.reduce(torch.stack(losses), "mean")
                losses.clear()
                state.add_losses(means.tolist(), config.learning_rate)
            if point:
                loss = state.add_point()
                shown.set_postfix(loss=f"{loss:.4f}")
                seconds, taken = time.monotonic() - started, state.step - first_step
                self._log(loss, config.learning_rate_at(step), seconds, taken)
            if due:
                self._checkpoint()
                saved_at = time.monotonic()
            if stopped:
                if not request.made:
                    raise KeyboardInterrupt
                return

    def _step(self, step: int, trained: list[nn.Parameter]) -> Tensor:
        """One update of the weights and of their average; returns this process's loss."""
        config, optimizer = self.config, self.state.optimizer
        rate = config.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        indices = batch_indices(config.seed, step, config.batch_size, self.task.num_examples)
        local = config.batch_size // self.processes
        torch.manual_seed(int(counter_rng(config.seed, 2, step).integers(2**63)))
        with self._autocast:
            loss = self.task.loss(
                self._runner, indices[self.rank * local : (self.rank + 1) * local]
            )
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.state.ema.step(trained)
        return loss.detach().float()

    def _is_checkpoint_due(self, saved_at: float, request: StopRequest) -> tuple[bool, bool]:
        """Whether to write a checkpoint now, and whether to stop after it."""
        due = time.monotonic() - saved_at >= self.config.checkpoint_seconds
        stopped = request.made
        if self.processes > 1:
            # Rank 0's clock decides, or the ranks would disagree about when to wait for each other;
            # and a signal may reach some of them only, or not all in the same step.
            clock = torch.tensor([[due, stopped]], device=self.device, dtype=torch.bool)
            clocks = self.accelerator.gather(clock)
            due, stopped = bool(clocks[0, 0]), bool(clocks[:, 1].any())
        step = self.state.step
        last = step == self.config.steps
        return due or stopped or last or step in self.task.checkpoint_steps, stopped

    def _checkpoint(self) -> None:
        self.state.check_weights()  # on every rank, or the others would wait for one that failed
        if self.main:
            self.state.save(self.settings)
            self._report()
        self.accelerator.wait_for_everyone()

    def _report(self) -> None:
        """Hands the averaged module to the task."""
        with self.state.averaged():
            self.task.on_checkpoint(self.state.module, self.state.step)

    def _log(self, loss: float, learning_rate: float, seconds: float, taken: int) -> None:
        """Adds a line to the log, and tells the tracker; `taken` steps took so many seconds."""
        values = {"loss": loss, "learning_rate": learning_rate}
        if self.config.log_with is not None:
            rate = taken * self.config.batch_size / max(seconds, 1e-9)
            self.accelerator.log({**values, "images_per_second": rate}, step=self.state.step)
        if self.main:
            line = {"step": self.state.step, **values}
            path = self.output_dir / "train.jsonl"
            with self.state.writing(path), open(path, "a") as log:
                log.write(json.dumps({**line, "seconds": seconds}) + "\n")


def _accelerator(config: TrainingConfig, output_dir: Path) -> tuple[Any, torch.device]:
    """How the processes talk to each other, and the device of this one."""
    from accelerate import Accelerator

    # Accelerate remembers device and precision for the life of the process, and would refuse a
    # second run with others. So it only learns of a CPU where it chooses how the ranks talk.
    parallel, name = int(os.environ.get("WORLD_SIZE", "1")) > 1, config.device
    device: torch.device = choose_device(name)
    accelerator = Accelerator(
        cpu=parallel and device.type == "cpu",
        device_placement=False,
        log_with=config.log_with,
        project_dir=output_dir,
    )
    if name is None:
        return accelerator, accelerator.device
    if parallel and device.type != accelerator.device.type:
        raise ValueError(
            f"`device` is {name!r}, but this process was launched for {accelerator.device}. Leave "
            "it out."
        )
    return accelerator, accelerator.device if parallel else device


def _optimizer(task: TrainingTask, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, with one group for each factor of the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in task.module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(task.rate_factor(name), []).append(parameter)
    # Fused and foreach: in small networks the update would otherwise cost a tenth of the step.
    return torch.optim.AdamW(
        [{"params": members, "factor": factor} for factor, members in groups.items()],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """A context that leaves torch's global generators as it found them."""
    if device.type == "mps":  # of which torch's context does not know
        state = torch.mps.get_rng_state()
        with torch.random.fork_rng([]):
            yield
        torch.mps.set_rng_state(state)
        return
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type=device.type if others else "cuda"):
        yield


def _forget_later_lines(log: Path, step: int) -> None:
    """Takes the lines of steps that a kill undid, and that will be taken again, out of the log."""
    if log.exists():
        with reading(log, "Delete it: only the log is lost."):
            lines = read_text(log).splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and parse_json(x)["step"] <= step]
        write_text(log, "".join(kept))
