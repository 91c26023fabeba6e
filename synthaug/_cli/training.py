"""The command that trains a generator."""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synthaug._cli import pictures as _pictures
from synthaug._cli import training_options as parts
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import configured, trainings
from synthaug._cli.options import ExtractorOptions, FileOptions, ImageOptions
from synthaug._cli.training_options import TrainOptions
from synthaug._printable import amount
from synthaug._support.files import check_folder, write_text
from synthaug._support.reading import read_text
from synthaug._support.stopping import kept_at_stop
from synthaug._training.training_config import TrainingConfig
from synthaug.synthesizers.cascade._config import StageConfig
from synthaug.synthesizers.class_conditional._config import DistillationConfig, FineTuningConfig
from synthaug.synthesizers.inversion._config import TokenConfig


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """One training: the real images, where it writes, and what was asked for."""

    real: Any
    data: str
    """Where the images are from."""
    out: str
    options: TrainOptions
    config: TrainingConfig
    progress: bool = True

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of every fit of a new network."""
        return {
            "config": self.config,
            "progress": self.progress,
            "channels": self.options.width,
            "num_layers": self.options.num_layers,
            "horizontal_flip": self.options.horizontal_flip,
        }

    @property
    def guided_network(self) -> dict[str, Any]:
        """Arguments of every fit of a new denoiser that is told classes."""
        options, spec = self.options, self.options.unlabeled
        shape = self.real.image_shape
        return {
            **self.network,
            "prediction_type": options.prediction_type,
            "label_dropout": options.label_dropout,
            "unlabeled": None if spec is None else options.shaped(spec, shape),
        }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training, and what to print about it."""

    model: Any
    result: Any
    """`TrainingResult`."""
    picture: Callable[[Path], None] | None = None
    """Draws what the model does into a file."""
    caption: str = ""
    next: str = ""
    """The command to go on with; CHECKPOINT in it stands for what was trained."""
    duration: str = ""
    """A sentence on how long that command takes."""


def _labels(job: TrainingRequest) -> Trained:
    """A generator that is told the class of an image."""
    from synthaug.synthesizers import ClassConditional

    model, result = ClassConditional.fit(job.real, job.out, **job.guided_network)
    return _drawn(job, model, result, "Samples, a row per class", "--per-class 100")


def _tokens(job: TrainingRequest) -> Trained:
    """A generator that is told tokens of an image, to be inverted."""
    from synthaug.synthesizers import DiffusionInversion

    model, result = DiffusionInversion.fit_generator(
        job.real,
        job.out,
        tokens=configured(TokenConfig, job.options),
        prediction_type=job.options.prediction_type,
        **job.network,
    )
    line = f"synthaug invert CHECKPOINT {job.data} DIRECTORY"
    return Trained(model=model, result=result, next=line)


def _cold(job: TrainingRequest) -> Trained:
    """A network that undoes a degradation."""
    from synthaug import degradations
    from synthaug.synthesizers import ColdDiffusion

    name, others = job.options.degradation, job.options.others
    settings = dict(job.options.degradation_settings or {})
    if (name == "animorphosis") != (others is not None):
        raise ValueError(
            "`--degradation animorphosis` and `--others`, the images of another set that it turns "
            "images into, need each other."
        )
    if others is not None:
        settings["others"] = job.options.shaped(others, job.real.image_shape)
    model, result = ColdDiffusion.fit(
        job.real,
        job.out,
        degradation=degradations.named(name, **settings),
        color_components=job.options.color_components,
        **job.network,
    )
    return Trained(
        model=model,
        result=result,
        picture=lambda path: _pictures.restored(model, job.real, path),
        caption="Real images, what the last level leaves of them, what is restored",
        next=f"synthaug generate CHECKPOINT CACHE.h5 --source {job.data} --ratio 1 --severity 0.3"
        + (f" --others {others}" if others else ""),
    )


def _upsample(job: TrainingRequest) -> Trained:
    """A stage of a cascade, which makes small images large."""
    from synthaug.synthesizers import Cascade

    model, result = Cascade.fit_stage(
        job.real, job.out, configured(StageConfig, job.options), **job.guided_network
    )
    return Trained(
        model=model,
        result=result,
        picture=lambda path: _pictures.enlarged(model, job.real, path),
        caption="Real images, smaller copies, what is drawn from those",
        next="synthaug cascade DIRECTORY BASE CHECKPOINT",
    )


def _hardness(job: TrainingRequest) -> Trained:
    """Two networks that steer a generator to rare images."""
    from synthaug._cache import SynthCache
    from synthaug.synthesizers import LowDensity, _kinds

    base, synthetic = str(job.options.base), job.options.synthetic
    generator: Any = _kinds.load(**_kinds.origin_of(base, job.real.classes))
    real = _fitted(job, generator)
    model, result = LowDensity.fit(
        real,
        base,
        job.out,
        synthetic=None if synthetic is None else SynthCache(synthetic),
        num_synthetic=job.options.num_synthetic,
        config=job.config,
        horizontal_flip=job.options.horizontal_flip,
    )
    caption = "Samples, a row per class, in turn plain and steered"
    amount = "--per-class 100 --alpha 0.5 --beta 1.0 --scheduler ddpm"
    row = {name: [0.0, value] for name, value in model.default_strengths.items()}
    return _drawn(job, model, result, caption, amount, **row)


def _distill(job: TrainingRequest) -> Trained:
    """A student that draws in a few steps what a generator of ours draws in many."""
    from synthaug.synthesizers import ClassConditional

    teacher = ClassConditional.from_pretrained(str(job.options.base), device=job.config.device)
    model, result = teacher.distill(
        _fitted(job, teacher),
        job.out,
        configured(DistillationConfig, job.options),
        config=job.config,
    )
    return _drawn(job, model, result, "Samples, a row per class", "--per-class 100")


def _fitted(job: TrainingRequest, generator: Any) -> Any:
    """The real images, loaded again in the generator's shape if they have another."""
    if job.real.image_shape == generator.image_shape:
        return job.real
    return job.options.shaped(job.data, generator.image_shape)


def _finetune(job: TrainingRequest) -> Trained:
    """A pretrained generator, adapted to the classes of the data."""
    from synthaug.synthesizers import ClassConditional

    model, result = ClassConditional.fine_tune(
        str(job.options.base),
        job.real,
        job.out,
        adaptation=configured(FineTuningConfig, job.options),
        config=job.config,
        snapshots=job.options.snapshots,
    )
    return _drawn(job, model, result, "Samples, a row per class", "--per-class 100")


def _drawn(
    job: TrainingRequest, model: Any, result: Any, caption: str, amount: str, **row: Any
) -> Trained:
    seed = job.options.seed
    return Trained(
        model=model,
        result=result,
        picture=lambda path: _pictures.samples(model, seed, path, **row),
        caption=caption,
        next=f"synthaug generate CHECKPOINT CACHE.h5 {amount}",
    )


_NEW = (parts.NewNetworkOptions, parts.MirrorOptions)
_GUIDED = (*_NEW, parts.PredictionOptions, parts.DropoutOptions, parts.UnlabeledOptions)
METHODS: dict[str, tuple[Callable[[TrainingRequest], Trained], tuple[Any, ...]]] = {
    "--condition labels": (_labels, (*_GUIDED, parts.CanaryOptions)),
    "--condition tokens": (_tokens, (*_NEW, parts.PredictionOptions, parts.TokenOptions)),
    "--method cold": (_cold, (*_NEW, parts.ColdOptions)),
    "--method upsample": (_upsample, (*_GUIDED, parts.StageOptions)),
    "--method hardness": (
        _hardness,
        (parts.BaseOptions, parts.SteeringOptions, parts.MirrorOptions),
    ),
    "--method finetune": (
        _finetune,
        (parts.BaseOptions, parts.FineTuningOptions, parts.SnapshotOptions, parts.CanaryOptions),
    ),
    "--method distill": (_distill, (parts.BaseOptions, parts.DistillationOptions)),
}
"""What each kind of training does, and the options that it takes besides `EVERY`."""
EVERY = (ImageOptions, FileOptions, parts.OptimizerOptions)
NEEDS = {
    "--method upsample": ("low_size", "that of the model before it"),
    "--method hardness": ("base", "the generator to steer"),
    "--method finetune": ("base", "the checkpoint to start from"),
    "--method distill": ("base", "the teacher"),
}
"""An option that a kind of training cannot do without."""

if TYPE_CHECKING:
    TrainingMethod = str
else:
    TrainingMethod = Literal[tuple(trainings())]


def _registered(job: TrainingRequest, method: str) -> Trained:
    """A synthesizer that was registered and needs no more than images and a `TrainingConfig`."""
    model, result = trainings()[method].load().fit(job.real, job.out, config=job.config)
    line = "synthaug generate CHECKPOINT CACHE.h5 --per-class 100"
    return Trained(model=model, result=result, next=line)


def train(
    data: str,
    out: str,
    options: TrainOptions,
    *,
    method: TrainingMethod = "diffusion",
    condition: Literal["labels", "tokens"] = "labels",
    trial: bool = False,
    call: Call,
) -> Result:
    """Train a generator; run again to resume.

    synthaug train folder:cifar10/train runs/cifar10 --steps 20000
    synthaug train folder:many-images runs/tokens --condition tokens --steps 20000
    synthaug train folder:birds/train runs/birds --method finetune --base stable-diffusion-v1-5
    synthaug train folder:cifar10/train runs/8to32 --method upsample --low-size 8
    synthaug train folder:cifar10/train runs/hard --method hardness --base runs/cifar10
    synthaug train folder:cifar10/train runs/3 --method distill --base runs/cifar10 --evaluations 3

    Args:
        data: Labeled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits.
        out: Directory to write; it becomes a checkpoint in diffusers layout.
        options: How it is trained.
        method: diffusion learns to remove noise, cold (cold diffusion) to undo --degradation,
            upsample (a stage for synthaug cascade) to draw what --low-size leaves out, hardness to
            steer the generator --base to rare images of each class, finetune to draw the classes of
            the data with the pretrained model --base, distill to draw what --base draws in very few
            steps.
        condition: The input of diffusion besides the noisy image: its label, or tokens of an
            encoder that is learned along with it, for synthaug invert.
        trial: Train a small network on small images, in OUT-trial: in minutes it shows whether
            shapes come, and how long the real job takes. What is stated stays. For networks that
            begin anew.
    """
    kind = f"--condition {condition}" if method == "diffusion" else f"--method {method}"
    run, taken = METHODS.get(kind, (partial(_registered, method=method), ()))
    foreign = _foreign(taken)
    _check(kind, foreign, options, call)
    small, asked = _small_values(call), options
    if trial:
        options = _trial(kind, options, call)
        out = _trial_folder(out, call.brief.line)
    whole = real = options.load(data, options)
    if trial and options.image_size is None:
        real = _small(real, data, options)
    real = options.planted(real)
    if trial:
        _tell_trial(real, out, options)
    score = None if options.features is None else _score(options, real)
    config = _config(options, kind)
    _warn_of_few_steps(kind, config)
    job = TrainingRequest(real=real, data=data, out=out, options=options, config=config)
    made = run(job)
    if options.canaries is not None:
        real.plan.save(out)
    if trial:
        asked = replace(asked, **{name: vars(TrainOptions())[name] for name in small})
        config = _config(asked, kind)
        job = replace(job, real=whole, options=asked, config=config, progress=False)
        with kept_at_stop(lambda: f"The trial is complete: {out}."):
            duration = _duration(run, job)
        made = replace(made, next=call.brief.without({"trial", *small}).line, duration=duration)
        changed = {name: vars(options)[name] for name in (*_TRIAL, *_SCHEDULE)}
        call = call.having(**changed, out=out)
    call = call.having(precision=made.result.precision).without(foreign)
    with kept_at_stop(lambda: f"The training is complete: {out}."):
        return _concluded(job, made, score, call)


def _concluded(job: TrainingRequest, made: Trained, score: Any, call: Call) -> Result:
    """Records and shows what was trained, and chooses among snapshots if they are scored."""
    from accelerate import PartialState

    from synthaug._training.checkpoints import record_command
    from synthaug._training.trackers import log_picture

    curve = made.result.loss_curve
    loss, picture = curve[-1][1] if curve else None, Path(job.out) / "samples.png"
    record: dict[str, Any] = {
        "checkpoint": job.out,
        "steps": made.result.step,
        "loss": loss,
        "precision": made.result.precision,
        "picture": str(picture) if made.picture else None,
        "snapshots": None,
        "best_snapshot": None,
    }
    if not PartialState().is_main_process:
        return Result(record=record)
    record_command(job.out, call.line)
    lines = [f"{amount(made.result.step, 'step')}{'' if loss is None else f', loss {loss:.4f}'}."]
    lines[0] += f" Checkpoint: {job.out}."
    if made.picture is not None:
        made.picture(picture)
        log_picture(job.config, job.out, picture, made.result.step)
        lines.append(f"{made.caption}: {picture}")
    chosen = job.out
    if score is not None:
        from synthaug.synthesizers import select_snapshot

        best = select_snapshot(job.out, score, device=job.options.device)
        record |= {"snapshots": best.scores, "best_snapshot": str(best.path)}
        for step, value in best.scores.items():
            lines.append(f"Step {step:,}: Fréchet distance {value:.4g} to the validation images.")
        lines.append(f"Best snapshot: {best.path}")
        chosen = str(best.path)
    if call.arguments.get("trial"):
        lines.append("That was a trial: judge whether shapes come, not how good they are.")
        lines[-1] += made.duration
    lines.append(f"Next: {made.next.replace('CHECKPOINT', chosen, 1)}")
    return Result(record=record, text="\n".join(lines))


_TRIAL = ("steps", "batch_size", "learning_rate", "width")
_SCHEDULE = ("warmup_steps", "decay_steps")
"""Parts of the steps, which a trial shortens as it does the steps."""
_TRIAL_LINE = "trial.txt"
"""Keeps the command of a trial in its folder, so that another one goes elsewhere."""
_SMALL = 24
"""Longer side of the images of a trial, where they are larger."""


def _trial(kind: str, options: TrainOptions, call: Call) -> TrainOptions:
    """The options of a trial; what was stated stays.

    Raises:
        ValueError: For a kind of training that does not begin anew.
    """
    if not _begins_anew(kind):
        raise ValueError(
            f"`--trial` is for networks that begin anew, not for {kind}. Leave it out, and give a "
            "small number of `--steps`."
        )
    quick = TrainingConfig.trial()
    values = {**vars(quick), "width": 16}
    changed = {name: values[name] for name in _TRIAL if name not in call.stated}
    if "steps" in changed:
        scale = quick.steps / options.steps
        parts_of_steps = {name: vars(options)[name] for name in _SCHEDULE}
        changed |= {name: round(scale * n) for name, n in parts_of_steps.items() if n is not None}
    return replace(options, **changed)


def _small_values(call: Call) -> set[str]:
    """Names of the options whose values are small for a trial's sake, which the real job leaves
    out."""
    usual: dict[str, Any] = {"steps": TrainingConfig.steps, "batch_size": TrainingConfig.batch_size}
    usual["width"] = TrainOptions.width
    small = {name for name, value in usual.items() if call.arguments[name] < value}
    if "steps" in small:
        small |= {*_SCHEDULE}
    return small


_TIMED = 3
"""Steps that are measured, to say how long all take."""
_TIMED_PIXELS = 4096
"""Pixels of the images of such a step, but for one image at least: large batches take long."""


def _duration(run: Callable[[TrainingRequest], Trained], job: TrainingRequest) -> str:
    """A sentence on how long a training takes here, measured in a few steps of few images."""
    from accelerate import PartialState

    from synthaug._plan import time_text
    from synthaug._support.progress import bar

    if PartialState().num_processes > 1:
        return ""
    config, (_, height, width) = job.config, job.real.image_shape
    images = max(1, min(config.batch_size, _TIMED_PIXELS // (height * width)))

    def seconds(steps: int) -> float:
        short = replace(config, steps=steps, batch_size=images, warmup_steps=0, decay_steps=0)
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            run(replace(job, out=folder, config=replace(short, log_with=None)))
            return time.monotonic() - begun

    measured = []
    with bar(3, "measure the real job", "part") as shown:
        for steps in (1, 1, 1 + _TIMED):  # the first one warms up
            measured.append(seconds(steps))
            shown.update()
    each = max(0.0, measured[2] - measured[1]) / _TIMED * config.batch_size / images
    return f" The real job takes {time_text(each * config.steps)} on this device."


def _trial_folder(out: str, line: str) -> str:
    """The folder of a trial: that of the same command before, or else one that is free."""
    from synthaug._cache.files import new_folder
    from synthaug.errors import CacheError

    stem = Path(f"{out.rstrip('/')}-trial")
    check_folder(stem)
    for number in count(1):
        folder = stem if number == 1 else Path(f"{stem}-{number}")
        try:
            with new_folder(folder) as new:  # it appears with the line in it
                write_text(new / _TRIAL_LINE, line)
        except CacheError:
            if not folder.exists():
                raise
        begun = folder / _TRIAL_LINE
        if begun.exists() and read_text(begun) == line:
            break
    return str(folder)


def _small(real: Any, data: str, options: TrainOptions) -> Any:
    """The images, loaded again at a small size if they are larger."""
    channels, height, width = real.image_shape
    shrink = _SMALL / max(height, width)
    if shrink >= 1:
        return real
    sides = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return options.shaped(data, (channels, *sides))


def _tell_trial(real: Any, out: str, options: TrainOptions) -> None:
    logging.getLogger("synthaug").warning(
        "This is a trial: %s, batches of %s of %s pixels, a network of width %d. It goes to %s.",
        amount(options.steps, "step"),
        amount(options.batch_size, "image"),
        "x".join(map(str, real.image_shape[1:])),
        options.width,
        out,
    )
    large = {
        "--steps": options.steps > TrainingConfig.trial().steps,
        "--image-size": max(real.image_shape) > _SMALL,
    }
    if stated := [option for option, too_large in large.items() if too_large]:
        logging.getLogger("synthaug").warning(
            "It uses %s as given, which is more than a trial needs: leave it out to be done in "
            "minutes.",
            " and ".join(f"`{option}`" for option in stated),
        )


def _begins_anew(kind: str) -> bool:
    return kind in METHODS and parts.BaseOptions not in METHODS[kind][1]


_FEW_STEPS = 300
"""A network that begins anew and takes fewer draws little but noise."""


def _warn_of_few_steps(kind: str, config: TrainingConfig) -> None:
    """Says before a training what so few steps come to."""
    if _begins_anew(kind) and config.steps < _FEW_STEPS:
        logging.getLogger("synthaug").warning(
            "So few steps (%d) teach a new network little: expect noise, or blurred shapes at "
            "best. The default is %s steps.",
            config.steps,
            f"{TrainingConfig.steps:,}",
        )


def _foreign(taken: tuple[Any, ...]) -> list[str]:
    """The options that a kind of training does not take."""
    meant = {field.name for part in (*EVERY, *taken) for field in fields(part)}
    return [field.name for field in fields(TrainOptions) if field.name not in meant]


def _check(kind: str, foreign: list[str], options: TrainOptions, call: Call) -> None:
    """Refuses options without meaning, and too few of them, before anything is loaded."""
    given = [name for name in foreign if name in call.stated]
    if kind.startswith("--method") and "condition" in call.stated:
        given.append("condition")
    if given:
        option = given[0].replace("_", "-")
        owners = [
            owner
            for owner, (_, taken) in METHODS.items()
            if any(field.name == given[0] for part in taken for field in fields(part))
        ]
        belongs = f"It belongs to {', '.join(owners)}. " if owners else ""
        meant = f"{kind} of --method diffusion" if kind.startswith("--condition") else kind
        raise ValueError(f"`--{option}` has no meaning with {meant}. {belongs}Leave it out.")
    needed, what = NEEDS.get(kind, (None, ""))
    if needed and vars(options)[needed] is None:
        raise ValueError(f"`{kind}` needs `--{needed.replace('_', '-')}`, {what}.")
    chooses = (options.validation is not None, options.features is not None)
    if any(chooses) and not (all(chooses) and options.snapshots):
        raise ValueError(
            "To choose a snapshot, give `--snapshots`, `--validation` and `--features`, all three."
        )
    if options.width < 1:  # whose name in Python is `channels`, which is another option here
        raise ValueError(f"`width` must be at least 1, got {options.width}.")


def _config(options: TrainOptions, kind: str) -> TrainingConfig:
    """How to optimize; the default learning rate depends on what is trained."""
    rate = options.learning_rate
    if rate is None:
        tuned = kind == "--method finetune"
        adaptation = configured(FineTuningConfig, options)
        rate = adaptation.learning_rate if tuned else TrainingConfig.learning_rate
    config: TrainingConfig = configured(TrainingConfig, options, learning_rate=rate)
    return config


def _score(options: TrainOptions, real: Any) -> Any:
    """The Fréchet distance to as many validation images as there are, but for remainders."""
    from synthaug.synthesizers import frechet_score

    images = options.shaped(options.validation, real.image_shape, real.classes)
    per_class = max(1, min(len(images), 10_000) // len(real.classes))
    networks = ExtractorOptions(trust_torchscript=options.trust_torchscript, device=options.device)
    extractor = networks.extractor(options.features)
    return frechet_score(images, extractor, per_class=per_class)
