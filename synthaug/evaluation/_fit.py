"""Training one classifier: a step is a pure function of (seed, step), the same for every arm."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthaug._noise import counter_rng
from synthaug._pixels import to_images
from synthaug._support.devices import sent
from synthaug._support.precision import Resolved
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import Flags, Indices, Integers, Labels, Singles
from synthaug.errors import DivergedError
from synthaug.evaluation._adversarial import AdversarialConfig, MovingAverage
from synthaug.evaluation._augment import Augment, Mixture, apply_augment
from synthaug.evaluation._inputs import ArmImages, Batches

MOMENTUM = 0.9
FLOOR = 1e-3
"""The learning rate ends at this share of its peak."""
_TEST_BATCH = 512
_CHECK_EVERY = 10
"""Steps between looks at the loss: each look makes a GPU wait."""
# Streams of one seed.
_ORDER, _INITIAL, _READ, _AUGMENT, _NETWORK, _ADDED_ORDER, _ATTACK, _TEST_ATTACK = range(8)
_CLASSES, _WITHIN = 8, 9


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How weights change: the same for all arms. A `ClassifierConfig` with a value for each `None`.

    What counts of the weight decay is the product of rate, decay and steps. The 5e-4 that is usual
    for 50,000 steps loses 2.5 points at 300 steps on few labeled digits, against 0.02 to 0.05.
    """

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """Peak learning rate."""
    weight_decay: float
    """L2 penalty on all weights, as in the papers that use this schedule."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly."""
    eval_every: int
    """Steps between two points of the curves, and between two looks at the validation set."""
    precision: Resolved
    """bfloat16 runs the network under autocast; weights and optimizer stay in float32."""
    adversarial: AdversarialConfig | None = None
    """Trains on attacked images; `None` on images as they are."""

    @classmethod
    def of(
        cls,
        config: ClassifierConfig,
        precision: Resolved,
        adversarial: AdversarialConfig | None = None,
    ) -> "FitSettings":
        """Chooses what the configuration leaves open, but for the precision."""
        decay, warmup, every = config.weight_decay, config.warmup_steps, config.eval_every
        twentieth = max(1, config.steps // 20)
        usual_decay = min(0.05, 0.5 / (config.learning_rate * config.steps))
        return cls(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=usual_decay if decay is None else decay,
            warmup_steps=twentieth if warmup is None else warmup,
            eval_every=twentieth if every is None else every,
            precision=precision,
            adversarial=adversarial,
        )


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of the training of a classifier."""

    loss: list[tuple[int, float]]
    """(step, mean training loss since the point before)."""
    validation: list[tuple[int, float]]
    """(step, validation accuracy), under attack if training is; empty without a validation set."""
    selected_step: int
    """The step after which the weights were kept."""


def batch_order(
    size: int, batch_size: int, *, seed: int, step: int, stream: int = _ORDER
) -> Iterator[tuple[int, Indices]]:
    """The items of one step as (epoch, indices), a pure function of its arguments.

    Items are a stream of permutations of the whole data set, one per epoch, cut into batches of
    equal size whatever the size of the data set. So a batch can lie across epochs, and a data set
    smaller than a batch fills it several times.
    """
    position, stop = step * batch_size, (step + 1) * batch_size
    while position < stop:
        epoch, start = divmod(position, size)
        indices = _permutation(size, seed, epoch, stream)[start : start + stop - position]
        yield epoch, indices
        position += len(indices)


def balanced_order(
    by_class: Sequence[Indices], batch_size: int, *, seed: int, step: int
) -> Iterator[tuple[int, Indices]]:
    """Yields batches as `batch_order` does, with all classes equally often; also a pure function.

    Classes come in turn, all of them once before any comes again, in an order that is drawn anew
    each time; the images of a class are a stream of permutations.
    """
    size = sum(map(len, by_class))
    chosen: dict[int, list[int]] = {}
    for position in range(step * batch_size, (step + 1) * batch_size):
        turn, place = divmod(position, len(by_class))
        c = int(_permutation(len(by_class), seed, turn, _CLASSES)[place])
        again, row = divmod(turn, len(by_class[c]))
        order = _class_permutation(len(by_class[c]), seed, again, c)
        chosen.setdefault(position // size, []).append(int(by_class[c][order[row]]))
    for epoch, rows in chosen.items():
        yield epoch, np.array(rows, np.int64)


@lru_cache(maxsize=4096)
def _class_permutation(size: int, seed: int, again: int, c: int) -> Integers:
    return np.argsort(counter_rng(seed, again, _WITHIN, c).random(size), kind="stable")


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int, stream: int) -> Integers:
    # By sorting uniform numbers: numpy may change `permutation` between versions.
    return np.argsort(counter_rng(seed, epoch, stream).random(size), kind="stable")


def _gather(
    images: ArmImages, batch_size: int, seed: int, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The images of a step: the arm's own, then those that it adds."""
    sources = zip(images.divided(batch_size), (_ORDER, _ADDED_ORDER), strict=False)
    parts = []
    for (part, count), stream in sources:
        order = batch_order(len(part), count, seed=seed, step=step, stream=stream)
        if images.balanced and stream == _ORDER:
            order = balanced_order(images.rows_by_class, count, seed=seed, step=step)
        parts += [part.batch(epoch, indices) for epoch, indices in order]
    labels = [labels for _, labels in parts]
    width = max(part.shape[1] if part.ndim == 2 else 0 for part in labels)
    if width:  # class probabilities, at least in one part
        labels = [F.one_hot(y, width).float() if y.ndim == 1 else y for y in labels]
    pixels = torch.cat([sent(pixels, device) for pixels, _ in parts])
    return pixels, torch.cat([sent(y, device) for y in labels])


def _seed_torch(seed: int, step: int, stream: int, device: torch.device) -> None:
    """Seeds torch for one part of one step: how much another part draws then shifts nothing."""
    value = int(counter_rng(seed, step, stream).integers(2**63))
    if device.type == "cpu":
        torch.default_generator.manual_seed(value)  # `torch.manual_seed` takes 0.1 ms for the rest
    else:
        torch.manual_seed(value)


def seed_initial_weights(seed: int) -> None:
    """Seeds torch for the initial weights, the same for every arm."""
    _seed_torch(seed, 0, _INITIAL, torch.device("cpu"))


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Linear warm-up to the peak, then half a cosine down to `FLOOR` of it."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)


@lasting_tensors()
def fit(
    network: nn.Module,
    images: Batches | ArmImages,
    settings: FitSettings,
    *,
    seed: int,
    run: str,
    augment: Augment | None = None,
    validation: Batches | None = None,
    advance: Callable[[int], object] = lambda steps: None,
) -> Curves:
    """Trains `network` in place, where it is, with SGD and Nesterov's momentum.

    It ends with the weights of the best validation accuracy (the later ones among equals, trained
    at a smaller learning rate), without a validation set with the last ones. In adversarial
    training that accuracy is the robust one, and weights are their moving average if it has one.

    Args:
        network: Images float (n, C, H, W) in [-1, 1] => logits.
        images: Training images.
        settings: How to train.
        seed: With the step, decides which items are seen and how they are augmented.
        run: Name of this run in an error.
        augment: For every batch of pixels; `None` for none.
        validation: Images for the choice of the step.
        advance: Called with the number of steps made.

    Raises:
        DivergedError: If the loss is NaN or infinite.
    """
    device, adversarial = device_of(network), settings.adversarial
    arm = images if isinstance(images, ArmImages) else ArmImages(images)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=MOMENTUM,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    losses = _Losses(settings, device, run, advance)
    decay = 0.0 if adversarial is None else adversarial.ema_decay
    average = MovingAverage(network, decay) if decay else None
    tested = network if average is None else average.network
    curve: list[tuple[int, float]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    for step in range(settings.steps):
        pixels, loss_of = _step_images(arm, settings.batch_size, augment, seed, step, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        inputs = to_images(pixels)
        if adversarial is not None:
            _seed_torch(seed, step, _ATTACK, device)
            inputs = _attacked(network, pixels, loss_of, adversarial, settings)
        _seed_torch(seed, step, _NETWORK, device)
        with autocast(device, settings):
            loss = loss_of(network(inputs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update(network)
        if losses.add(loss) and validation is not None:
            accuracy = _validation_accuracy(tested, validation, settings, seed)
            curve.append((step + 1, accuracy))
            if best is None or accuracy >= best[0]:
                kept = {name: value.clone() for name, value in tested.state_dict().items()}
                best = (accuracy, step + 1, kept)
    if best is not None:
        network.load_state_dict(best[2])
    elif average is not None:
        network.load_state_dict(average.network.state_dict())
    selected = settings.steps if best is None else best[1]
    return Curves(loss=losses.curve, validation=curve, selected_step=selected)


def _attacked(
    network: nn.Module,
    pixels: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    adversarial: AdversarialConfig,
    settings: FitSettings,
) -> Tensor:
    """Returns the attacked pixels of a training step, in the range that the network takes."""

    def loss(x: Tensor) -> Tensor:
        with autocast(pixels.device, settings):
            return loss_of(network(2 * x - 1))

    return 2 * adversarial.training_images(network, pixels.float() / 255, loss) - 1


def _validation_accuracy(
    network: nn.Module, validation: Batches, settings: FitSettings, seed: int
) -> float:
    if settings.adversarial is None:
        return float(correct(network, validation, settings)[0].mean())
    return float(robust(network, validation, settings, seed=seed, testing=False).mean())


def _step_images(
    images: ArmImages,
    batch_size: int,
    augment: Augment | None,
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The augmented pixels of a step, and the loss as a function of their logits."""
    _seed_torch(seed, step, _READ, device)
    pixels, labels = _gather(images, batch_size, seed, step, device)
    losses = _LossByClass.of(images, batch_size, len(pixels), device)
    if augment is None:
        return pixels, lambda logits: losses.mean(logits, labels)
    _seed_torch(seed, step, _AUGMENT, device)
    count = images.augmented_part(batch_size)
    plain = pixels[count:]
    if not isinstance(augment, Mixture):
        shown = torch.cat([apply_augment(augment, pixels[:count]), plain])
        return shown, lambda logits: losses.mean(logits, labels)
    mixed, partner, share = augment.mix(pixels[:count])
    rest = torch.arange(count, len(pixels), dtype=torch.int64, device=device)
    share = torch.cat([share, torch.ones(len(rest), dtype=torch.float32, device=device)])
    partner = torch.cat([partner, rest])

    def loss(logits: Tensor) -> Tensor:
        first, second = losses.by_row(logits, labels), losses.by_row(logits, labels[partner])
        return (share * first + (1 - share) * second).mean()

    return torch.cat([mixed, plain]), loss


@dataclass(frozen=True)
class _LossByClass:
    """The loss of a batch, whose first rows may have weights and shifted logits by their class."""

    images: ArmImages
    own: Tensor
    """Which rows are the arm's own, bool (n,)."""

    @classmethod
    def of(
        cls, images: ArmImages, batch_size: int, rows: int, device: torch.device
    ) -> "_LossByClass":
        """Makes that of a step, in which the rows of the arm's own data set come first."""
        count = images.divided(batch_size)[0][1]
        return cls(images, torch.arange(rows, device=device, dtype=torch.int64) < count)

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss of all rows, a scalar."""
        if self.images.class_weights is None:
            return F.cross_entropy(self._shifted(logits), labels)
        return self.by_row(logits, labels).mean()

    def by_row(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of every row, (n,)."""
        values = F.cross_entropy(self._shifted(logits), labels, reduction="none")
        weights = self.images.class_weights
        if weights is None:
            return values
        by_class = torch.from_numpy(weights).to(values.device)
        rated = by_class[labels] if labels.ndim == 1 else labels @ by_class
        return torch.where(self.own, rated * values, values)

    def _shifted(self, logits: Tensor) -> Tensor:
        offsets = self.images.logit_offsets
        if offsets is None:
            return logits
        shifted = logits + torch.from_numpy(offsets).to(logits.device)
        return torch.where(self.own[:, None], shifted, logits)


class _Losses:
    """The losses of all steps, looked at now and then: each look makes a GPU wait."""

    def __init__(
        self,
        settings: FitSettings,
        device: torch.device,
        run: str,
        advance: Callable[[int], object],
    ) -> None:
        self.curve: list[tuple[int, float]] = []
        self._values = torch.zeros(settings.steps, device=device, dtype=torch.float32)
        self._settings, self._run, self._advance = settings, run, advance
        self._done = self._looked_at = self._plotted = 0

    def add(self, loss: Tensor) -> bool:
        """Keeps the loss of the next step; returns whether the curves get a point at it."""
        self._values[self._done] = loss.detach()
        self._done += 1
        done, settings = self._done, self._settings
        to_plot = done == settings.steps or done % settings.eval_every == 0
        if to_plot or done % _CHECK_EVERY == 0:
            self._check_finite()
            self._advance(done - self._looked_at)
            self._looked_at = done
        if to_plot:
            self.curve.append((done, self._values[self._plotted : done].mean().item()))
            self._plotted = done
        return to_plot

    def _check_finite(self) -> None:
        new, settings = self._values[self._looked_at : self._done], self._settings
        bad = torch.nonzero(~torch.isfinite(new)).flatten().tolist()
        if bad:
            raise DivergedError(
                f"{self._run}: the loss became {new[bad[0]].item()} at step "
                f"{self._looked_at + bad[0] + 1} of {settings.steps}. Lower `learning_rate` (now "
                f"{settings.learning_rate:g}), or raise `warmup_steps` (now "
                f"{settings.warmup_steps})."
            )


@torch.inference_mode()
def judged(
    network: nn.Module, images: Batches, settings: FitSettings
) -> tuple[Flags, Labels, Singles, Singles]:
    """For every image whether it is classified correctly, bool (n,), its label, int64 (n,), the
    probability of the class that the network decides for, float32 (n,), and by how much the logit
    of the last class is above that of the first, float32 (n,)."""
    device = device_of(network)
    network.eval()
    hits, truth, confidence, scores = [], [], [], []
    for start in range(0, len(images), _TEST_BATCH):
        pixels, labels = images.batch(0, np.arange(start, min(start + _TEST_BATCH, len(images))))
        with autocast(device, settings):
            logits = network(to_images(sent(pixels, device)))
        hits.append((logits.argmax(dim=1) == sent(labels, device)).cpu())
        truth.append(labels.cpu())
        confidence.append(logits.float().softmax(dim=1).amax(dim=1).cpu())
        scores.append((logits[:, -1].float() - logits[:, 0].float()).cpu())
    network.train()
    return (
        torch.cat(hits).numpy(),
        torch.cat(truth).numpy(),
        torch.cat(confidence).numpy(),
        torch.cat(scores).numpy(),
    )


def correct(network: nn.Module, images: Batches, settings: FitSettings) -> tuple[Flags, Labels]:
    """For every image whether it is classified correctly, bool (n,), and its label, int64 (n,)."""
    return judged(network, images, settings)[:2]


def robust(
    network: nn.Module, images: Batches, settings: FitSettings, *, seed: int, testing: bool
) -> Flags:
    """For every image whether it is classified correctly under attack too, bool (n,).

    Args:
        network: The network to attack, in evaluation mode.
        images: Its images, and their labels.
        settings: With an attack.
        seed: Decides where the attacks start, the same places whenever it is asked.
        testing: The test attack; else that of the training.
    """
    device, adversarial = device_of(network), settings.adversarial
    if adversarial is None:
        raise ValueError("`settings` has no `adversarial`, the attack.")

    def logits(x: Tensor) -> Tensor:
        with autocast(device, settings):
            scores: Tensor = network(2 * x - 1)
        return scores.float()

    network.eval()
    hits = []
    for start in range(0, len(images), _TEST_BATCH):
        pixels, labels = images.batch(0, np.arange(start, min(start + _TEST_BATCH, len(images))))
        _seed_torch(seed, start, _TEST_ATTACK, device)
        clean, truth = sent(pixels, device).float() / 255, sent(labels, device)
        hits.append(adversarial.withstood(logits, clean, truth, testing=testing).cpu())
    network.train()
    return torch.cat(hits).numpy()


def device_of(network: nn.Module) -> torch.device:
    """The device that holds the weights of a network."""
    return next(network.parameters()).device


def autocast(device: torch.device, settings: FitSettings) -> AbstractContextManager[object]:
    """bfloat16 where the settings ask for it."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"
    )
