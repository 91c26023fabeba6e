"""`sweep`: checks first, then setting by setting, each kept as soon as it is done."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from synthaug._cache import SynthCache
from synthaug._cache.synthesizer import Declared
from synthaug._generate import generate
from synthaug._images.source import ImageSource, recorded
from synthaug._noise import counter_rng
from synthaug._plan import canonical_json, settings_digest
from synthaug._support.devices import choose_device
from synthaug._support.files import check_folder, whole_file, write_text
from synthaug._support.precision import Resolved, recorded_precision
from synthaug._support.progress import part
from synthaug._support.reading import parse_json, read_text
from synthaug._support.report import decode, encode
from synthaug._support.stopping import kept_at_stop
from synthaug._training.checkpoints import load_tensors, reading, write_tensors
from synthaug._training.loop import own_randomness
from synthaug._types import Indices, Labels
from synthaug.errors import MismatchError
from synthaug.evaluation import check_overlap, digests, evaluate, trained_classifier
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._comparison import common_classes, features_of, same_classes
from synthaug.evaluation._quality import Measure, QualityScores
from synthaug.features import (
    ExtractionConfig,
    Extractor,
    TorchModule,
    classifier,
    describe,
    to_model,
)
from synthaug.sweeps._config import SweepConfig
from synthaug.sweeps._report import SweepReport, SweepRow
from synthaug.sweeps._settings import Setting, Trial, combinations, default_grid, default_guidance

logger = logging.getLogger("synthaug")


def sweep(
    synthesizer: Any,
    *,
    real: Any,
    validation: Any,
    output_dir: str | Path,
    test: Any = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    guidance: Sequence[float] | None = None,
    features: Extractor | None = None,
    config: SweepConfig | None = None,
    progress: bool = True,
) -> SweepReport:
    """Searches the sampling parameters whose images train the best classifier.

        report = synthaug.sweeps.sweep(
            synthesizer, real=train, validation=validation, test=test, output_dir="sweep",
            grid={"scheduler": ["ddpm", "ddim"], "num_inference_steps": [20, 100],
                  "guidance_scale": [1.0, 1.5, 3.0], "log_variance_mix": [0.0, 0.3]},
        )
        print(report); report.chosen

    The first stage draws images in every setting of the grid, and takes the one with the smallest
    Fréchet distance to the validation images. The second varies guidance alone, on the Fréchet
    distance, the inception score and the CAS: the accuracy of classifiers that are trained on the
    synthetic images alone, for equal optimizer steps. All of it looks at the validation split only,
    so a test split stays unused.

    Args:
        synthesizer: A `ClassConditional`, a `Cascade` (whose models share the sampler's settings),
            or another one with the settings and row parameters that are varied.
        real: Labeled real images that it was trained on. The classifier of the inception score
            learns from most of them, at least half of each class; the others show what real images
            get.
        validation: Labeled real images that neither generator nor test has.
        output_dir: Folder that keeps the images, the numbers and the classifiers of every setting.
            Called again, only what is missing is made, whatever was added to the grid; a kill loses
            no image that was drawn.
        test: The split that results will be reported on: looked at only to see that it shares no
            image with `validation`.
        grid: Values of settings (those of `SamplerConfig` and the synthesizer's own) and of row
            parameters, such as `guidance_scale` and `noise_conditioning_level`; of `FromPipeline`
            also `prompts`, `attributes` and `negative_prompt`. By default 30 settings.
        guidance: Values of `guidance_scale` in the second stage; by default from 1 to 2. An empty
            list leaves the second stage out.
        features: Extractor of the Fréchet distance; by default the last layer of a classifier
            trained on `real`.
        config: How many images, which classifiers, and what to choose by.
        progress: Show bars.

    Raises:
        ValueError: For a setting that the synthesizer refuses, or too few images, before any work.
        MismatchError: If the splits share images, or differ in classes or shape from the
            synthesizer.
        ImportError: Without torchmetrics.
    """
    config = config or SweepConfig()
    check_folder(output_dir)
    given = {"real": real, "validation": validation, "test": test}
    splits = {n: ImageSource.open(x, f"`{n}`") for n, x in given.items() if x is not None}
    work = _Work(
        synthesizer=_as_begun(synthesizer, Path(output_dir) / "settings"),
        folder=Path(output_dir),
        real=splits["real"],
        validation=splits["validation"],
        prints=_checked_splits(synthesizer, splits, config.allow_overlap),
        config=config,
        features=features,
        progress=progress,
    )
    settings = combinations(default_grid(synthesizer) if grid is None else grid)
    scales = default_guidance(synthesizer) if guidance is None else guidance
    stages = ["coarse", "fine"] if len(scales) else ["coarse"]
    trials, dim = work.checked(settings, scales), work.checked_dim(stages)
    fine: list[SweepRow] = []
    accuracy: list[float] = []
    with kept_at_stop(work.finished):
        floors = {stage: work.floor(stage) for stage in stages}
        coarse = work.rows(trials, "coarse")
        best = min(coarse, key=lambda row: (row.frechet_distance, row.evaluations))
        if len(scales):
            guided = [{**best.setting, "guidance_scale": scale} for scale in scales]
            fine, accuracy = work.second_stage(guided)
            by_cas = config.select == "cas"
            best = min(
                fine, key=lambda row: (-by_cas * np.mean(row.cas or [0]), row.frechet_distance)
            )
    return SweepReport(
        coarse=coarse,
        fine=fine,
        floors=floors,
        real_accuracy=accuracy,
        chosen=best.setting,
        select=config.select if fine else "frechet",
        **work.facts(dim, compared_with_test=test is not None),
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The common parts of all settings, and the folder that keeps finished work."""

    synthesizer: Any
    folder: Path
    real: ImageSource
    validation: ImageSource
    prints: Mapping[str, str]
    config: SweepConfig
    features: Extractor | None
    """Of the Fréchet distance; `None` takes those of the classifier."""
    progress: bool

    def trial(self, stage: str, setting: Setting) -> Trial:
        """A setting with the images of a stage."""
        per_class, seed = self.config.images_per_class(stage), self.config.seed
        return Trial.of(self.synthesizer, setting, per_class=per_class, seed=seed)

    def checked(self, settings: Sequence[Setting], scales: Sequence[float]) -> list[Trial]:
        """The trials of the first stage; what either stage refuses is refused here."""
        trials = [self.trial("coarse", setting) for setting in settings]
        for scale in scales:
            self.trial("fine", {**settings[0], "guidance_scale": scale})
        cost = sum(t.evaluations * len(t.plan) for t in trials)
        logger.info("%d settings, %s network evaluations", len(trials), f"{cost:,.0f}")
        return trials

    def finished(self) -> str:
        """Says how many settings are measured; "" if none are."""
        count = len(list((self.folder / "settings").glob("*.json")))
        return f"{count} settings are measured: {self.folder}." if count else ""

    def size(self, stage: str) -> int:
        """Number of images that a stage compares."""
        drawn = self.config.images_per_class(stage) * len(self.synthesizer.classes)
        return min(drawn, len(self.validation), len(self.held_out))

    def _named(self, stage: str) -> str:
        """Returns the name of a stage's comparison, with any limit on its number of images."""
        limits = {
            "`validation`": len(self.validation),
            "half of each class of `real`, which the classifier does not learn from": len(
                self.held_out
            ),
        }
        reason, most = min(limits.items(), key=lambda limit: limit[1])
        drawn = self.config.images_per_class(stage) * len(self.synthesizer.classes)
        limited = f", limited by {reason}," if most < drawn else ""
        return f"Each set of the {stage} stage{limited}"

    @cached_property
    def held_out(self) -> Indices:
        """Rows of `real` that the classifier does not learn from, at most half of each class.

        They show what real images get, in features that never saw them, as those that are drawn.
        """
        most = max(self.config.images_per_class(stage) for stage in ("coarse", "fine"))
        n = min(most * len(self.synthesizer.classes), len(self.validation))
        rows = self.real.done_rows("scored")
        halves = np.bincount(self.real.labels[rows]) // 2
        return self._some(self.real, n, 3, rows=rows, most=halves)

    def checked_dim(self, stages: Sequence[str]) -> int:
        """Number of features; refuses stages that compare too few images for them."""
        # What the classifier's features were before it was trained tells how many there are.
        with own_randomness(torch.device("cpu")):
            extractor = self.features or classifier(self._built())
        dim = int(extractor(self.validation.pixels([0])).shape[1])
        for stage in stages:
            self._measure.check_size(self.size(stage), dim, self._named(stage))
        return dim

    @cached_property
    def spaces(self) -> tuple[Extractor, Extractor]:
        """Extractor of the Fréchet distance, and classifier of the inception score."""
        config = self.config.classifiers
        network, device = self.classifier(), choose_device(config.device)
        name = f"{config.model_name} trained on {self.real.title}"
        judge = TorchModule(network, name=name, preprocess=to_model, device=device)
        return self.features or classifier(network, name=name, device=device), judge

    def facts(self, dim: int, *, compared_with_test: bool) -> dict[str, dict[str, Any]]:
        """Returns the report's facts about the images and networks of the comparison."""
        distance, judge = map(describe, self.spaces)
        config = self.config.classifiers
        return {
            "validation": {
                "name": self.validation.title,
                "fingerprint": self.prints["validation"],
                "images": len(self.validation),
                "compared_with_test": compared_with_test,
            },
            "extractor": {**distance, "dim": dim},
            "classifier": {**judge, "model": config.model_name, "steps": config.steps},
            "settings": {"precision": recorded_precision(self.synthesizer.recipe()["settings"])},
        }

    @property
    def _measure(self) -> Measure:
        return Measure(k=self.config.k, force=self.config.force, seed=self.config.seed)

    def second_stage(self, settings: Sequence[Setting]) -> tuple[list[SweepRow], list[float]]:
        """Rows with the CAS of each setting, and the accuracies on the real images."""
        trials, config = [self.trial("fine", setting) for setting in settings], self.config
        rows = self.rows(trials, "fine")
        arms: dict[str, Any] = {
            f"guidance {t.setting['guidance_scale']:g}": self.cache(t) for t in trials
        }
        table = evaluate(
            {"real": self.real.dataset, **arms},
            test=self.validation.dataset,
            seeds=config.seeds,
            config=config.classifiers,
            allow_overlap=config.allow_overlap,
            output_dir=self.folder / "classifiers",
            progress=self.progress,
        )
        scored = zip(rows, arms, strict=True)
        fine = [replace(row, cas=table.accuracies(arm).tolist()) for row, arm in scored]
        return fine, table.accuracies("real").tolist()

    def _built(self) -> nn.Module:
        """The classifier with random weights, drawn from torch's global stream."""
        classes, model = common_classes({"real": self.real}), self.config.classifiers.model
        return build_classifier(model, len(classes), self.validation.image_shape)

    def classifier(self) -> nn.Module:
        """A classifier trained on real images, or the one that an earlier call trained."""
        config = self.config.classifiers
        how = {"model": config.model_name, "steps": config.steps, **config.changes()}
        rows = np.setdiff1d(self.real.done_rows("scored"), self.held_out)
        key = settings_digest({"real": self.prints["real"], "rows": rows.tolist(), **how})
        path = self.folder / f"classifier-{key[:8]}.safetensors"
        if path.exists():
            with own_randomness(torch.device("cpu")):
                network = self._built()
            with reading(path, "Delete it and run again."):
                network.load_state_dict(load_tensors(path))
            return network.to(choose_device(config.device)).eval()
        seen = Subset(self.real.dataset, rows.tolist())
        network = trained_classifier(seen, config=config, progress=self.progress)
        with whole_file(path) as temporary:
            write_tensors(temporary, network.state_dict())
        return network

    def cache(self, trial: Trial) -> SynthCache:
        """The images of a setting; those that are not there yet are drawn."""
        path = self.folder / "settings" / f"{trial.stem}.h5"
        logger.info("%s", path.stem)
        size, shown = self.config.batch_size, self.progress
        return generate(trial.synthesizer, trial.plan, path, batch_size=size, progress=shown)

    def rows(self, trials: Sequence[Trial], stage: str) -> list[SweepRow]:
        """The row of each setting of a stage."""
        rows = []
        for number, trial in enumerate(trials, 1):
            with part(number, len(trials), f"{stage} setting"):
                rows.append(self.row(trial, stage))
        return rows

    def row(self, trial: Trial, stage: str) -> SweepRow:
        """A setting's row, out of its file if an earlier call measured the same."""
        measured = {
            "features": [describe(space) for space in self.spaces],
            "validation": self.prints["validation"],
            "n": self.size(stage),
            **asdict(self._measure),
        }
        key = settings_digest(measured)
        path = self.folder / "settings" / f"{trial.stem}-{key[:8]}.json"
        if path.exists():
            with reading(path, "Delete it and run again."):
                return decode(SweepRow, parse_json(read_text(path)))
        cache = ImageSource.open(self.cache(trial), trial.stem)
        row = SweepRow(
            setting=trial.setting,
            images=len(trial.plan),
            evaluations=trial.evaluations,
            scores=self._scores(cache, "synthetic", stage, stream=0),
        )
        write_text(path, encode(row))
        return row

    def floor(self, stage: str) -> QualityScores:
        """The scores of real images that the generator learned from, and the classifier did not."""
        return self._scores(self.real, "real", stage, stream=1, among=self.held_out)

    def _scores(
        self,
        images: ImageSource,
        name: str,
        stage: str,
        *,
        stream: int,
        among: Indices | None = None,
    ) -> QualityScores:
        n = self.size(stage)
        rows = self._some(images, n, stream, rows=among)
        reference = self._some(self.validation, n, 2)
        distance, judge = self.spaces
        extraction = ExtractionConfig(directory=self.folder / "features")
        compute = partial(features_of, extraction=extraction, progress=self.progress)
        return self._measure.scores(
            compute(images, rows, distance, name),
            compute(self.validation, reference, distance, "validation"),
            compute(images, rows, judge, f"{name}, classes"),
        )

    def _some(
        self,
        images: ImageSource,
        n: int,
        stream: int,
        *,
        rows: Indices | None = None,
        most: Labels | None = None,
    ) -> Indices:
        """n random rows, as many of each class as there are, like the images that are drawn.

        Args:
            images: The images of the rows.
            n: How many, or fewer if there are no more.
            stream: Stream of random numbers.
            rows: The rows to choose from; all by default.
            most: How many of each class at most.
        """
        rows = images.done_rows("scored") if rows is None else rows
        random = counter_rng(self.config.seed, stream).random(len(rows))
        rows = rows[np.argsort(random, kind="stable")]
        labels = images.labels[rows]
        place = np.empty(len(rows), np.int64)  # of an image among those of its class
        for c in np.unique(labels):
            place[labels == c] = np.arange((labels == c).sum())
        if most is not None:
            few = place < most[labels]
            rows, place = rows[few], place[few]
        return np.sort(rows[np.argsort(place, kind="stable")[:n]])


def _as_begun(synthesizer: Any, folder: Path) -> Any:
    """The synthesizer in the precision of the caches in a folder, if its own was chosen."""
    change = Declared.by(synthesizer).in_precision
    recipes = [SynthCache(path).manifest["recipe"] for path in sorted(folder.glob("*.h5"))]
    weights = {canonical_json(recipe.get("weights")) for recipe in recipes}

    def drew_them(candidate: Any) -> bool:
        return canonical_json(candidate.recipe().get("weights")) in weights

    if change is None or not weights or drew_them(synthesizer):
        return synthesizer
    for precision in get_args(Resolved):
        if drew_them(there := change(precision)):
            logger.info("precision %s, as it was begun", precision)
            return there
    return synthesizer


def _checked_splits(
    synthesizer: Any, splits: Mapping[str, ImageSource], allow_overlap: bool
) -> dict[str, str]:
    """Fingerprints of the splits, which must fit the synthesizer and share no image."""
    classes = {name: split.classes for name, split in splits.items()}
    same_classes({"synthesizer": synthesizer.classes, **classes})
    expected = tuple(synthesizer.image_shape)
    for name, split in splits.items():
        if split.image_shape != expected:
            raise MismatchError(
                f"`{name}` holds images of shape {split.image_shape}, the synthesizer draws "
                f"{expected}. Load it with `image_shape=synthesizer.image_shape`."
            )
    contents = {f"`{name}`": digests(split, f"`{name}`") for name, split in splits.items()}
    prints = {
        name.strip("`"): hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
        for name, keys in contents.items()
    }
    for name in set(prints) - {"validation"}:
        if prints[name] == prints["validation"]:
            raise MismatchError(
                f"`validation` is `{name}`. Choose settings on images of their own: neither those "
                "that the generator learned from, nor those that results are reported on."
            )
    seen = recorded(Declared.by(synthesizer).trained_on, "fingerprint")
    if splits["validation"].fingerprint in seen:
        raise MismatchError(
            "The generator was trained on `validation`. Choose settings on images that it never "
            "saw."
        )
    check_overlap(contents, allow=allow_overlap)
    return prints
