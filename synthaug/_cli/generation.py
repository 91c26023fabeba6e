"""Commands that draw images with a generator."""

import json
import os
import shlex
import time
from dataclasses import asdict, dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synthaug._cli.arguments import contents, next_audit, spoken_of
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults, drawing_options, row_parameters, settings
from synthaug._cli.options import (
    FileOptions,
    LicenseOptions,
    NetworkOptions,
    RayOptions,
    StorageOptions,
)
from synthaug._cli.parser import meant, option
from synthaug.synthesizers._parameters import raise_problems
from synthaug.synthesizers._published import published
from synthaug.synthesizers._registry import METHODS
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS, split_sampler

PLAN = defaults("synthesizers._base:AbstractSynthesizer.plan")
GUIDANCE = defaults("guidance._classifier:ClassifierGuidance")
GENERATION = defaults("_generate.run:generate")
COST = defaults("_generate.cost:estimate_cost")
FILES = defaults("synthesizers._loading:LoadingConfig")
PROMPTS = defaults("synthesizers.pipeline:FromPipeline.__init__")


@dataclass(frozen=True, kw_only=True)
class AmountOptions:
    """How many images. Of several values of one option they use each in turn.

    Args:
        per_class: Images of every class.
        ratio: Images per image of --source, or per image that was inverted, with their class
            proportions.
        counts: Images of each class by name, for example '{"cat": 500, "dog": 200}'.
        fill_to: Draw the images that each class of --source lacks to reach this number, or the
            largest class.
        recipe: A published way to draw training images, with the numbers of its paper:
            real-guidance, da-fusion, azizi or diffusion-inversion. Options that are given count
            more.
    """

    per_class: int | None = PLAN.per_class
    ratio: float | None = PLAN.ratio
    counts: dict[str, int] | None = PLAN.counts
    fill_to: int | Literal["largest"] | None = PLAN.fill_to
    recipe: str | None = None


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """Images that a checkpoint does not hold.

    Args:
        source: Data set of real images: to start from with --strength or --severity, and to count
            for --ratio and --fill-to. They are brought to the checkpoint's image size and channels.
        others: For animorphosis: the images of another set that it was trained with.
    """

    source: str | None = None
    others: str | None = None


def _texts(given: str | list[str] | None) -> Any:
    """Prompts as Python takes them, out of a template, a list in JSON, or `file:FILE`."""
    if not isinstance(given, str):
        return given
    if given.startswith("file:"):
        return Path(given.removeprefix("file:")).expanduser()
    return json.loads(given) if given.startswith("[") else given


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Any diffusers pipeline, with prompts.

    Args:
        pipeline: Draw with the checkpoint's own pipeline. Without it that happens where we have no
            loop of our own, or another option of these is given.
        prompts: A template, in which {} stands for the class name; several as a list in JSON; or
            file:FILE with captions (.json, .csv or .txt). Each class uses its own in turn.
        attributes: Values of other places in templates, '{"time": ["dawn", "night"]}' for {time};
            every combination is a prompt of its own.
        negative_prompt: One for all images, or several as for --prompts.
        image_inputs: How arguments that are images are made from those of --source, for example
            '{"image": "edges"}' for a ControlNet. Known are source, edges and box.
        row_by_row: Call the pipeline for each image alone: where its images depend on the others
            of a call.
        arguments: Arguments of every call of the pipeline, such as '{"height": 512}'.
        variant: Weights of this name where there are any, such as fp16.
        lora: A .safetensors file with low-rank adapters, which are merged into the weights.
        offload: Keep the networks in the memory of the CPU, and move each to the GPU while it
            works.
    """

    pipeline: bool = False
    prompts: str | list[str] = PROMPTS.prompts
    attributes: dict[str, list[str]] | None = None
    negative_prompt: str | list[str] | None = None
    image_inputs: dict[str, str] | None = None
    row_by_row: bool = PROMPTS.row_by_row
    arguments: dict[str, Any] | None = None
    variant: str | None = FILES.variant
    lora: str | None = FILES.lora
    offload: bool = FILES.offload

    def asking_for_pipeline(self) -> list[str]:
        """The options that were given and that only a pipeline of diffusers can follow."""
        usual = vars(PipelineOptions())
        return [name for name, default in usual.items() if vars(self)[name] != default]

    def loading_pipeline(self) -> dict[str, Any]:
        """Arguments of `FromPipeline.from_pretrained`."""
        stated = {
            "prompts": _texts(self.prompts),
            "negative_prompt": _texts(self.negative_prompt),
            "attributes": self.attributes,
            "image_inputs": self.image_inputs,
            "row_by_row": self.row_by_row,
        }
        return {
            **{name: value for name, value in stated.items() if value is not None},
            **(self.arguments or {}),
        }


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Images and seeds. What a kind of checkpoint does not know, it refuses.

    Args:
        image_size: Height and width, if not the checkpoint's own.
        null_class: The last class of the network is the null class of guidance, and has no name in
            --classes.
        seed: Base seed.
    """

    image_size: int | None = None
    null_class: bool = False
    seed: int = PLAN.seed

    def given(self, *options: str) -> dict[str, Any]:
        """Returns the options that were given; `none` as the value None."""
        stated = {name: vars(self)[name] for name in options if vars(self)[name] is not None}
        return {name: None if value == "none" else value for name, value in stated.items()}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Guidance by a classifier of yours.

    Args:
        classifier: torchscript:FILE, a classifier of clean images in [-1, 1] that returns logits in
            the order of the checkpoint's classes.
        criterion: The quantity to raise: the entropy of its probabilities, the loss of the image's
            own label, or the margin by which another class is ahead.
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
        with spoken_of(scale="classifier_scale"):
            guidance = ClassifierGuidance(
                load_torchscript(Path(path), trusted=trusted, device=place).eval(),
                criterion=self.criterion,
                scale=self.classifier_scale,
                through_denoiser=self.through_denoiser,
            )
        with spoken_of(model="classifier"):
            return synthesizer.with_settings(classifier_guidance=guidance)


if TYPE_CHECKING:

    @dataclass(frozen=True, kw_only=True)
    class PlanOptions(
        AmountOptions,
        VariantOptions,
        GuidanceOptions,
        PipelineOptions,
        FileOptions,
        NetworkOptions,
        SeedOptions,
    ):
        """Options of every plan; synthesizers declare the others."""

else:
    PlanOptions = make_dataclass(
        "PlanOptions",
        [],
        bases=(
            AmountOptions,
            *drawing_options(),
            VariantOptions,
            GuidanceOptions,
            PipelineOptions,
            FileOptions,
            NetworkOptions,
            SeedOptions,
        ),
        kw_only=True,
        frozen=True,
        namespace={"__module__": __name__, "__doc__": "What `plan` and `generate` draw."},
    )


def _expanded(options: PlanOptions) -> PlanOptions:
    """The options with the numbers of `--recipe`, where no others were given, or make them void."""
    if options.recipe is None:
        return options
    recipe = published(options.recipe)
    amounts = options.given("per_class", "ratio", "counts", "fill_to")
    numbers = {**({} if amounts else recipe.quota), **recipe.parameters, **recipe.settings}
    if vars(options)["scheduler"] is not None:
        from synthaug.samplers import SCHEDULERS

        name = vars(options)["scheduler"]
        for setting in settings():
            if setting.scheduler and SCHEDULERS.get(name, name) != SCHEDULERS[setting.scheduler]:
                numbers.pop(setting.name, None)
    missing = {name: value for name, value in numbers.items() if vars(options)[name] is None}
    return replace(options, **missing)


def _synthesizer(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, str]:
    """The synthesizer, the data set of `--source`, and what draws, with the reason."""
    _check_own(checkpoint, options)
    from synthaug.denoisers import OWN_PIPELINE
    from synthaug.errors import CheckpointError
    from synthaug.synthesizers._kinds import PIPELINE, foreign_pipeline, kind_of

    name, stated = kind_of(checkpoint), options.asking_for_pipeline()
    reason = "We have no loop for it."
    if name != PIPELINE and not stated:
        try:
            return *_ours(checkpoint, options), f"Drawn by {name}."
        except CheckpointError as error:
            if OWN_PIPELINE not in str(error):
                raise
            reason = str(error).replace(OWN_PIPELINE, "").strip()
    elif foreign_pipeline(checkpoint) is None:
        reason = f"`--{stated[0].replace('_', '-')}` was given."
    synthesizer, source = _pipeline(checkpoint, options)
    kind = type(synthesizer.pipeline).__name__
    return synthesizer, source, f"Drawn by the checkpoint's own {kind}. {reason}"


def _check_own(checkpoint: str, options: PlanOptions) -> None:
    """Refuses options that only other synthesizers have, before anything that takes time is
    imported; of a checkpoint that does not say what it is for, they are refused when it is loaded.
    """
    folder = Path(checkpoint).expanduser()
    try:
        record = json.loads((folder / "synthaug.json").read_bytes())
        inverted = (folder / "inversion.json").is_file()
        method = METHODS["DiffusionInversion" if inverted else record["synthesizer"]]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if method.wraps or options.asking_for_pipeline():
        return
    known = [*(one.name for one in method.row_parameters), *(one.name for one in method.settings)]
    known += [one.name for one in SAMPLER_SETTINGS if method.has_sampler]
    names = [one.name for one in settings()]
    names += [one.name for one in row_parameters() if not one.needs_sources]
    given, shown = options.given(*names), [*map(option, known)]
    strange = [
        f"There is no {option(name)} for {checkpoint}, which is drawn by {method.name}."
        f"{meant(option(name), shown)} It knows: {', '.join(shown)}."
        for name in given
        if name not in known
    ]
    if strange:  # values that do not fit are said with them, and otherwise when rows are planned
        unfit = (one.problem(given[one.name]) for one in method.row_parameters if one.name in given)
        raise_problems([*strange, *filter(None, unfit)])


def _ours(checkpoint: str, options: PlanOptions) -> tuple[Any, Any]:
    """The synthesizer that a checkpoint is for, and the data set of `--source`."""
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
        raise ValueError(
            f"{checkpoint} is a checkpoint for {name!r}, which this version of synthaug "
            "does not know. Upgrade synthaug, or give another checkpoint."
        )
    changes = options.given("image_size", *(setting.name for setting in settings()))
    if METHODS[name].has_sampler:
        sampler, changes = split_sampler(changes)
        changes |= {"sampler": sampler} if sampler else {}
    if options.null_class:
        changes["null_class"] = True
    if options.others is not None:
        changes["degradation"] = _animorphosis(checkpoint, options.others, options)
    synthesizer: Any = load_checkpoint(checkpoint, **options.loading(), **changes)
    row = options.given(*(p.name for p in row_parameters() if p.needs_sources))
    source = None
    if row and not isinstance(synthesizer, AbstractSourcedSynthesizer):
        raise ValueError(
            f"`--{next(iter(row))}` starts from real images, which a {name} cannot do. "
            "Leave it out."
        )
    if options.source is not None:
        if synthesizer.has_sources:
            raise ValueError(f"`--source`: a {name} has its real images already. Leave it out.")
        source = options.shaped(
            options.source, synthesizer.image_shape, classes=synthesizer.classes
        )
        always = all(p.needs_sources for p in METHODS[name].row_parameters)
        if row or always:
            synthesizer = synthesizer.with_sources(source)
        else:
            _check_counted(options)
    elif row:
        raise ValueError(f"`--{next(iter(row))}` needs `--source`, the real images to start from.")
    elif not synthesizer.has_sources:
        amounts = options.given("per_class", "ratio", "counts", "fill_to").keys()
        if amounts == {"ratio"}:
            raise ValueError(
                "`--ratio` is a multiple of the number of real images. Give them with `--source`."
            )
        if amounts == {"fill_to"}:
            raise ValueError(
                "`--fill-to` adds to the real images of each class. Give them with `--source`."
            )
    return options.guided(synthesizer, options.device), source


def _pipeline(checkpoint: str, options: PlanOptions) -> tuple[Any, Any]:
    """The checkpoint's own pipeline as a synthesizer, and the data set of `--source`."""
    from synthaug.synthesizers import FromPipeline, LoadingConfig

    arguments = {**options.given(*(one.name for one in settings())), **options.loading_pipeline()}
    if options.others is not None:
        raise ValueError(
            "`others` is for animorphosis, which a pipeline does not do. Leave it out."
        )
    if options.null_class:
        raise ValueError("`null_class` is for our own loop, not for a pipeline. Leave it out.")
    synthesizer = FromPipeline.from_pretrained(
        checkpoint,
        **options.loading(),
        files=LoadingConfig(variant=options.variant, lora=options.lora, offload=options.offload),
        **arguments,
    )
    size = options.image_size
    if size is not None and {"height", "width"} <= synthesizer.accepted:
        synthesizer = synthesizer.with_settings(height=size, width=size)
    elif size is not None and options.source is None:
        raise ValueError(f"`image_size`: {checkpoint} draws images of one size. Leave it out.")
    row = options.given(*(p.name for p in row_parameters() if p.needs_sources))
    started = bool(row or options.image_inputs or synthesizer.needs_images)
    if options.source is None:
        if started:
            about = f"`--{next(iter(row))}` needs" if row else "The pipeline starts from"
            raise ValueError(f"{about} real images. Give them with `--source`.")
        return options.guided(synthesizer, options.device), None
    shape = synthesizer.image_shape if size is None else (3, size, size)
    source = options.shaped(options.source, shape, classes=synthesizer.classes)
    if started:
        synthesizer = synthesizer.with_sources(source)
    else:
        _check_counted(options)
    return options.guided(synthesizer, options.device), source


def _started(rows: Any, source: Any) -> str:
    """Says of counted real images that no image starts from them."""
    if source is None or bool((rows.at("source", [0]) >= 0).all()):
        return ""
    return (
        "\nThe real images were counted, and no image starts from one. For variants of them, give "
        "`--strength`, for example 0.5."
    )


def _trained_on(cache: Any, name: str | None, source: Any) -> str | None:
    """The name of the real images if the generator learned from just these."""
    from synthaug._images.source import recorded

    known = recorded(cache.manifest.get("trained_on"), "fingerprint")
    return name if source is not None and source.fingerprint in known else None


def _check_counted(options: PlanOptions) -> None:
    """Refuses real images that nothing starts from, and that are not counted either."""
    if not options.given("ratio", "fill_to"):
        raise ValueError(
            "`--source` has no effect: no image starts from a real one without `--strength`, and "
            "only `--ratio` and `--fill-to` count real images. Give one of these, or leave it out."
        )


def _animorphosis(checkpoint: str, others: str, files: FileOptions) -> Any:
    """The degradation of a checkpoint that does not hold the images of the other set."""
    from synthaug._training.checkpoints import read_json, reading, resolve
    from synthaug.degradations import Animorphosis

    file = resolve(checkpoint) / "synthaug.json"
    saved = read_json(file) if file.exists() else {}
    degradation = saved.get("degradation", {})
    if not isinstance(degradation, dict) or degradation.get("name") != "Animorphosis":
        raise ValueError(
            f"`others` is for animorphosis, and {checkpoint} was trained with another "
            "degradation. Leave it out."
        )
    with reading(file, "Train again."):
        shape, levels = tuple(saved["image_shape"]), degradation["num_levels"]
    return Animorphosis(others=files.shaped(others, shape), num_levels=levels)


def _decided(out: str, options: PlanOptions, *, elsewhere: bool) -> PlanOptions:
    """The options with the precision that "auto" stands for: that of the cache, if there is one.

    On a CPU of its own the job leaves it to the network; `elsewhere` the first machine decides.
    """
    from synthaug._cache import SynthCache
    from synthaug._support.devices import choose_device
    from synthaug._support.precision import recorded_precision, resolve_precision

    begun = None
    if options.precision == "auto" and Path(out).exists():
        begun = recorded_precision(SynthCache(out).manifest["recipe"]["settings"])
    device = choose_device(options.device)
    if begun is None and device.type == "cpu" and not elsewhere:
        return options
    return replace(options, precision=resolve_precision(options.precision, device, begun=begun))


def _load_there(folder: str, checkpoint: str, options: PlanOptions) -> Any:
    """The synthesizer in an actor, where paths shall mean the same as here."""
    os.chdir(folder)
    return _synthesizer(checkpoint, options)[0]


def _prepare(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, Any, str]:
    """The synthesizer, its plan, the data set of `--source`, and a sentence about what draws."""
    synthesizer, source, drawn_by = _synthesizer(checkpoint, options)
    plan = synthesizer.plan(
        None if source is None else source.targets,
        per_class=options.per_class,
        ratio=options.ratio,
        counts=options.counts,
        fill_to=options.fill_to,
        seed=options.seed,
        **options.given(*(p.name for p in row_parameters())),
    )
    if options.recipe is not None:
        drawn_by = f"{drawn_by}\n{published(options.recipe)}"
    return synthesizer, plan, source, drawn_by


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
        options: The images to draw.
        estimate: Draw for some seconds, at most about 30, to measure the time.
        devices: Number of devices that draw in parallel, each like the one here.
        batch_size: Images per batch.
    """
    started = time.perf_counter()
    from synthaug._generate.cost import estimate_cost, evaluations_per_second
    from synthaug._plan import REQUIRED
    from synthaug._printable import printable_line
    from synthaug._support.progress import bar

    synthesizer, rows, _, drawn_by = _prepare(checkpoint, _expanded(options))
    rate, startup = None, 0.0
    if estimate:
        startup = time.perf_counter() - started  # `generate` loads the same
        with bar(1, "measure the speed", "part") as shown:
            rate = evaluations_per_second(synthesizer, rows, batch_size=batch_size)
            shown.update()
    cost = estimate_cost(
        len(rows),
        synthesizer.image_shape,
        evaluations_per_image=float(synthesizer.evaluations(rows).mean()),
        evaluations_per_second=rate,
        devices=devices,
        parameters=len(set(rows.columns) - set(REQUIRED)),
        startup_seconds=startup,
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
        text="\n".join(
            [str(rows), drawn_by, str(cost), *lines, f"Next: {_drawing(call, options).line}"]
        ),
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
    storage: StorageOptions,
    licenses: LicenseOptions,
    *,
    call: Call,
) -> Result:
    """Draw synthetic images into a cache; run again to resume.

    synthaug generate runs/cifar10 cifar10.h5 --per-class 500 --num-inference-steps 25
    synthaug generate runs/cifar10 more.h5 --ratio 1 --source folder:cifar10/train --strength 0.5

    Args:
        checkpoint: Directory in diffusers layout, trained by us or not; or hub:OWNER/NAME.
        out: The cache, an HDF5 file. Samples of it are shown in a picture of that name with .png.
            Or a URL, such as s3://bucket/cifar.h5, into which it is put when it is whole.
        options: The images to draw.
        work: How it is done.
        ray: How to spread over a cluster.
        storage: How the cache stores images.
        licenses: For the record.
    """
    from synthaug._cache import State, contact_sheet
    from synthaug._cache.remote import work_file
    from synthaug._generate import generate as fill
    from synthaug._support.files import check_outputs, write_picture
    from synthaug._support.precision import recorded_precision
    from synthaug._support.reading import is_remote

    place = str(work_file(out)) if is_remote(out) else out
    sheet = str(Path(place).with_suffix(".png")) if place == out else None
    check_outputs(place)
    options = _expanded(_decided(place, options, elsewhere=work.engine == "ray"))
    engine = ray.engine(work.engine, partial(_load_there, os.getcwd(), checkpoint, options))
    if work.engine == "ray":  # the actors draw: here nothing should take a GPU
        options = replace(options, device="cpu")
    synthesizer, rows, source, drawn_by = _prepare(checkpoint, options)
    used = recorded_precision(synthesizer.recipe()["settings"]) or options.precision
    cache = fill(
        synthesizer,
        rows,
        out,
        batch_size=work.batch_size,
        engine=engine,
        shard=work.shard,
        source=source,
        license=licenses.record(checkpoint),
        command=call.having(precision=used).line,
        encoding=storage.encoding,
        wait=work.wait,
    )
    picture, others = None, (cache.state == State.PENDING).any()
    if sheet is not None and cache.done.any() and not others:  # not if all were withdrawn
        picture = sheet
        write_picture(picture, contact_sheet(cache, columns=8, most_classes=10))
    return Result(
        record={**contents(cache), "picture": picture},
        text=f"{cache}\n{drawn_by}"
        + _started(rows, source)
        + (f"\nSamples: {picture}" if picture else "")
        + ("" if sheet else f"\nSamples: synthaug cache info {shlex.quote(out)} --sheet OUT.png")
        + (
            "\nThis share is drawn. The last process to end puts all together. Next: run the other "
            "shares, if they do not run yet."
            if others
            else f"\n{next_audit(out, _trained_on(cache, options.source, source))}"
        ),
    )
