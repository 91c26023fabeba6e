"""One trainer, on accelerate: EMA, bfloat16, checkpoints, exact resume, progress.

What to optimise is a function `loss(module, indices)`. All randomness of step `i` comes from
torch's global generator, which is seeded anew from (seed, i) at each step, so a run that was killed
and resumed equals one that was not.

Several processes, started by `accelerate launch` or torchrun, split each batch. All of them draw
the noise of the whole batch and use that of their own examples (`own_rows`). So their number
changes nothing but the order in which gradients are summed, and may change when a run is resumed.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthaug._noise import counter_rng
from synthaug._plan import canonical_json
from synthaug._support.devices import choose_device
from synthaug._support.files import check_folder, write_text
from synthaug._support.layout import settle_layout
from synthaug._support.precision import Precision, Resolved, check_precision, resolve_precision
from synthaug._support.progress import bar
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.checkpoints import check_same_run, replaced, restore, run_record, writing
from synthaug._types import Indices
from synthaug.errors import CheckpointError, DivergedError

logger = logging.getLogger("synthaug")

Loss = Callable[[nn.Module, Indices], Tensor]
"""`loss(module, indices)`: the mean loss of the training examples `indices`, a scalar. With
precision bfloat16 it runs under autocast, so it should end in float32: `prediction.float()`."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to optimise."""

    steps: int = 10_000
    """Optimiser steps. A run may be resumed with more."""
    batch_size: int = 64
    """Examples per step, over all processes."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises linearly from 0."""
    decay_steps: int = 0
    """Steps at the end over which it falls linearly to 0; 0 keeps it constant."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    ema_decay: float = 0.9995
    """Decay of the moving average of the weights. Step n, counted from 0, uses
    min(decay, (1 + n) / (10 + n)); the first one copies the weights."""
    precision: Precision = "auto"
    """bfloat16 runs the loss under autocast; weights and optimiser stay in float32. "auto" is that
    of the run that is resumed; for a new one, bfloat16 on a device that has it in hardware."""
    compile: bool = False
    """Compile the network: slow first step, then about twice as fast on a CPU."""
    seed: int = 0
    """Seeds the order of the data and all noise."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints."""
    device: str | None = None
    """"cpu", "cuda", "cuda:1" ...; `None` takes a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")
        check_precision(self.precision)

    def binding(self, extra: Any) -> dict[str, Any]:
        """Identifies a run: all that changes its result, but not how long or where it runs."""
        free = ("steps", "decay_steps", "checkpoint_seconds", "device", "compile")
        kept = {k: v for k, v in asdict(self).items() if k not in free}
        return {"config": kept, "extra": extra}

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps:
            rate *= min(1.0, max(0.0, (self.steps - step) / self.decay_steps))
        return rate


@dataclass
class TrainingResult:
    """What a run left behind."""

    step: int
    """Optimiser steps taken in all."""
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss since the point before)."""
    recent: list[float] = field(default_factory=list)
    """Losses of the steps since the last point."""
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
def _permutation(seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
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


@lasting_tensors()
def train(
    module: nn.Module,
    loss: Loss,
    num_examples: int,
    *,
    config: TrainingConfig,
    output_dir: str | Path,
    identity: Any,
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
    checkpoint_steps: Collection[int] = (),
    rate_factor: Callable[[str], float] = lambda name: 1.0,
    progress: bool = True,
) -> TrainingResult:
    """Optimises `module`, and leaves its moving average in it.

    Weights that do not require a gradient are left alone, and are not in the checkpoints.

    Args:
        module: The network to train, in float32, on any device.
        loss: `loss(module, indices)`.
        num_examples: Size of the training set.
        config: How to optimise.
        output_dir: Checkpoints go to `checkpoint/` in it; the log to `train.jsonl`.
        identity: JSON that names data and model. A checkpoint of another identity is refused.
        on_checkpoint: Called with the averaged module and the step, after every checkpoint.
        checkpoint_steps: Steps after which there is a checkpoint whatever the clock says; if a kill
            came before its `on_checkpoint` had ended, that is called anew.
        rate_factor: By what a parameter's own learning rate differs from that of `config`, by its
            name in `module`. Name it in `identity` if it is not 1.
        progress: Show a bar with rate and time left.

    Raises:
        ValueError: If there is nothing to train on, no such device, `output_dir` is a file, or the
            checkpoint is already beyond `config.steps`.
        DivergedError: If the loss or a weight is not finite. The last checkpoint stays.
        MismatchError: If the directory holds a checkpoint of another run.
        CheckpointError: If it holds a damaged one, or one cannot be written. The last one stays.
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list
    from diffusers.training_utils import EMAModel

    if num_examples < 1:
        raise ValueError(f"`num_examples` must be at least 1, got {num_examples}.")
    output_dir = Path(output_dir)
    check_folder(output_dir)
    # Accelerate remembers device and precision for the life of the process, and would refuse a
    # second run with others. So it only learns of a CPU where it chooses how the ranks talk.
    parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = parallel and choose_device(config.device).type == "cpu"
    accelerator = Accelerator(cpu=cpu, device_placement=False)
    device = _device(config.device, accelerator.device, parallel=parallel)
    main = accelerator.is_main_process
    rank, processes = accelerator.process_index, accelerator.num_processes
    if config.batch_size % processes:
        raise ValueError(
            f"`batch_size` {config.batch_size} is the batch of all processes together, and not a "
            f"multiple of their number, {processes}. Change one of the two."
        )
    local = config.batch_size // processes

    settle_layout(module.to(device)).train()
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    trained = [p for _, p in named]
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(rate_factor(name), []).append(parameter)
    # Fused and foreach: in small networks the update would otherwise cost a tenth of the step.
    optimizer = torch.optim.AdamW(
        [{"params": members, "factor": factor} for factor, members in groups.items()],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    ema = EMAModel(trained, decay=config.ema_decay, foreach=True)
    with accelerator.main_process_first():  # it may have a kill in the middle of a swap to repair
        begun = _begun_precision(output_dir)
    chosen = resolve_precision(config.precision, device, begun=begun)
    (chosen,) = broadcast_object_list([chosen])  # the ranks may have different processors
    config = replace(config, precision=chosen)
    result = TrainingResult(step=0, precision=chosen)
    settings = config.binding(identity)
    with accelerator.main_process_first():
        _resume(output_dir, module, optimizer, ema, result, settings)
    if result.step > config.steps:
        raise ValueError(
            f"`steps` is {config.steps}, but the run in {output_dir} has already taken "
            f"{result.step}. Ask for at least as many, or use another output directory."
        )
    if main:
        with writing(output_dir, "Nothing has been trained yet."):
            output_dir.mkdir(parents=True, exist_ok=True)
            _forget_later_lines(output_dir / "train.jsonl", result.step)
        logger.info(
            "training %s parameters on %s examples from step %d to %d, %s",
            f"{sum(p.numel() for p in trained):,}",
            f"{num_examples:,}",
            result.step,
            config.steps,
            config,
        )
    runner = accelerator.prepare(torch.compile(module) if config.compile else module)
    optimizer = accelerator.prepare(optimizer)

    def hand_over() -> None:
        if on_checkpoint is not None:
            ema.store(trained)
            ema.copy_to(trained)
            module.eval()
            on_checkpoint(module, result.step)
            module.train()
            ema.restore(trained)

    def checkpoint() -> None:
        if main:
            remedy = f"{_last_checkpoint(output_dir)} Free some space and run again."
            with writing(output_dir / "checkpoint", remedy):
                _save(output_dir, module, optimizer, ema, result, run_record(settings))
            hand_over()
        accelerator.wait_for_everyone()

    if main and result.step in checkpoint_steps:
        hand_over()
    first_step, started = result.step, time.monotonic()
    saved_at = started
    log_every = max(1, config.steps // 200)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    losses: list[Tensor] = []  # of the last steps, still on the device
    with (
        own_randomness(device),
        _among(rank, processes),
        bar(
            config.steps,
            "train",
            "step",
            initial=result.step,
            progress=main and progress,
            smoothing=0.05,
        ) as shown,
    ):
        for step in range(result.step, config.steps):
            rate = config.learning_rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            indices = batch_indices(config.seed, step, config.batch_size, num_examples)
            torch.manual_seed(int(counter_rng(config.seed, 2, step).integers(2**63)))
            with autocast:
                value = loss(runner, indices[rank * local : (rank + 1) * local])
            accelerator.backward(value)
            accelerator.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(trained)
            losses.append(value.detach().float())
            result.step = step + 1
            shown.update()
            # Rank 0's clock decides, or the ranks would disagree about when to wait for each other.
            due = time.monotonic() - saved_at >= config.checkpoint_seconds
            if processes > 1:
                due = bool(
                    accelerator.gather(torch.tensor([due], device=device, dtype=torch.bool))[0]
                )
            due = due or result.step == config.steps or result.step in checkpoint_steps
            point = result.step % log_every == 0 or result.step == config.steps
            if due or point:
                result.recent.extend(accelerator.reduce(torch.stack(losses), "mean").tolist())
                losses.clear()
                _check_losses(result, output_dir, config)
            if point:
                mean = math.fsum(result.recent) / len(result.recent)
                result.recent.clear()
                result.loss_curve.append((result.step, mean))
                shown.set_postfix(loss=f"{mean:.4f}")
                if main:
                    line = {"step": result.step, "loss": mean, "learning_rate": rate}
                    with open(output_dir / "train.jsonl", "a") as log:
                        seconds = time.monotonic() - started
                        log.write(json.dumps({**line, "seconds": seconds}) + "\n")
            if due:
                _check_weights(module, output_dir)
                checkpoint()
                saved_at = time.monotonic()
    taken = result.step - first_step
    if taken:
        result.examples_per_second = taken * config.batch_size / (time.monotonic() - started)
    ema.copy_to(trained)
    module.eval()
    return result


def own_randomness(device: torch.device) -> Any:
    """A context that leaves torch's global generators as it found them."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _forget_later_lines(log: Path, step: int) -> None:
    """Takes the lines of steps that a kill undid, and that will be taken again, out of the log."""
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= step]
        write_text(log, "".join(kept))


def _device(name: str | None, default: torch.device, *, parallel: bool) -> torch.device:
    """The device to train on; `default` is what accelerate found."""
    if name is None:
        return default
    device: torch.device = choose_device(name)
    if not parallel:
        return device
    if device.type != default.type:
        raise ValueError(
            f"`device` is {name!r}, but this process was launched for {default}. Leave it out."
        )
    return default


def _check_losses(result: TrainingResult, output_dir: Path, config: TrainingConfig) -> None:
    for step, value in enumerate(result.recent, result.step - len(result.recent) + 1):
        if not math.isfinite(value):
            raise DivergedError(
                f"The loss of step {step} is {value}. {_last_checkpoint(output_dir)} "
                f"Lower `learning_rate` (now {config.learning_rate}) or use precision float32, and "
                "run again."
            )


def _last_checkpoint(output_dir: Path) -> str:
    path = output_dir / "checkpoint" / "state.json"
    if not path.exists():
        return "No checkpoint had been written yet."
    step = json.loads(path.read_text())["step"]
    return f"The last checkpoint, of step {step}, is intact in {output_dir}."


def _check_weights(module: nn.Module, output_dir: Path) -> None:
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise DivergedError(
                f"The weight {name} is no longer finite. {_last_checkpoint(output_dir)} Lower "
                "`learning_rate` and run again."
            )


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """The weights that are not trained, by their names."""
    return {k: p.detach() for k, p in module.named_parameters() if not p.requires_grad}


def _save(
    output_dir: Path,
    module: nn.Module,
    optimizer: Any,
    ema: Any,
    result: TrainingResult,
    state: dict[str, Any],
) -> None:
    """Writes the checkpoint beside the old one, then swaps: a kill leaves one of the two whole."""
    from safetensors.torch import save_file

    frozen = _frozen(module)
    weights = {
        k: v.detach().cpu().contiguous() for k, v in module.state_dict().items() if k not in frozen
    }
    average = {f"{i:05d}": p.detach().cpu().contiguous() for i, p in enumerate(ema.shadow_params)}
    moments = {  # its settings are in the config; what is left are tensors, so nothing is pickled
        f"{i:05d}.{name}": value.detach().cpu().contiguous()
        for i, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    state = {
        **state,
        "step": result.step,
        "ema_step": ema.optimization_step,
        "loss_curve": result.loss_curve,
        "recent": result.recent,
    }
    with replaced(output_dir / "checkpoint") as new:
        save_file(weights, str(new / "model.safetensors"))
        save_file(average, str(new / "ema.safetensors"))
        save_file(moments, str(new / "optimizer.safetensors"))
        (new / "state.json").write_text(canonical_json(state))


def _begun_precision(output_dir: Path) -> object:
    """The precision of the run that is in a directory, if there is one that can be read."""
    path = output_dir / "checkpoint"
    restore(path)
    try:
        return json.loads((path / "state.json").read_text())["settings"]["config"]["precision"]
    except (OSError, LookupError, TypeError, ValueError):
        return None  # `_resume` says what is wrong


def _resume(
    output_dir: Path,
    module: nn.Module,
    optimizer: Any,
    ema: Any,
    result: TrainingResult,
    settings: dict[str, Any],
) -> None:
    """Loads the last whole checkpoint, if there is one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    final = output_dir / "checkpoint"
    restore(final)
    if not final.exists():
        return
    try:
        state = json.loads((final / "state.json").read_text())
        check_same_run(final, state, settings)
        module.load_state_dict({**_frozen(module), **load_file(str(final / "model.safetensors"))})
        average = load_file(str(final / "ema.safetensors"))
        moments: dict[int, dict[str, Tensor]] = {}
        weights = [p for p in module.parameters() if p.requires_grad]
        for key, value in load_file(str(final / "optimizer.safetensors")).items():
            index, _, name = key.partition(".")
            weight = weights[int(index)]
            if value.shape == weight.shape:  # laid out alike, or the fused update rounds otherwise
                value = torch.empty_like(weight).copy_(value)
            moments.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for shadow, name in zip(ema.shadow_params, sorted(average), strict=True):
            shadow.data.copy_(average[name])
        ema.optimization_step = state["ema_step"]
        result.step = state["step"]
        result.loss_curve = [(int(s), float(v)) for s, v in state["loss_curve"]]
    except (OSError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{final} cannot be read ({error}). Delete it to start over."
        ) from error
    result.recent = [float(v) for v in state.get("recent", [])]
    logger.info("resuming %s at step %d", output_dir, result.step)
