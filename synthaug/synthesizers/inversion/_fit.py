"""Stage 1 of diffusion inversion: learn one embedding per image against a frozen network.

    L(c_i) = E_{z ~ q(z | x_i), noise, t} || target - network(x_t, t, c_i) ||^2      (mean over z)

The loss is separable over images, so everything is arranged to make an embedding a pure function of
its image and the settings: update u of every image uses the same noise, its timestep is a point of
a low-discrepancy sequence whose start is hashed from the image, and its Adam moments are its own.
Batches, blocks, order and the other images do not matter, and the noise costs next to nothing since
it is drawn once per pass.

Updates come in pairs of one timestep and opposite noise. What noise adds to the gradient is nearly
odd in it where there is little, and there gradients are largest: momentum cancels it.

Blocks of images are learned one by one, each into a file. Several processes, started by
`accelerate launch` or torchrun, share them: each takes a block that nobody else is learning, so
their number may change from run to run, and changes no embedding.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng, randn, stream, streams
from synthaug._pixels import digest
from synthaug._plan import bytes_text, canonical_json
from synthaug._support.devices import sent
from synthaug._support.files import check_folder
from synthaug._support.locks import claimed
from synthaug._support.memory import ShrinkingBatches
from synthaug._support.precision import Resolved
from synthaug._support.stopping import StopRequest, kept_at_stop, stop_requests
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import checkpoints, recovery
from synthaug._training.fit_job import as_logit_normal, check_prediction_type, denoising_target
from synthaug._types import Images
from synthaug.denoisers import Denoiser
from synthaug.denoisers._networks import Prompted
from synthaug.errors import CheckpointError, DivergedError
from synthaug.samplers import noised, shifted, steps_flow
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers.inversion._config import InversionConfig, Start
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable
from synthaug.synthesizers.inversion._tokens import TokenEncoder

logger = logging.getLogger("synthaug")

_GOLDEN = (math.sqrt(5) - 1) / 2
_BETAS, _EPSILON = (0.8, 0.999), 1e-8  # a short memory will do for pairs of opposite noise
_WAIT = 1.0  # seconds between two looks at blocks that other processes are learning


@dataclass(frozen=True)
class InversionCost:
    """Estimated cost of learning embeddings."""

    images: int
    token_shape: tuple[int, int]
    updates: int
    """Per embedding."""
    snapshots: int
    seconds_per_update: float | None = None
    """Of one image; `None` if it was not measured."""

    @property
    def bytes(self) -> int:
        """Size of the table on disk."""
        return self.images * self.snapshots * math.prod(self.token_shape) * 4

    @property
    def seconds(self) -> float | None:
        """Time on this device."""
        if self.seconds_per_update is None:
            return None
        return self.images * self.updates * self.seconds_per_update

    def __str__(self) -> str:
        k, d = self.token_shape
        text = (
            f"{self.images:,} images x {self.updates:,} updates = "
            f"{self.images * self.updates:,} passes forward and back; {k} x {d} values per image "
            f"and snapshot, {self.snapshots} snapshot{'s' * (self.snapshots > 1)}: "
            f"{bytes_text(self.bytes)}"
        )
        return text if self.seconds is None else f"{text}; about {self.seconds / 60:,.1f} minutes"


@dataclass
class InversionResult:
    """Result of an inversion."""

    loss_curve: list[tuple[int, float]] = field(default_factory=list, repr=False)
    """(update, mean loss of that update over all images)."""
    updates_per_second: float = 0.0
    """Updates of one image per second, measured over this run."""


@dataclass
class Block:
    """The images under work: their latents, embeddings and moments, on the network's device."""

    keys: NDArray[np.uint64]
    mean: Images
    """Posterior mean of the latents, float32 (n, ...)."""
    std: Images | None
    """Posterior standard deviation; `None` in pixel space."""
    embeddings: Tensor
    """float32 (n, k, d)."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    prompts: Prompted | None = None
    """Prompts of the images' classes, if the network takes more of a prompt than tokens: what the
    embeddings do not say stays theirs."""
    update: int = 0
    """Updates that every embedding has received."""
    batches: ShrinkingBatches | None = None
    """What memory has allowed so far."""

    def conditions(self, rows: slice, embeddings: Tensor) -> Any:
        """The denoiser's conditions for some images with these embeddings."""
        return embeddings if self.prompts is None else self.prompts[rows].attending(embeddings)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of a checkpoint."""
        names = ("embeddings", "exp_avg", "exp_avg_sq")
        return {name: vars(self)[name] for name in names}


def timesteps_of(keys: NDArray[np.uint64], update: int, num_timesteps: int) -> NDArray[np.int64]:
    """The timestep of every image at one update, int64 (n,); updates 2 i and 2 i + 1 share it.

    Multiples of the golden ratio cover [0, 1) evenly however many are taken, so every image sees
    all noise levels after a few updates.
    """
    return np.floor(_phases(keys, update) * num_timesteps).astype(np.int64)


def _phases(keys: NDArray[np.uint64], update: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each image at one pair of updates."""
    start = (keys >> np.uint64(11)) * 2.0**-53
    phases: NDArray[np.float64] = (start + update // 2 * _GOLDEN) % 1.0
    return phases


def _levels(scheduler: Any, block: Block) -> Tensor:
    """The timestep of every image at the block's update, (n,).

    For the flow they are logit-normal and shifted, as in `fit_job.denoising_loss`.
    """
    steps, device = scheduler.config.num_train_timesteps, block.mean.device
    if not steps_flow(scheduler):
        return sent(torch.from_numpy(timesteps_of(block.keys, block.update, steps)), device)
    phases = torch.from_numpy(_phases(block.keys, block.update)).clamp(1e-6, 1 - 1e-6)
    return sent(shifted(as_logit_normal(phases), scheduler) * steps, device)


def _noises(shape: torch.Size, update: int, seed: int) -> Tensor:
    """Noise of one update, of the posterior and of the diffusion, float32 (2, *shape) on the CPU.

    That of update 2 i + 1 is the negative of that of update 2 i.
    """
    pair, second = divmod(update, 2)
    generator = stream(int(counter_rng(seed, 4, pair).integers(2**63)))
    noises = torch.randn((2, *shape), generator=generator, dtype=torch.float32, device="cpu")
    return -noises if second else noises


def run_pass(
    denoiser: Denoiser, scheduler: Any, block: Block, config: InversionConfig
) -> tuple[Tensor, int]:
    """Gives every embedding of the block one update.

    Returns:
        The sum of the losses, and the number of images.
    """
    u, device = block.update, block.mean.device
    draw, noise = sent(_noises(block.mean.shape[1:], u, config.seed), device)
    t_all = _levels(scheduler, block)
    beta1, beta2 = _BETAS
    rate = config.learning_rate_at(u) / (1 - beta1 ** (u + 1))
    correction = math.sqrt(1 - beta2 ** (u + 1))
    total = torch.zeros((), device=device, dtype=torch.float32)

    def learn(rows: slice) -> None:
        z = block.mean[rows]
        if block.std is not None:
            z = z + block.std[rows] * draw
        t, eps = t_all[rows], noise.expand_as(z)
        c = block.embeddings[rows].detach().requires_grad_()
        target = denoising_target(scheduler, z, eps, t)
        with torch.enable_grad():
            x_t = noised(scheduler, z, eps, t)
            prediction = denoiser(x_t, t, block.conditions(rows, c))
            # Summed over images: the gradient of one does not depend on how many others there are.
            loss = (prediction - target).square().flatten(1).mean(1).sum()
        (gradient,) = torch.autograd.grad(loss, c)
        m, v = block.exp_avg[rows], block.exp_avg_sq[rows]
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        block.embeddings[rows].addcdiv_(m, (v.sqrt() / correction).add_(_EPSILON), value=-rate)
        total.add_(loss.detach())

    block.batches = block.batches or ShrinkingBatches(config.batch_size)
    block.batches.run(len(block.keys), learn)
    block.update += 1
    return total, len(block.keys)


class InversionJob:
    """Learning the embeddings of a data set, checked before any work starts.

    Raises:
        DataError, ValueError: For images, classes or settings that do not fit the model.
    """

    def __init__(
        self,
        model: DiffusionModel,
        encoder: TokenEncoder | None,
        real: Any,
        config: InversionConfig,
    ) -> None:
        self.model, self.encoder, self.config = model, encoder, config
        self.real = ImageSource.open(real, "`real`")
        self.classes, self.labels = self.real.named_classes(), self.real.labels
        self.start, self.token_shape = _start(model, encoder, self.classes, config)
        self.scheduler = model.training_scheduler()
        check_prediction_type(self.scheduler)

    @lasting_tensors()
    def cost(self, *, measure: bool = False) -> InversionCost:
        """Estimates the cost of `run`; measures it on one batch if asked."""
        seconds = None
        if measure:
            n = min(self.config.batch_size, len(self.labels))
            block = self._block(np.arange(n))
            run_pass(self.model.denoiser, self.scheduler, block, self.config)  # warm up
            started = time.monotonic()
            total, _ = run_pass(self.model.denoiser, self.scheduler, block, self.config)
            float(total)  # waits for the device
            seconds = (time.monotonic() - started) / n
        config = self.config
        return InversionCost(
            len(self.labels), self.token_shape, config.updates, len(config.snapshots), seconds
        )

    @lasting_tensors()
    def run(
        self,
        output_dir: Path,
        *,
        identity: Any,
        report: Callable[[int, int, float], object],
    ) -> EmbeddingTable:
        """Learns what is missing in `output_dir/embeddings`, block by block.

        Other processes may do the same at the same time. All of them return the whole table.

        Args:
            output_dir: Finished blocks are files in `embeddings`; blocks under work are in
                `checkpoint`.
            identity: JSON that names model and data. Files of another identity are refused.
            report: Called after every pass with (images, update, sum of losses); for what earlier
                runs and other processes have done once per block, with a loss of nan.

        Raises:
            DivergedError: If a loss or an embedding is not finite.
            ValueError: If `output_dir` is a file.
            MismatchError: If the directory holds another run.
            CheckpointError: If it cannot be written.
        """
        check_folder(output_dir)
        folder = output_dir / "embeddings"
        remedy = "What had been learned before is intact. Free some space and run again."
        with checkpoints.writing(output_dir, remedy):
            for name in ("embeddings", "checkpoint"):
                (output_dir / name).mkdir(parents=True, exist_ok=True)
            _claim(output_dir / "run.json", self.config.binding(identity))
        denoiser = self.model.denoiser
        network: Any = self.model.network
        if self.config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.config.compile:
            compiled: Any = torch.compile(network)
            denoiser = Denoiser(compiled)
        try:
            with kept_at_stop(lambda: self._progress(output_dir)):
                self._learn_all(denoiser, output_dir, report)
        finally:
            if self.config.gradient_checkpointing:
                network.disable_gradient_checkpointing()
        return EmbeddingTable.load(folder, self.classes)

    def _learn_all(
        self, denoiser: Denoiser, output_dir: Path, report: Callable[[int, int, float], object]
    ) -> None:
        """Learns the blocks that nobody has learned, and waits for those that others learn."""
        folder, size = output_dir / "embeddings", self.config.block_size
        left = {
            number: np.arange(start, min(start + size, len(self.labels)))
            for number, start in enumerate(range(0, len(self.labels), size))
        }
        while left:
            before = len(left)
            for number, rows in list(left.items()):
                block = folder / f"{number:05d}.safetensors"
                with claimed(output_dir / "checkpoint" / f"{number:05d}") as ours:
                    if block.exists():
                        report(len(rows) * self.config.updates, self.config.updates, math.nan)
                    elif ours:
                        with stop_requests() as request:
                            self._learn(denoiser, rows, number, output_dir, report, request)
                    else:
                        continue
                del left[number]
            if len(left) == before:
                time.sleep(_WAIT)

    def _progress(self, output_dir: Path) -> str:
        """Returns a sentence about what is saved of the run in a directory; "" if nothing is."""
        size, total = self.config.block_size, len(self.labels)
        blocks = list((output_dir / "embeddings").glob("*.safetensors"))
        images = sum(min(size, total - int(path.stem) * size) for path in blocks)
        begun = any(path.is_dir() for path in (output_dir / "checkpoint").iterdir())
        if not blocks and not begun:
            return ""
        under_way = ", and updates of others," if begun else ""
        return f"Embeddings of {images:,} of {total:,} images{under_way} are saved in {output_dir}."

    def _learn(
        self,
        denoiser: Denoiser,
        rows: NDArray[np.int64],
        number: int,
        output_dir: Path,
        report: Callable[[int, int, float], object],
        request: StopRequest,
    ) -> None:
        """Learns a block, or saves how far it came if it is asked to stop."""
        block, checkpoint = self._block(rows), output_dir / "checkpoint" / f"{number:05d}"
        kept = _resume(checkpoint, block)
        if block.update:
            report(len(rows) * block.update, block.update, math.nan)
        saved_at = time.monotonic()
        while True:
            if block.update in self.config.snapshots:
                kept[block.update] = block.embeddings.clone()
            if block.update == self.config.updates:
                break
            total, count = run_pass(denoiser, self.scheduler, block, self.config)
            loss = float(total)
            if not math.isfinite(loss) or not bool(torch.isfinite(block.embeddings).all()):
                raise DivergedError(
                    f"Update {block.update} of images {rows[0]} to {rows[-1]} is not finite (loss "
                    f"{loss / count:.3g}). Blocks and the last checkpoint are intact in "
                    f"{output_dir}. Lower `learning_rate` (now {self.config.learning_rate}), use "
                    "dtype float32, or take another output directory."
                )
            report(count, block.update, loss)
            if request.made or time.monotonic() - saved_at >= self.config.checkpoint_seconds:
                with checkpoints.writing(output_dir, "Free some space and run again."):
                    _save(checkpoint, block, kept)
                saved_at = time.monotonic()
            if request.made:
                return
        table = EmbeddingTable(
            classes=self.classes, labels=self.labels[rows], keys=block.keys, snapshots=kept
        )
        with checkpoints.writing(output_dir, "Free some space and run again."):
            table.save(output_dir / "embeddings", number)
        recovery.remove(checkpoint)

    @torch.no_grad()
    def _block(self, rows: NDArray[np.int64]) -> Block:
        """Encodes the images, once, and gives them their first embeddings."""
        keys: list[int] = []
        means, stds, first = [], [], []

        def encode(chosen: slice) -> None:
            part = rows[chosen]
            pixels = self.real.pixels(part)
            own = [digest(image) for image in pixels]
            mean, std = self.model.posterior(pixels)
            first.append(self._first(mean, part, own))
            means.append(mean)
            stds.append(std)
            keys.extend(own)

        ShrinkingBatches(self.config.batch_size).run(len(rows), encode)
        embeddings = torch.cat(first).to(self.model.device, torch.float32)
        prompts = None
        if self.model.denoiser.takes_prompts:
            prompts = self.model.conditions(torch.from_numpy(self.labels[rows]))
        return Block(
            prompts=prompts,
            keys=np.array(keys, np.uint64),
            mean=torch.cat(means),
            std=None if stds[0] is None else torch.cat(stds),  # type: ignore[arg-type]
            embeddings=embeddings,
            exp_avg=torch.zeros_like(embeddings),
            exp_avg_sq=torch.zeros_like(embeddings),
        )

    def _first(self, images: Images, rows: NDArray[np.int64], keys: list[int]) -> Tensor:
        k, d = self.token_shape
        if self.start == "encoder":
            assert self.encoder is not None
            tokens: Tensor = self.encoder.to(self.model.device)(images)
            return tokens
        if self.start == "prompt":
            prompts = self.model.conditions(torch.from_numpy(self.labels[rows]))
            prompts = prompts.tokens if isinstance(prompts, Prompted) else prompts
            repeats = prompts[:, -1:].expand(-1, max(0, k - prompts.shape[1]), -1)
            return torch.cat([prompts, repeats], 1)[:, :k].clone()
        seeds = [int(counter_rng(self.config.seed, 5, key).integers(2**63)) for key in keys]
        return self.config.start_std * randn(streams(seeds), (k, d))


def _start(
    model: DiffusionModel,
    encoder: TokenEncoder | None,
    classes: tuple[str, ...],
    config: InversionConfig,
) -> tuple[Start, tuple[int, int]]:
    """Where embeddings start, and their shape."""
    denoiser = model.denoiser
    if not denoiser.attends:
        raise CheckpointError(
            f"The checkpoint's network is a {denoiser.kind}, which attends to no tokens. "
            "Train one with `synthaug train --condition tokens`, or take Stable Diffusion."
        )
    prompts = model.class_embeddings
    of_prompts = isinstance(prompts, Prompted)
    config_width = denoiser.config.get("cross_attention_dim")
    width = int(prompts.shape[-1] if isinstance(prompts, Prompted) else config_width)
    prompted = model.prompts is not None
    start = config.start or ("encoder" if encoder else "prompt" if prompted else "noise")
    if start == "encoder":
        if encoder is None:
            raise ValueError("`start` is 'encoder', but the checkpoint has no image encoder.")
        if config.num_tokens not in (None, encoder.shape[0]):
            raise ValueError(
                f"`num_tokens` is {config.num_tokens}, but the checkpoint's encoder gives "
                f"{encoder.shape[0]}. Leave it out, or use `start='noise'`."
            )
        return start, encoder.shape
    if start == "prompt" and not prompted:
        raise ValueError("`start` is 'prompt', but the checkpoint has no text encoder.")
    if (start == "prompt" or of_prompts) and model.classes != classes:
        raise ValueError(
            f"The checkpoint's prompts are about the classes {', '.join(model.classes)}, the real "
            f"images have {', '.join(classes)}. Load it with `classes=real.classes`."
        )
    return start, (config.num_tokens or (encoder.shape[0] if encoder else 5), width)


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Marks a directory as that of one run."""
    if path.exists():
        checkpoints.check_same_run(path.parent, checkpoints.read_json(path), settings)
    else:
        checkpoints.write_json(path, checkpoints.run_record(settings))


def begun_precision(output_dir: Path) -> Resolved | None:
    """The network's precision in the run that is in a directory, if there is one."""
    path = output_dir / "run.json"
    try:
        found = checkpoints.read_json(path)["settings"]["extra"]["dtype"]
    except (CheckpointError, LookupError, TypeError):
        return None  # claiming the directory says what is wrong
    known: dict[object, Resolved] = {"torch.float32": "float32", "torch.bfloat16": "bfloat16"}
    return known.get(found)


def _save(folder: Path, block: Block, kept: dict[int, Tensor]) -> None:
    with recovery.sealed(folder) as new:
        snapshots = {f"updates-{u}": e for u, e in kept.items()}
        checkpoints.save_tensors(new / "block.safetensors", {**block.tensors(), **snapshots})
        (new / "state.json").write_text(canonical_json({"update": block.update}))


def _resume(folder: Path, block: Block) -> dict[int, Tensor]:
    """Loads the checkpoint into the block, if there is one; the snapshots kept so far."""

    def read(place: Path) -> dict[int, Tensor]:
        update = int(checkpoints.read_json(place / "state.json")["update"])
        tensors = checkpoints.load_tensors(place / "block.safetensors")
        for name, tensor in block.tensors().items():
            tensor.copy_(tensors.pop(name))
        block.update = update
        return {int(name.removeprefix("updates-")): e for name, e in tensors.items()}

    kept = recovery.newest_whole(folder, read, "Delete it; finished blocks are kept.") or {}
    return {update: e.to(block.embeddings.device) for update, e in kept.items()}
