"""Commands that draw images with a generator."""

import os
from dataclasses import asdict, dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synthaug._cli.arguments import contents, next_audit
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults, drawing_options, row_parameters, settings
from synthaug._cli.options import FileOptions, LicenceOptions, NetworkOptions, RayOptions
from synthaug.synthesizers._registry import METHODS
from synthaug.synthesizers._sampler import split_sampler

PLAN = defaults("synthesizers._base:AbstractSynthesizer.plan")
GUIDANCE = defaults("guidance._classifier:ClassifierGuidance")
GENERATION = defaults("_generate.run:generate")
COST = defaults("_generate.cost:estimate_cost")


@dataclass(frozen=True, kw_only=True)
class AmountOptions:
    """How many images. Of several values of one option they use each in turn.

    Args:
        per_class: Images of every class.
        ratio: Images per image of --source, or per image that was inverted, with their class
            proportions.
        counts: Images of each class by name, for example '{"cat": 500, "dog": 200}'.
    """

    per_class: int | None = PLAN.per_class
    ratio: float | None = PLAN.ratio
    counts: dict[str, int] | None = PLAN.counts


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """Images that a checkpoint does not hold.

    Args:
        source: Data set of real images: to start from with --strength or --severity, and to count
            for --ratio. They are brought to the checkpoint's image size and channels.
        others: For animorphosis: the images of another set that it was trained with.
    """

    source: str | None = None
    others: str | None = None


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Images and seeds. What a kind of checkpoint does not know, it refuses.

    Args:
        image_size: Height and width, if not the checkpoint's own.
        seed: Base seed.
    """

    image_size: int | None = None
    seed: int = PLAN.seed

    def given(self, *options: str) -> dict[str, Any]:
        """Those of these options that were given; `none` as the value None."""
        stated = {name: vars(self)[name] for name in options if vars(self)[name] is not None}
        return {name: None if value == "none" else value for name, value in stated.items()}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Guidance by a classifier of yours.

    Args:
        classifier: torchscript:FILE, a classifier of clean images in [-1, 1] that returns logits in
            the order of the checkpoint's classes.
        criterion: What is raised: the entropy of its probabilities, the loss of the image's own
            label, or the margin by which another class is ahead.
        classifier_scale: Length of a push in units of the noise of each step.
        through_denoiser: Take the gradient through the generator's network, for three evaluations
            a step; without it is cheaper and less exact.
        trust_torchscript: Run torchscript:FILE, a program that can read and write your files.
    """

    classifier: str | None = None
    criterion: Literal["entropy", "loss", "margin"] = GUIDANCE.criterion
    classifier_scale: float = GUIDANCE.scale
    through_denoiser: bool = GUIDANCE.through_denoiser
    trust_torchscript: bool = False

    def guided(self, synthesizer: Any, device: str | None) -> Any:
        """The synthesizer, steered by the classifier if there is one."""
        usual = GuidanceOptions()
        if self.classifier is None:
            for name, value in vars(usual).items():
                if vars(self)[name] != value:
                    raise ValueError(f"`{name}` needs `classifier`, the one that guides.")
            return synthesizer
        from synthaug._support.devices import choose_device
        from synthaug.features import load_torchscript
        from synthaug.guidance import ClassifierGuidance

        kind, _, path = self.classifier.partition(":")
        if kind != "torchscript" or not path:
            raise ValueError(f"`classifier` is {self.classifier!r}, expected torchscript:FILE.")
        trusted, place = self.trust_torchscript, choose_device(device)
        guidance = ClassifierGuidance(
            load_torchscript(Path(path), trusted=trusted, device=place).eval(),
            criterion=self.criterion,
            scale=self.classifier_scale,
            through_denoiser=self.through_denoiser,
        )
        return synthesizer.with_settings(classifier_guidance=guidance)


if TYPE_CHECKING:

    @dataclass(frozen=True, kw_only=True)
    class PlanOptions(
        AmountOptions, VariantOptions, GuidanceOptions, FileOptions, NetworkOptions, SeedOptions
    ):
        """What is always there; the other options are those that synthesizers declare."""

else:
    PlanOptions = make_dataclass(
        "PlanOptions",
        [],
        bases=(
            AmountOptions,
            *drawing_options(),
            VariantOptions,
            GuidanceOptions,
            FileOptions,
            NetworkOptions,
            SeedOptions,
        ),
        kw_only=True,
        frozen=True,
        namespace={"__module__": __name__, "__doc__": "What `plan` and `generate` draw."},
    )


def _synthesizer(checkpoint: str, options: PlanOptions) -> tuple[Any, Any]:
    """The synthesizer, and the data set of `--source`."""
    from synthaug.synthesizers._base import AbstractSourcedSynthesizer
    from synthaug.synthesizers._kinds import kind_of
    from synthaug.synthesizers._kinds import load as load_checkpoint

    name = kind_of(checkpoint)
    if name == "CascadeStage":
        raise ValueError(
            f"{checkpoint} is one stage of a cascade. Put it behind a base with `synthaug cascade "
            f"DIRECTORY BASE {checkpoint}`."
        )
    if name not in METHODS:
        raise ValueError(f"{checkpoint} is a checkpoint for {name!r}, which we do not know.")
    changes = options.given("image_size", *(setting.name for setting in settings()))
    if METHODS[name].has_sampler:
        sampler, changes = split_sampler(changes)
        changes |= {"sampler": sampler} if sampler else {}
    if options.others is not None:
        changes["degradation"] = _animorphosis(checkpoint, options.others, options)
    synthesizer: Any = load_checkpoint(checkpoint, **options.loading(), **changes)
    row = options.given(*(p.name for p in row_parameters() if p.needs_sources))
    source = None
    if row and not isinstance(synthesizer, AbstractSourcedSynthesizer):
        raise ValueError(f"`--{next(iter(row))}` starts from real images; a {name} cannot.")
    if options.source is not None:
        if synthesizer.has_sources:
            raise ValueError(f"`--source`: a {name} knows its real images. Leave it out.")
        source = options.shaped(
            options.source, synthesizer.image_shape, classes=synthesizer.classes
        )
        always = all(p.needs_sources for p in METHODS[name].row_parameters)
        if row or always:
            synthesizer = synthesizer.with_sources(source)
    elif row:
        raise ValueError(f"`--{next(iter(row))}` needs `--source`, the real images to start from.")
    elif (
        options.given("per_class", "ratio", "counts").keys() == {"ratio"}
        and not synthesizer.has_sources
    ):
        raise ValueError("`--ratio` needs `--source`, the real images that it is a multiple of.")
    return options.guided(synthesizer, options.device), source


def _animorphosis(checkpoint: str, others: str, files: FileOptions) -> Any:
    """The degradation of a checkpoint that does not hold the images of the other set."""
    from synthaug._training.checkpoints import read_json, reading, resolve
    from synthaug.degradations import Animorphosis

    file = resolve(checkpoint) / "synthaug.json"
    saved = read_json(file) if file.exists() else {}
    degradation = saved.get("degradation", {})
    if not isinstance(degradation, dict) or degradation.get("name") != "Animorphosis":
        raise ValueError(f"`others`: {checkpoint} knows no animorphosis. Leave it out.")
    with reading(file, "Train again."):
        shape, levels = tuple(saved["image_shape"]), degradation["num_levels"]
    return Animorphosis(others=files.shaped(others, shape), num_levels=levels)


def _decided(out: str, options: PlanOptions) -> PlanOptions:
    """The options with the precision that "auto" stands for: that of the cache, if there is one."""
    from synthaug._cache import SynthCache
    from synthaug._support.devices import choose_device
    from synthaug._support.precision import recorded_precision, resolve_precision

    begun = None
    if options.precision == "auto" and Path(out).exists():
        begun = recorded_precision(SynthCache(out).manifest["recipe"]["settings"])
    device = choose_device(options.device)
    return replace(options, precision=resolve_precision(options.precision, device, begun=begun))


def _load_there(folder: str, checkpoint: str, options: PlanOptions) -> Any:
    """The synthesizer in an actor, where paths shall mean the same as here."""
    os.chdir(folder)
    return _synthesizer(checkpoint, options)[0]


def _prepare(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, Any]:
    """The synthesizer, its plan, and the data set of `--source`."""
    synthesizer, source = _synthesizer(checkpoint, options)
    plan = synthesizer.plan(
        None if source is None else source.targets,
        per_class=options.per_class,
        ratio=options.ratio,
        counts=options.counts,
        seed=options.seed,
        **options.given(*(p.name for p in row_parameters())),
    )
    return synthesizer, plan, source


def plan(
    checkpoint: str,
    options: PlanOptions,
    *,
    estimate: bool = False,
    devices: int = COST.devices,
    batch_size: int = GENERATION.batch_size,
    call: Call,
) -> Result:
    """Show what `generate` would do, and what it would cost.

    synthaug plan runs/cifar10 --per-class 500 --guidance-scale 1.0,1.5 --estimate

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        options: What to draw.
        estimate: Draw for a few seconds to measure the time.
        devices: That will draw at the same time, each like the one here.
        batch_size: Images per batch.
    """
    from synthaug._generate.cost import estimate_cost, evaluations_per_second
    from synthaug._plan import REQUIRED
    from synthaug._printable import printable_line

    synthesizer, rows, _ = _prepare(checkpoint, options)
    rate = None
    if estimate:
        rate = evaluations_per_second(synthesizer, rows, batch_size=batch_size)
    cost = estimate_cost(
        len(rows),
        synthesizer.image_shape,
        evaluations_per_image=float(synthesizer.evaluations(rows).mean()),
        evaluations_per_second=rate,
        devices=devices,
        parameters=len(set(rows.columns) - set(REQUIRED)),
    )
    quota = dict(zip(rows.classes, rows.quota.tolist(), strict=True))
    lines = [f"  {printable_line(name)}: {count:,}" for name, count in quota.items()]
    return Result(
        record={
            "digest": rows.digest,
            "classes": quota,
            **asdict(cost),
            "device_hours": cost.device_hours,
        },
        text="\n".join([str(rows), str(cost), *lines, f"Next: {_drawing(call, options).line}"]),
    )


def _drawing(call: Call, options: PlanOptions) -> Call:
    """The call of `generate` that a call of `plan` was about, with what was stated alone."""
    usual = vars(PlanOptions())
    stated = {name: value for name, value in vars(options).items() if value != usual[name]}
    arguments = {"checkpoint": call.arguments["checkpoint"], "out": "CACHE.h5", **stated}
    return Call("generate", arguments, ("checkpoint", "out"))


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """The work.

    Args:
        batch_size: Images per batch; does not change them.
        engine: local draws in this process, torchrun in its ranks, ray on the actors of a cluster.
        shard: 1/3, 2/3 or 3/3 draws a third, as one task of a job array; the last one to end puts
            the parts together.
        wait: If another job fills the cache, wait until it has ended.
    """

    batch_size: int = GENERATION.batch_size
    engine: Literal["local", "torchrun", "ray"] = GENERATION.engine
    shard: str | None = GENERATION.shard
    wait: bool = GENERATION.wait


def generate(
    checkpoint: str,
    out: str,
    options: PlanOptions,
    work: WorkOptions,
    ray: RayOptions,
    licences: LicenceOptions,
    *,
    call: Call,
) -> Result:
    """Draw synthetic images into a cache; run again to resume.

    synthaug generate runs/cifar10 cifar10.h5 --per-class 500 --num-inference-steps 25
    synthaug generate runs/cifar10 more.h5 --ratio 1 --source folder:cifar10/train --strength 0.5

    Args:
        checkpoint: Directory in diffusers layout, trained by us or not; or hub:OWNER/NAME.
        out: The cache, an HDF5 file. Samples of it are shown in a picture of that name with .png.
        options: What to draw.
        work: How it is done.
        ray: How to spread over a cluster.
        licences: For the record.
    """
    from synthaug._cache import State, contact_sheet
    from synthaug._generate import generate as fill
    from synthaug._support.files import check_outputs, picture_format, write_picture

    sheet = str(Path(out).with_suffix(".png"))
    picture_format(sheet)
    check_outputs(out, sheet)
    options = _decided(out, options)
    engine = ray.engine(work.engine, partial(_load_there, os.getcwd(), checkpoint, options))
    if work.engine == "ray":  # the actors draw: here nothing should take a GPU
        options = replace(options, device="cpu")
    synthesizer, rows, source = _prepare(checkpoint, options)
    cache = fill(
        synthesizer,
        rows,
        out,
        batch_size=work.batch_size,
        engine=engine,
        shard=work.shard,
        source=source,
        licence=licences.record(),
        command=call.having(precision=options.precision).line,
        wait=work.wait,
    )
    picture, others = None, (cache.state == State.PENDING).any()
    if cache.done.any() and not others:  # not if all were withdrawn
        picture = sheet
        write_picture(picture, contact_sheet(cache, columns=8, most_classes=10))
    return Result(
        record={**contents(cache), "picture": picture},
        text=str(cache)
        + (f"\nSamples: {picture}" if picture else "")
        + (
            "\nThis share is drawn. The last process to end puts all together. Next: run the other "
            "shares, if they do not run yet."
            if others
            else f"\n{next_audit(out, options.source)}"
        ),
    )
