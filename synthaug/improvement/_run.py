"""`improve`: splits, rivals, recipes by successive halving, rounds, and one look at the test."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from synthaug._cache import SynthCache
from synthaug._datasets import MixedDataset
from synthaug._images.source import ImageSource
from synthaug._plan import settings_digest
from synthaug._support.files import check_folder, write_text
from synthaug._support.report import encode, read_kept
from synthaug._support.stopping import kept_at_stop
from synthaug._training.classifier_config import name_of
from synthaug._types import JSON
from synthaug.errors import MismatchError
from synthaug.evaluation import Arm, EvaluationReport, augmentation_arms, balanced_arms
from synthaug.evaluation._report import ROBUST
from synthaug.improvement._config import ImproveConfig
from synthaug.improvement._contest import Contest, Fit, OurClassifier, YourClassifier
from synthaug.improvement._cost import Estimate, affordable, measure
from synthaug.improvement._gains import Gain
from synthaug.improvement._recipes import LEAST_OF_CLASS, TRAINED, Recipe, RecipeImages
from synthaug.improvement._report import Candidate, ImproveReport, Round
from synthaug.improvement._splits import Splits

logger = logging.getLogger("synthaug")

IMBALANCED = 2.0
"""Size of the largest class by that of the smallest from which rivals count rare classes more."""
WORTHWHILE = 0.02
"""A gain that would matter: where it cannot be excluded the answer is "cannot tell"."""
PLAIN, STANDARD = "real, as it is", "real, augmented"


def improve(
    train: Any,
    output_dir: str | Path,
    *,
    validation: Any = None,
    test: Any = None,
    recipes: Mapping[str, Recipe | Any] | None = None,
    fit: Fit | None = None,
    config: ImproveConfig | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> ImproveReport:
    """Finds out which synthetic images help a classifier, if any.

        report = synthaug.improve(train, "improved", test=test)
        print(report)

    It chooses the strongest rival without synthetic images, tries every recipe at several shares by
    successive halving, draws more images for the winner in rounds until one more is worth less than
    its error, and asks for a gain whose lower bound is above zero. All of that is chosen on
    validation images. The test images are looked at once, at the end, and only if there is
    something to confirm. "Use none" is an ordinary answer.

    Args:
        train: Labeled training images that name their classes, any map-style data set, or what
            `load_dataset` reads, such as "folder:photos".
        output_dir: Folder for splits, generator, caches, audits, finished classifiers, and the
            report (`improve.html`, `improve.json`). Called again with the same arguments, only what
            is missing is made.
        validation: Images to choose by. By default a share of `train`, by class, near-duplicates on
            one side.
        test: Images for the one confirmation; by default a share of `train` too.
        recipes: Name => a `Recipe`, a synthesizer or a `SynthCache`. By default a class-conditional
            diffusion model is trained on the training images that are left.
        fit: Your own training, `fit(dataset, seed) -> predict`, where `predict(dataset)` gives the
            class of each test image, int (n,), or scores of all classes, (n, num_classes). By
            default the classifiers of `evaluate`.
        config: How recipes are tried; by default `ImproveConfig()`.
        dry_run: Only measure what one step of everything costs, and return what would be done.
        progress: Show bars.

    Returns:
        The report, whose `verdict` is "use", "none" or "cannot tell"; of a dry run "planned".

    Raises:
        ValueError: For wrong arguments, or a budget too small for one recipe.
        DataError: If there are too few images to choose by, or your `fit` fails on too many seeds.
        MismatchError: If sets share images or differ in classes, or the folder belongs to another
            search.
    """
    config = config or ImproveConfig()
    folder = Path(output_dir)
    check_folder(output_dir)
    search = Search.open(train, validation, test, recipes, fit, config, folder, progress)
    with kept_at_stop(lambda: _finished(folder)):
        report = search.planned() if dry_run else search.run()
    report.to_json(folder / "improve.json")
    report.to_html(folder / "improve.html")
    return report


def _finished(folder: Path) -> str:
    """Tells where finished work of a stopped search lies; "" if there is none."""
    whole = [*folder.glob("classifiers/*"), *folder.glob("recipe-*/*.h5")]
    return f"Finished classifiers and images are kept in {folder}." if whole else ""


def _pools(
    recipes: Mapping[str, Recipe | Any] | None,
    splits: Splits,
    folder: Path,
    config: ImproveConfig,
    progress: bool,
) -> dict[str, RecipeImages]:
    """Makes the images of all candidates by name: of each recipe for each of its targets."""
    given: dict[str, Recipe | None] = {TRAINED: None}
    if recipes is not None:
        given = {
            name: one if isinstance(one, Recipe) else Recipe(one) for name, one in recipes.items()
        }
    pools: dict[str, RecipeImages] = {}
    for number, (name, recipe) in enumerate(given.items()):
        place = folder / f"recipe-{number + 1}"
        pool = RecipeImages(
            name, recipe, splits.train, splits.validation.dataset, place, config, progress
        )
        for target in _targets(pool, config):
            one = pool if target == "random" else pool.targeting(target)
            pools[one.name] = one
    return pools


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search, with everything that its steps share."""

    splits: Splits
    pools: Mapping[str, RecipeImages]
    contest: Contest
    config: ImproveConfig
    folder: Path
    own_fit: bool
    """Whether the classifier is the user's."""
    progress: bool = True
    """Whether bars are shown."""

    @classmethod
    def open(
        cls,
        train: Any,
        validation: Any,
        test: Any,
        recipes: Mapping[str, Recipe | Any] | None,
        fit: Fit | None,
        config: ImproveConfig,
        folder: Path,
        progress: bool,
    ) -> "Search":
        """Checks all arguments, and that the folder belongs to this search."""
        if recipes is not None and not recipes:
            raise ValueError("`recipes` is empty. Leave it out to train a generator.")
        if fit is not None and not callable(fit):
            raise TypeError(f"`fit` is a {type(fit).__name__}, expected fit(dataset, seed).")
        if fit is not None and config.adversarial is not None:
            raise ValueError(
                "`config.adversarial` is for the classifiers of `evaluate`, and `fit` is your own. "
                "Leave one of the two out; your own training may attack its images itself."
            )
        splits = Splits.open(train, validation, test, config, progress)
        pools = _pools(recipes, splits, folder, config, progress)
        where = folder / "classifiers"
        contest: Contest = (
            OurClassifier(
                config=config.classifiers,
                adversarial=config.adversarial,
                folder=where,
                progress=progress,
            )
            if fit is None
            else YourClassifier(fit=fit, folder=where, progress=progress)
        )
        search = cls(
            splits=splits,
            pools=pools,
            contest=contest,
            config=config,
            folder=folder,
            own_fit=fit is not None,
            progress=progress,
        )
        search._claim_folder({"fit": None if fit is None else name_of(fit)})
        return search

    def _claim_folder(self, more: dict[str, JSON]) -> None:
        """Refuses a folder of another search, whose results would be mixed up with ours."""
        config = {
            k: v for k, v in asdict(self.config).items() if k not in ("generator", "classifiers")
        }
        binding = {
            **more,
            "config": {k: v for k, v in config.items() if k != "minutes"},
            "generator": self.config.generator.binding(self.config.generator.steps),
            "classifiers": {
                "model": self.config.classifiers.model_name,
                "steps": self.config.classifiers.steps,
                **self.config.classifiers.changes(),
            },
            "recipes": list(self.pools),
            "sets": [
                one.fingerprint
                for one in (self.splits.train, self.splits.validation, self.splits.test)
            ],
        }
        path = self.folder / "search.json"
        key = settings_digest(binding)
        if path.exists():
            if read_kept(dict[str, Any], path).get("key") != key:
                raise MismatchError(
                    f"{self.folder} holds a search with other images, recipes or settings. Choose "
                    "another folder, or delete this one."
                )
            return
        write_text(path, encode({"key": key, "search": binding}, indent=1))

    # What will be done

    @cached_property
    def estimate(self) -> Estimate:
        """The cost of one step of everything; measured once, and kept."""
        own = self._seconds_of_own if self.own_fit else None
        path = self.folder / "cost.json"
        sets = self.splits
        rivals = len(self._rivals())
        return measure(
            path,
            self.pools,
            sets.train,
            sets.validation,
            self.config,
            own,
            rivals,
            progress=self.progress,
        )

    def _seconds_of_own(self) -> float:
        """Seconds that the user's classifier takes, from runs that are needed in any case."""
        return float(np.mean([run.seconds for run in self._rivals_report().runs]))

    @cached_property
    def candidates(self) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Recipes and shares that fit into the budget, and those that do not."""
        first, *others = self.config.shares
        wanted = [(name, first) for name in self.pools]
        usual = [name for name, pool in self.pools.items() if pool.target == self._usual(pool)]
        wanted += [(name, share) for share in others for name in usual]
        sets = self.splits
        return affordable(wanted, self.estimate, self.config, len(sets.train), len(sets.validation))

    def _affordable(self) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """The candidates; refuses a budget that is too small for any of them."""
        if not self.candidates[0]:
            needed = self._seconds([], least=True)
            raise ValueError(
                f"`minutes` is {self.config.minutes:g}, and one recipe takes about "
                f"{needed / 60:.1f} minutes, as measured here ({self.folder / 'cost.json'}). Give "
                "more time, or fewer steps of the generator or of the classifiers."
            )
        return self.candidates

    def _usual(self, pool: RecipeImages) -> str:
        """The target at which a recipe is tried at all shares."""
        return _targets(pool, self.config)[0]

    def planned(self) -> ImproveReport:
        """Returns a report of the plan, with its estimated cost."""
        taken, left = self._affordable()
        return self._report(
            verdict="planned",
            reasons=[self._plan_text(taken, left)],
            candidates=[Candidate.untried(*one) for one in [*taken, *left]],
        )

    def _plan_text(
        self, taken: Sequence[tuple[str, float]], left: Sequence[tuple[str, float]]
    ) -> str:
        cost = self._seconds(taken)
        text = (
            f"{len(taken)} of {len(taken) + len(left)} combinations of recipe and share fit into "
            f"{self.config.minutes:g} minutes; they take about {cost / 60:.1f} minutes, audits "
            "included."
        )
        judged = {"difficult", "selected"} & {*self.config.targets}
        if judged and not _can_judge(self.splits.train):
            text += (
                f" Not tried: {' and '.join(sorted(judged))}, for which every class needs "
                f"{LEAST_OF_CLASS} training images."
            )
        if left:
            names = ", ".join(f"{name} at {share:g}" for name, share in left)
            text += f" Not tried for lack of time: {names}."
        return text

    def _seconds(self, taken: Sequence[tuple[str, float]], *, least: bool = False) -> float:
        """Estimates what these recipes and shares take."""
        sets = self.splits
        return self.estimate.total(
            taken, self.config, len(sets.train), len(sets.validation), least=least
        )

    # The search

    def run(self) -> ImproveReport:
        """Does all of it."""
        started = time.perf_counter()
        taken, left = self._affordable()
        logger.info("%s", self._plan_text(taken, left))
        rivals = self._screened_rivals()
        rival = max(rivals, key=rivals.__getitem__)
        (name, share), screened = self._halving(taken, rival)
        rounds, last = self._rounds(name, share, rival)
        tried = len(taken) + len(rounds) - 1
        gain = self._gain(last, _arm(name, share), rival, tried)
        history = [*screened, *(Candidate.untried(*one) for one in left)]
        facts = {
            "rivals": rivals,
            "rival": rival,
            "chosen": name,
            "share": share,
            "gain": gain,
            "rounds": rounds,
        }
        wanted: dict[str, Any] = {**facts, "candidates": history, "tried": tried}
        if gain.low is None or gain.low <= 0:
            wide = gain.high is None or (gain.mean > 0 and gain.high > WORTHWHILE)
            return self._report(
                verdict="cannot tell" if wide else "none",
                reasons=[_no_gain(name, share, rival, gain, tried, wide), self._test_unused()],
                seconds=time.perf_counter() - started,
                **wanted,
            )
        confirmed = self._confirm(name, share, rival, rounds)
        test_gain = self._gain(confirmed, _arm(name, share), rival)
        sure = test_gain.low is not None and test_gain.low > 0
        return self._report(
            verdict="use" if sure else "cannot tell",
            reasons=[_gained(name, share, rival, gain, test_gain, tried, sure)],
            test_gain=test_gain,
            evaluation=confirmed,
            seconds=time.perf_counter() - started,
            **wanted,
        )

    def _rivals(self) -> dict[str, Arm]:
        """Arms without synthetic images."""
        real = self.splits.train.dataset
        if self.own_fit:
            return {PLAIN: Arm(real)}
        names: Any = self.config.augmentations
        arms: dict[str, Any] = {
            STANDARD: Arm(real, augment="standard"),
            PLAIN: Arm(real),
            **augmentation_arms(real, names),
        }
        counts = np.bincount(self.splits.train.labels)
        counts = counts[counts > 0]
        if counts.max() >= IMBALANCED * counts.min():
            arms |= balanced_arms(real, ["balanced", "logit-adjustment"])
        return arms

    def _mixed(self, share: float, pool: RecipeImages, cache: SynthCache, rival: Arm) -> Arm:
        """Real images, of which a share is replaced by images that the audit passed.

        They are augmented as the rival's, and rare classes count as there, so that synthetic images
        are all that differs.
        """
        mixed = MixedDataset(
            self.splits.train.dataset,
            cache,
            audit=pool.audited(cache),
            fraction=share,
            seed=self.config.seed,
            filters=pool.filters(cache),
        )
        return replace(rival, dataset=mixed)

    def _screened_rivals(self) -> dict[str, float]:
        """Mean accuracies of the arms without synthetic images."""
        report = self._rivals_report()
        return {name: report.mean(name, self.result) for name in self._rivals()}

    def _rivals_report(self) -> EvaluationReport:
        rivals = self._rivals()
        return self.contest(
            rivals,
            self.splits.validation.dataset,
            seeds=self.config.screening_seeds,
            baseline=next(iter(rivals)),
        )

    def _halving(
        self, taken: Sequence[tuple[str, float]], rival: str
    ) -> tuple[tuple[str, float], list[Candidate]]:
        """The best recipe and share, and what became of each."""
        config, rivals = self.config, self._rivals()
        arms = {}
        for name, share in taken:
            pool = self.pools[name]
            cache = pool.cache([pool.first_counts()])
            arms[name, share] = self._mixed(share, pool, cache, rivals[rival])
        alive, seeds = list(arms), config.screening_seeds
        dropped: list[Candidate] = []
        while True:
            report = self.contest(
                {rival: rivals[rival], **{_arm(*one): arms[one] for one in alive}},
                self.splits.validation.dataset,
                seeds=seeds,
                baseline=rival,
            )
            alive.sort(key=lambda one: -report.mean(_arm(*one), self.result))
            results = [self._candidate(report, one, rival, seeds) for one in alive]
            if len(alive) == 1 and seeds >= config.final_seeds:
                return alive[0], [*results, *reversed(dropped)]
            kept = max(1, math.ceil(len(alive) / 2)) if len(alive) > 1 else 1
            dropped += reversed(results[kept:])
            alive = alive[:kept]
            seeds = min(2 * seeds, config.final_seeds) if len(alive) > 1 else config.final_seeds

    def _candidate(
        self, report: EvaluationReport, one: tuple[str, float], rival: str, seeds: int
    ) -> Candidate:
        name, share = one
        return Candidate(
            recipe=name,
            share=share,
            seeds=seeds,
            accuracy=report.mean(_arm(*one), self.result),
            gain=self._gain(report, _arm(*one), rival),
        )

    def _rounds(self, name: str, share: float, rival: str) -> tuple[list[Round], EvaluationReport]:
        """Draws more images until another round is worth less than its error."""
        pool, arm = self.pools[name], _arm(name, share)
        counts: list[Mapping[str, int]] = [pool.first_counts()]
        rivals = self._rivals()
        rounds: list[Round] = []
        best: EvaluationReport | None = None
        while True:
            cache = pool.cache(counts)
            report = self.contest(
                {rival: rivals[rival], arm: self._mixed(share, pool, cache, rivals[rival])},
                self.splits.validation.dataset,
                seeds=self.config.final_seeds,
                baseline=rival,
            )
            gain = self._gain(report, arm, rival)
            more = gain.mean - (rounds[-1].gain.mean if rounds else 0.0)
            error = _error_between(best, report, arm, self.result) if best else 0.0
            worth = best is None or more > error
            rounds.append(
                Round(
                    images=len(cache),
                    served=pool.served(cache),
                    accuracy=report.mean(arm, self.result),
                    gain=gain,
                    kept=worth,
                    cache=str(cache.path),
                    audit=pool.audited(cache).verdict,
                    audit_report=str(pool.audit_path(cache)),
                    selection=str(pool.selection_path(cache)) if pool.filters(cache) else "",
                )
            )
            if worth:
                best = report
            if not worth or not pool.drawn or len(counts) == self.config.rounds:
                assert best is not None
                return rounds, best
            counts.append(pool.targeted_counts(_errors(report, arm, self.result)))

    def _gain(self, report: EvaluationReport, arm: str, rival: str, tried: int = 1) -> Gain:
        """The gain, its bounds corrected for the number of recipes and rounds that were tried."""
        error = (1 - self.config.confidence) / max(1, tried)
        return Gain.of(report, arm, rival, 1 - error, self.result)

    @property
    def result(self) -> str | None:
        """The result of a run that decides: `None` is accuracy."""
        return None if self.config.adversarial is None else ROBUST

    def _confirm(
        self, name: str, share: float, rival: str, rounds: Sequence[Round]
    ) -> EvaluationReport:
        """The one look at the test images."""
        kept = [one for one in rounds if one.kept]
        pool = self.pools[name]
        other = self._rivals()[rival]
        cache = SynthCache(kept[-1].cache)
        arms = {rival: other, _arm(name, share): self._mixed(share, pool, cache, other)}
        return self.contest(
            arms, self.splits.test.dataset, seeds=self.config.final_seeds, baseline=rival
        )

    def _test_unused(self) -> str:
        return f"The {len(self.splits.test):,} test images were not looked at."

    def _report(self, **found: Any) -> ImproveReport:
        sets = self.splits
        cost = self.estimate
        shown = {"minutes": self.config.minutes, "confidence": self.config.confidence}
        return ImproveReport(
            sets={
                "train": len(sets.train),
                "validation": len(sets.validation),
                "test": len(sets.test),
            },
            settings={
                **shown,
                "set aside here": ", ".join(sets.made) or "none",
                "classifier steps": self.config.classifiers.steps,
                "decides": "accuracy under attack" if self.result else "accuracy",
                "seed": self.config.seed,
                "seconds of a classifier": round(cost.classifier, 2),
                "seconds of the generator": round(cost.generator, 1),
                "seconds of an audit": round(cost.audit, 1),
                "seconds of an image of an audit": round(cost.audited_image, 5),
                **{f"seconds of an image, {k}": round(v, 4) for k, v in cost.images.items()},
            },
            **found,
        )


def _can_judge(real: ImageSource) -> bool:
    """Whether classifiers can judge training images that they have not learned from."""
    counts = np.bincount(real.labels, minlength=len(real.named_classes()))
    return bool(counts.min() >= LEAST_OF_CLASS)


def _targets(pool: RecipeImages, config: ImproveConfig) -> list[str]:
    """The targets that can be tried for a recipe: of images that are there, none is drawn."""
    possible = {"random"}
    if _can_judge(pool.real):
        possible |= {"difficult", "selected"} if pool.drawn else {"selected"}
    return [target for target in config.targets if target in possible] or ["random"]


def _arm(name: str, share: float) -> str:
    return f"{name}, share {share:g}"


def _errors(report: EvaluationReport, arm: str, result: str | None) -> dict[str, float]:
    """Error rate of every class that was tested, the mean over the seeds."""
    by_class = zip(*(run.tested(result).class_accuracies for run in report.of(arm)), strict=True)
    return {
        name: 1 - float(np.mean([one for one in values if one is not None]))
        for name, values in zip(report.classes, by_class, strict=True)
        if None not in values
    }


def _error_between(
    before: EvaluationReport, after: EvaluationReport, arm: str, result: str | None
) -> float:
    """Standard error of what the last round added, paired by seed."""
    old = {run.seed: run.tested(result).accuracy for run in before.of(arm)}
    runs = [run for run in after.of(arm) if run.seed in old]
    added = [run.tested(result).accuracy - old[run.seed] for run in runs]
    return float(np.std(added, ddof=1) / np.sqrt(len(added))) if len(added) > 1 else math.inf


def _no_gain(name: str, share: float, rival: str, gain: Gain, tried: int, wide: bool) -> str:
    text = (
        f"The best of {tried} tried, {name!r} at a share of {share:g}, gains {gain} points over "
        f"{rival!r} on the validation images, {gain.seeds} seeds. The bound is corrected for the "
        "number tried, and it is not above zero."
    )
    if wide:
        return (
            f"{text} A gain of {100 * WORTHWHILE:g} points is possible all the same. Give more "
            "validation images."
        )
    return text + " Use no synthetic images."


def _gained(
    name: str, share: float, rival: str, gain: Gain, test: Gain, tried: int, sure: bool
) -> str:
    text = (
        f"{name!r} at a share of {share:g}, the best of {tried} tried, gains {gain} points over "
        f"{rival!r} on the validation images, and {test} points on the test images, which were "
        "looked at once."
    )
    return text + (" Use it." if sure else " The test images do not confirm the gain.")
