"""The command that searches sampling parameters."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from synthaug._cli.arguments import names
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import (
    Declared,
    config_options,
    configured,
    defaults,
    options,
    row_parameters,
)
from synthaug._cli.evaluation import too_short
from synthaug._cli.options import ExtractorOptions, FileOptions, NetworkOptions
from synthaug._cli.publishing import published
from synthaug._training.classifier_config import ClassifierConfig
from synthaug.sweeps._config import SweepConfig
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS

SWEEP = defaults("sweeps._run:sweep")
_GRID: list[Declared] = [
    *SAMPLER_SETTINGS,
    *(p for p in row_parameters() if not p.needs_sources and p.type is not bool),
]

if TYPE_CHECKING:
    SearchOptions: TypeAlias = Any

    class GridOptions:
        """Options that synthesizers declare."""

else:
    SearchOptions = config_options("The comparison", SweepConfig, without=("classifiers",))
    GridOptions = options(
        "The grid. Of all of these, the combinations are tried", _GRID, swept=True
    )


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """The choice.

    Args:
        guidance: Guidance scales of the second stage; low ones by default.
        validation: Images to choose by: neither training images nor test images.
        test: Test images, only to see that they share no image with the validation split.
        features: Features of the Fréchet distance: torchscript:FILE, torchvision:NAME, timm:NAME,
            pixels or spectrum; by default those of a classifier trained on REAL.
        trust_torchscript: Run torchscript:FILE, a program that can read and write your files.
        out: Writes OUT.html, OUT.json and OUT.png, and keeps everything it made in the directory
            OUT.
    """

    guidance: float | list[float] | None = SWEEP.guidance
    validation: str | None = None
    test: str | None = SWEEP.test
    features: str | None = SWEEP.features
    trust_torchscript: bool = False
    out: str = "sweep"


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """Classifiers.

    Args:
        model: small-cnn, resnet20, a torchvision model, or timm:NAME.
        steps: Optimizer steps of every classifier.
        horizontal_flip: Mirror half of the training images.
    """

    model: str = str(ClassifierConfig.model)
    steps: int = ClassifierConfig.steps
    horizontal_flip: bool = ClassifierConfig.horizontal_flip


def sweep(
    checkpoint: str,
    real: str,
    grid: GridOptions,
    choice: ChoiceOptions,
    search: SearchOptions,
    classifiers: ClassifierOptions,
    network: NetworkOptions,
    files: FileOptions,
    *,
    call: Call,
) -> Result:
    """Search the sampling parameters that make the best training images; run again to go on.

    synthaug sweep runs/cifar10 folder:cifar10/train --validation folder:cifar10/validation

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        real: The images that it was trained on. All real images are brought to its image size.
        grid: The settings to try.
        choice: How one of them is chosen.
        search: How it is compared.
        classifiers: Settings of the classifiers.
        network: The generator's network.
        files: For folders.
    """
    if choice.validation is None:
        raise ValueError(
            "`validation` is missing: images to choose by, which are neither training images nor "
            "test images."
        )
    from synthaug.sweeps import default_grid
    from synthaug.sweeps import sweep as run
    from synthaug.synthesizers._kinds import load as load_checkpoint

    synthesizer: Any = load_checkpoint(checkpoint, **network.loading())
    shape, classes = synthesizer.image_shape, synthesizer.classes
    guidance, out = choice.guidance, choice.out
    networks = ExtractorOptions(trust_torchscript=choice.trust_torchscript, device=network.device)
    training = ClassifierConfig(**vars(classifiers), device=network.device)
    report = run(
        synthesizer,
        real=files.shaped(real, shape, classes),
        validation=files.shaped(choice.validation, shape, classes),
        test=None if choice.test is None else files.shaped(choice.test, shape, classes),
        output_dir=out,
        grid={**default_grid(synthesizer), **_values(grid)},
        guidance=[guidance] if isinstance(guidance, float | int) else guidance,
        features=None if choice.features is None else networks.extractor(choice.features),
        config=configured(SweepConfig, search, classifiers=training),
    )
    report.plot(f"{out}.png")
    record = {
        "chosen": report.chosen,
        "select": report.select,
        "settings": len(report.coarse) + len(report.fine),
        "png": f"{out}.png",
    }
    call = call.having(precision=report.settings["precision"])
    result = published(report, call, out, record)
    chosen = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in report.chosen.items())
    command = f"synthaug generate {checkpoint} {Path(out).name}.h5 --per-class 500 {chosen}"
    by_accuracy = report.select == "cas"
    doubt = f"{too_short(classifiers.steps)}\n".lstrip() if by_accuracy else ""
    return replace(result, text=f"{result.text}, {out}.png\n{doubt}Next: {command}")


def _values(grid: GridOptions) -> dict[str, list[Any]]:
    """The values of the options that were given."""
    chosen = {}
    for name, value in vars(grid).items():
        if value is not None:
            values = names(value) if isinstance(value, str) else value
            chosen[name] = [
                None if one == "none" else one
                for one in (values if isinstance(values, list) else [values])
            ]
    return chosen
