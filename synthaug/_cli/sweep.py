"""The command that searches sampling parameters."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synthaug._cli.arguments import load, names
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import Declared, options, row_parameters
from synthaug._cli.judgement import written
from synthaug._cli.options import ClassifierOptions, NetworkOptions
from synthaug._training.classifier_config import ClassifierConfig
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The search.

    Args:
        guidance: Guidance scales of the second stage; 1.0,1.25,1.5,1.75,2.0 by default.
        per_class: Images of every class per setting.
        guidance_per_class: The same in the second stage; by default as many.
        select: What the second stage chooses by: cas, the accuracy of classifiers trained on the
            images, or frechet.
        steps: Optimiser steps of every classifier.
        force: Take the Fréchet distance of fewer images than twice the features.
        batch_size: Images per batch while drawing; does not change them.
        seed: Base seed.
    """

    guidance: float | list[float] | None = None
    per_class: int = 100
    guidance_per_class: int | None = None
    select: Literal["cas", "frechet"] = "cas"
    steps: int = ClassifierConfig.steps
    force: bool = False
    batch_size: int = 64
    seed: int = 0

    def config(self, classifiers: ClassifierOptions, device: str | None) -> Any:
        """`SweepConfig`, with the options of the classifiers."""
        from synthaug._sweep.config import SweepConfig

        own = asdict(self) | asdict(classifiers)
        training = {name: own.pop(name) for name in ("steps", "model", "horizontal_flip")}
        del own["guidance"]
        return SweepConfig(**own, classifiers=ClassifierConfig(**training, device=device))


_GRID: list[Declared] = [
    *SAMPLER_SETTINGS,
    *(p for p in row_parameters() if not p.needs_sources and p.type is not bool),
]

if TYPE_CHECKING:

    class GridOptions:
        """What synthesizers declare."""

else:
    GridOptions = options(
        "The grid. Of all of these, the combinations are tried", _GRID, swept=True
    )


def sweep(
    checkpoint: str,
    real: str,
    grid: GridOptions,
    search: SweepOptions,
    classifiers: ClassifierOptions,
    network: NetworkOptions,
    *,
    validation: str | None = None,
    test: str | None = None,
    out: str = "sweep",
    features: str | None = None,
    call: Call,
) -> Result:
    """Search the sampling parameters that make the best training images; run again to go on.

    synthaug sweep runs/cifar10 folder:cifar10/train --validation folder:cifar10/validation

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        real: The images that it was trained on. All real images are brought to its image size.
        grid: What is varied.
        search: How it is compared.
        classifiers: What is trained on images.
        network: What draws them.
        validation: Images to choose by: neither training images nor test images.
        test: Test images, only to see that they share no image with the validation split.
        out: Writes OUT.html, OUT.json and OUT.png, and keeps everything it made in the directory
            OUT.
        features: Of the Fréchet distance: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum; by default those of a classifier trained on REAL.
    """
    from synthaug._support.devices import choose_device
    from synthaug.features import named
    from synthaug.sweeps import default_grid
    from synthaug.sweeps import sweep as run
    from synthaug.synthesizers._kinds import load as load_checkpoint

    if validation is None:
        raise ValueError(
            "`validation` is missing: images to choose by, which are neither training images nor "
            "test images."
        )
    synthesizer: Any = load_checkpoint(checkpoint, **network.loading())
    shape, known = synthesizer.image_shape, synthesizer.classes
    guidance = search.guidance
    report = run(
        synthesizer,
        real=load(real, shape, known),
        validation=load(validation, shape, known),
        test=None if test is None else load(test, shape, known),
        output_dir=out,
        grid={**default_grid(synthesizer), **_values(grid)},
        guidance=[guidance] if isinstance(guidance, float | int) else guidance,
        features=None
        if features is None
        else named(features, device=choose_device(network.device)),
        config=search.config(classifiers, network.device),
    )
    call = call.having(precision=report.settings["precision"])
    report = replace(report, settings={**report.settings, "command": call.line})
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    report.plot(f"{out}.png")
    chosen = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in report.chosen.items())
    return Result(
        record={
            "chosen": report.chosen,
            "select": report.select,
            "settings": len(report.coarse) + len(report.fine),
            **written(out, "png"),
        },
        text=f"{report}\nReport: {out}.html, {out}.json, {out}.png\n"
        f"Next: synthaug generate {checkpoint} {Path(out).name}.h5 --per-class 500 {chosen}",
    )


def _values(grid: GridOptions) -> dict[str, list[Any]]:
    """The values of the options that were given."""
    given = {one.name: getattr(grid, one.name) for one in _GRID}
    found = {}
    for name, value in given.items():
        if value is not None:
            values = names(value) if isinstance(value, str) else value
            found[name] = [
                None if one == "none" else one
                for one in (values if isinstance(values, list) else [values])
            ]
    return found
