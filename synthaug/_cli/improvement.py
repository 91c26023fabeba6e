"""The command that finds out which synthetic images help."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from synthaug._cli.arguments import names, next_line, spoken_of
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import config_options, configured, defaults
from synthaug._cli.evaluation import AdversarialOptions
from synthaug._cli.options import FileOptions, ImageOptions, NetworkOptions
from synthaug._cli.publishing import published
from synthaug._cli.sweep import ClassifierOptions
from synthaug._training.classifier_config import ClassifierConfig
from synthaug.improvement._config import ImproveConfig

IMPROVE = defaults("improvement._run:improve")

if TYPE_CHECKING:
    from synthaug.improvement._report import ImproveReport

    SearchOptions: TypeAlias = Any
else:
    SearchOptions = config_options(
        "The search", ImproveConfig, without=("generator", "classifiers", "channels", "adversarial")
    )


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The candidates.

    Args:
        checkpoint: Generators that are trained already: directories in diffusers layout, or
            hub:OWNER/NAME.
        cache: Caches of images that are there already.
        generator_steps: Optimizer steps of the generator that is trained if there is neither.
        width: Channels of its first level.
    """

    checkpoint: str | list[str] | None = None
    cache: str | list[str] | None = None
    generator_steps: int = 3000
    width: int = ImproveConfig.channels

    def recipes(self, network: NetworkOptions) -> dict[str, Any] | None:
        """Generators and caches by their names; `None` if one is to be trained."""
        from synthaug._cache import SynthCache
        from synthaug.synthesizers._kinds import load

        if self.checkpoint is None and self.cache is None:
            return None
        found: dict[str, Any] = {}
        for name in names(self.checkpoint or []):
            found[name] = load(name, **network.loading())
        for name in names(self.cache or []):
            found[name] = SynthCache(name)
        return found


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Other images.

    Args:
        validation: Images to choose by; by default some of DATA are set aside.
        test: Images that are looked at once, at the end; by default some of DATA are set aside.
    """

    validation: str | None = IMPROVE.validation
    test: str | None = IMPROVE.test

    def opened(self, files: FileOptions, real: Any) -> dict[str, Any]:
        """Arguments of `improve`; images are brought to the shape of the training images."""
        shape, classes = real.image_shape, real.classes
        return {
            name: None if spec is None else files.shaped(spec, shape, classes)
            for name, spec in vars(self).items()
        }


def improve(
    data: str,
    out: str,
    splits: SplitOptions,
    recipes: RecipeOptions,
    search: SearchOptions,
    classifiers: ClassifierOptions,
    attack: AdversarialOptions,
    network: NetworkOptions,
    images: ImageOptions,
    files: FileOptions,
    *,
    dry_run: bool = IMPROVE.dry_run,
    call: Call,
) -> Result:
    """Find out which synthetic images help a classifier, if any; run again to go on.

    synthaug improve folder:photos improved --minutes 60

    Args:
        data: Labeled training images.
        out: Folder for all that is made, and the report: OUT/improve.html and OUT/improve.json.
        splits: Images to choose by and to test on.
        recipes: Where synthetic images come from.
        search: How recipes are tried.
        classifiers: Settings of the classifiers.
        attack: Adversarial training; the accuracy under attack then decides.
        network: The generator's network.
        images: Their shape.
        files: For folders.
        dry_run: Measure what one step costs, say what would be done, and stop.
    """
    from synthaug.improvement._run import improve as run

    real = images.load(data, files)
    with spoken_of(steps="generator_steps"):
        generator = replace(
            ImproveConfig().generator,
            steps=recipes.generator_steps,
            decay_steps=max(0, recipes.generator_steps // 3),
            precision=network.precision,
            device=network.device,
        )
    if recipes.width < 1:  # whose name in Python is `channels`, which is another option here
        raise ValueError(f"`width` must be at least 1, got {recipes.width}.")
    config = configured(
        ImproveConfig,
        search,
        channels=recipes.width,
        adversarial=attack.config(),
        generator=generator,
        classifiers=ClassifierConfig(**vars(classifiers), device=network.device),
    )
    report = run(
        real,
        out,
        recipes=recipes.recipes(network),
        config=config,
        dry_run=dry_run,
        **splits.opened(files, real),
    )
    record = {
        "verdict": report.verdict,
        "reasons": report.reasons,
        "chosen": report.chosen,
        "share": report.share,
        "lines": report.lines(),
    }
    next = _next(report, call)
    return published(report, call, str(Path(out) / "improve"), record, next=next)


def _next(report: "ImproveReport", call: Call) -> str:
    """Names the next step after an answer."""
    if report.verdict == "planned":
        return f"Next: {call.brief.without({'dry_run'}).line}"
    if report.verdict == "use":
        return next_line("cite", [one for one in report.rounds if one.kept][-1].cache)
    if report.verdict == "none":
        return "Next: train on the real images alone."
    return "Next: give more images with --validation and --test, in another folder OUT."
