"""The report on canaries: the share of keys that came back, by number of repetitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

from synthaug._audit.canaries import Canary, CanaryPlan, borders
from synthaug._audit.discrimination import proportion_interval
from synthaug._audit.scope import scope_sentence
from synthaug._audit.settings import environment
from synthaug._audit.verdict_report import VerdictReport
from synthaug._images.source import ImageSource, recorded
from synthaug._support.arguments import check_within
from synthaug._support.charts import Line, line_chart
from synthaug._support.html import Part, heading
from synthaug._types import JSON, Features, Pixels
from synthaug.errors import MismatchError

CHANCE = 0.01
"""Chance that any image bears any key that it did not learn, all comparisons together."""
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class DoseResult:
    """Result for the pairs of one dose."""

    dose: int
    """How often the trained image of each pair was trained on."""
    pairs: int
    trained_back: int
    """Keys that were trained on and came back."""
    trained_interval: tuple[float, float]
    """Within which the probability of that lies with a confidence of 0.95."""
    control_back: int
    """Keys of controls, which nobody trained on, that came back."""
    control_interval: tuple[float, float]
    """As above, for these."""
    closer: int
    """Pairs of which the trained key resembles a synthetic image more than the control's does; half
    of them by chance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryReport(VerdictReport):
    """Report on the canaries that came back; made by `synthaug.memorization.came_back`.

        report.verdict, report.reasons
        report.by_dose                     # share that came back, by number of repetitions
        cache.withdraw(report.carriers)    # images that bear a key
        report.to_html("canaries.html")

    Arrays have one entry per canary, trained ones and controls.
    """

    _FORMAT = "synthaug-canary-report"
    _FORMAT_VERSION = 1
    _NOUN = "a report on canaries"
    _REMEDY = "Check the name, or look for the canaries again."
    _TITLE = "Canaries"
    _MEANINGS: ClassVar[dict[str, str]] = {
        "pass": "No more trained keys came back than untrained ones",
        "fail": "Keys came back",
    }
    _WAY = "canaries"

    verdict: Literal["pass", "fail"]
    """`fail`: keys of trained images came back more often than those of controls."""
    p_value: float
    """Chance that coins explain it: of two exact tests, by the keys that came back and by the key
    of each pair that comes closer, twice the smaller."""
    by_dose: tuple[DoseResult, ...]
    """From the smallest dose to the largest."""
    images: int
    """Synthetic images that were looked at."""
    threshold: float
    """Correlation with a key from which on it counts as come back."""
    pair: NDArray[np.int64]
    """Number of each canary's pair."""
    dose: NDArray[np.int64]
    trained: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    """Highest correlation of the key with the border of a synthetic image, mirrored or not."""
    row: NDArray[np.int64]
    """Row of that image."""
    carriers: NDArray[np.int64]
    """Rows of all images that bear a key, ascending."""
    identity: dict[str, JSON]
    """The synthetic images, and the plan of canaries."""
    settings: dict[str, JSON]
    """All arguments and counts."""
    environment: dict[str, JSON]
    """Versions of Python and of the libraries, and the time in UTC."""

    @property
    def returned(self) -> NDArray[np.bool_]:
        """Mask of the keys that came back."""
        return self.similarity >= self.threshold

    def _table(self) -> list[list[str]]:
        rows = [["repeated", "pairs", "came back", "95 %", "controls back", "95 %", "closer"]]
        for one in self.by_dose:
            back = [
                (one.trained_back, one.trained_interval),
                (one.control_back, one.control_interval),
            ]
            cells = [
                text for n, (low, high) in back for text in (f"{n:,}", f"{low:.0%} to {high:.0%}")
            ]
            rows.append([f"{one.dose:,}", f"{one.pairs:,}", *cells, f"{one.closer:,}"])
        return rows

    def _columns(self) -> dict[str, Any]:
        """Returns a row per canary."""
        names = ("pair", "dose", "trained", "similarity", "row")
        return {**{name: vars(self)[name] for name in names}, "returned": self.returned}

    def _summary(self) -> list[Part]:
        return [*self._said(), self._table()]

    def _sections(self) -> list[Part]:
        """Returns verdict, dose curve, tables, and what a pass means and does not mean."""
        return [
            self._verdict_box(),
            heading("What came back, by number of repetitions"),
            self._curve(),
            self._table(),
            "A pair is two images of one class, each with a border of random gray levels of its "
            "own. A coin decided which one was trained on, so often as the table says; the other "
            "is its control. Closer: pairs of which the trained border resembles a synthetic image "
            "more than the control's does, half of them by chance.",
            *self._scope(),
        ]

    def _curve(self) -> Markup:
        x = np.log2([one.dose for one in self.by_dose])
        pairs = np.array([one.pairs for one in self.by_dose])
        lines = []
        for name, counts, intervals in (
            (
                "trained on",
                [one.trained_back for one in self.by_dose],
                [one.trained_interval for one in self.by_dose],
            ),
            (
                "controls",
                [one.control_back for one in self.by_dose],
                [one.control_interval for one in self.by_dose],
            ),
        ):
            low, high = np.array(intervals).T
            lines.append(Line(name, x, np.array(counts) / pairs, low, high))
        return line_chart(
            lines, x_label="repetitions, as a power of 2", y_label="share of keys that came back"
        )


def came_back(
    synthetic: Any, plan: CanaryPlan | str | Path, *, level: float = 0.01
) -> CanaryReport:
    """Looks for the keys of canaries in synthetic images.

        report = memorization.came_back(cache, "runs/marked")
        print(report); report.to_html("canaries.html")

    A key came back if the border of an image, or of its mirror image, correlates with it as no
    border that does not know the key would: the threshold allows one such image with a chance of
    0.01, whatever the images are. The p-value rests on the coins alone.

    Args:
        synthetic: Images that the model drew which was trained with the canaries: a cache, or any
            map-style data set.
        plan: The plan of the canaries, or the folder of the run that has it.
        level: Chance of "fail" if no key was learned.

    Raises:
        DataError: If the folder has no plan, or a damaged one.
        MismatchError: For images of another shape, or a cache of a model that was not trained with
            these canaries.
        ValueError: If there is no image, or the level is out of range.
    """
    check_within("(0, 1)", level=level)
    if not isinstance(plan, CanaryPlan):
        plan = CanaryPlan.load(plan)
    source = ImageSource.open(synthetic, "`synthetic`")
    rows = source.done_rows("searched for canaries")
    if source.image_shape != plan.image_shape:
        raise MismatchError(
            f"The synthetic images have shape {source.image_shape}, and the canaries "
            f"{plan.image_shape}. Look for the canaries in images of the model that was "
            "trained with them."
        )
    record = source.manifest.get("trained_on")
    if record and plan.digest not in recorded(record, "canaries"):
        raise MismatchError(
            "The images were drawn by a model that was not trained with these canaries: its record "
            f"does not name {plan.digest}. Give the folder of its run."
        )
    canaries = plan.canaries
    keys = _normalized(np.array([canary.key for canary in canaries], np.float64))
    threshold = key_threshold(keys.shape[1], 2 * len(rows) * len(keys))
    similarity, row = np.full(len(keys), -1.0), np.full(len(keys), -1)
    carriers = []
    for start in range(0, len(rows), _BLOCK):
        chosen = rows[start : start + _BLOCK]
        found = resemblance(source.pixels(chosen), keys)
        best = found.argmax(0)
        better = found.max(0) > similarity
        similarity = np.maximum(similarity, found.max(0))
        row[better] = chosen[best[better]]
        carriers.append(chosen[(found >= threshold).any(1)])
    by_dose = _by_dose(canaries, similarity, threshold)
    p_value = _p_value(by_dose, canaries, similarity, threshold)
    verdict: Literal["pass", "fail"] = "fail" if p_value <= level else "pass"
    return CanaryReport(
        verdict=verdict,
        reasons=_reasons(verdict, by_dose, p_value, len(rows), known=bool(record)),
        p_value=p_value,
        by_dose=by_dose,
        images=len(rows),
        threshold=threshold,
        pair=np.array([canary.pair for canary in canaries], np.int64),
        dose=np.array([canary.dose for canary in canaries], np.int64),
        trained=np.array([canary.trained for canary in canaries], bool),
        similarity=similarity,
        row=row,
        carriers=np.concatenate(carriers),
        identity={"synthetic": source.identity, "canaries": plan.digest, "source": plan.source},
        settings={"level": level, "images": len(rows), "cells": keys.shape[1], **_doses(plan)},
        environment=environment(),
    )


def _doses(plan: CanaryPlan) -> dict[str, JSON]:
    return {"pairs": plan.config.pairs, "doses": list(plan.config.doses), "seed": plan.config.seed}


def resemblance(pixels: Pixels, keys: Features) -> NDArray[np.float64]:
    """Correlation of each image's border with each key, the higher one of the image as it is and
    mirrored, float64 (n, m)."""
    both = [_normalized(borders(x)) @ keys.T for x in (pixels, pixels.flip(-1))]
    return np.maximum(*both)


def _normalized(levels: Features) -> Features:
    """Rows of mean 0 and norm 1; 0 where all levels are alike."""
    centered = levels - levels.mean(1, keepdims=True)
    norm = np.linalg.norm(centered, axis=1, keepdims=True)
    # A border of one color has rounding errors and no structure.
    return np.where(norm > 1e-6, centered / np.maximum(norm, 1e-6), 0)


def key_threshold(cells: int, comparisons: int) -> float:
    """The correlation that a border which does not know a key reaches with a chance of 0.01, all
    comparisons together.

    The correlation r of a random key of normally distributed levels with any border has
    r^2 ~ Beta(1/2, cells / 2 - 1). Levels are uniform here, whose tails are lighter.
    """
    share = min(1.0, 2 * CHANCE / comparisons)
    return float(np.sqrt(beta.isf(share, 0.5, cells / 2 - 1)))


def _sides(
    canaries: Sequence[Canary], values: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Values of the trained canaries, of their controls, and the doses of the pairs, (pairs,)."""
    order = np.array([(canary.pair, not canary.trained) for canary in canaries])
    rows = np.lexsort((order[:, 1], order[:, 0])).reshape(-1, 2)
    doses = np.array([canaries[row].dose for row in rows[:, 0].tolist()], np.int64)
    return values[rows[:, 0]], values[rows[:, 1]], doses


def _by_dose(
    canaries: Sequence[Canary], similarity: NDArray[np.float64], threshold: float
) -> tuple[DoseResult, ...]:
    trained, control, doses = _sides(canaries, similarity)
    results = []
    for dose in np.unique(doses).tolist():
        own, others = trained[doses == dose], control[doses == dose]
        back = [int((values >= threshold).sum()) for values in (own, others)]
        results.append(
            DoseResult(
                dose=dose,
                pairs=len(own),
                trained_back=back[0],
                trained_interval=proportion_interval(back[0], len(own)),
                control_back=back[1],
                control_interval=proportion_interval(back[1], len(own)),
                closer=int((own > others).sum()),
            )
        )
    return tuple(results)


def _p_value(
    by_dose: Sequence[DoseResult],
    canaries: Sequence[Canary],
    similarity: NDArray[np.float64],
    threshold: float,
) -> float:
    """Twice the smaller p-value of two exact tests of the coins, at most 1."""
    trained, control, _ = _sides(canaries, similarity)
    only = (trained >= threshold) & (control < threshold)
    one = only | ((trained < threshold) & (control >= threshold))
    tests = ((int(only.sum()), int(one.sum())), (sum(x.closer for x in by_dose), len(trained)))
    found = [binomtest(k, n, 0.5, alternative="greater").pvalue if n else 1.0 for k, n in tests]
    return float(min(1.0, 2 * min(found)))


def _reasons(
    verdict: str, by_dose: Sequence[DoseResult], p_value: float, images: int, *, known: bool
) -> tuple[str, ...]:
    pairs = sum(one.pairs for one in by_dose)
    trained, control = (sum(vars(x)[n] for x in by_dose) for n in ("trained_back", "control_back"))
    first = (
        f"{trained:,} of {pairs:,} keys that were trained on came back in {images:,} synthetic "
        f"images, and {control:,} of {pairs:,} that were not: p = {p_value:.2g}."
    )
    back = [one.dose for one in by_dose if one.trained_back > one.control_back]
    least = by_dose[0]
    times = "once" if least.dose == 1 else f"{least.dose:,} times"
    reasons = [first]
    if verdict == "fail" and back:
        reasons.append(f"The least repeated image that came back was repeated {min(back):,} times.")
    elif verdict == "fail":
        reasons.append("No key came back whole, but trained ones are closer than controls.")
    reasons.append(
        f"Of images that are in the training set {times}, {least.trained_interval[0]:.0%} to "
        f"{least.trained_interval[1]:.0%} come back in as many images (95 %)."
    )
    if not known:
        reasons.append("Nothing records which model drew the images.")
    return (*reasons, scope_sentence("canaries"))
