"""What a sweep found: a table, the chosen setting, a plot."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from synthaug._support.files import write_text
from synthaug._sweep.settings import Setting
from synthaug._types import JSON
from synthaug.errors import DataError
from synthaug.evaluation._quality import Scores, text_table

FORMAT = "synthaug-sweep"


@final
@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One setting and what its images are worth."""

    setting: Setting
    images: int
    """Images that were drawn."""
    evaluations: float
    """Network evaluations per image."""
    scores: Scores
    """Of `scores.n` of them."""
    cas: list[float] | None = None
    """Accuracies on the validation split of classifiers trained on the images, one per seed;
    second stage only."""

    @property
    def frechet_distance(self) -> float:
        """What the first stage chooses by."""
        assert self.scores.frechet_distance is not None
        return self.scores.frechet_distance


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport:
    """Both stages of a sweep; made by `synthaug.sweeps.sweep`.

        print(report)
        report.chosen          # {"scheduler": "ddpm", "num_inference_steps": 50, ...}
        report.to_html("sweep.html"); report.to_json("sweep.json"); report.plot("sweep.png")

    Everything was chosen on the validation split.
    """

    coarse: list[SweepRow]
    """First stage, in the order of the grid."""
    fine: list[SweepRow]
    """Second stage: guidance alone, the rest as in the best setting of the first."""
    floors: dict[str, Scores]
    """For "coarse" and "fine": real training images, as many, against the same images."""
    real_accuracy: list[float]
    """Accuracies of the same classifier trained on the real images, one per seed."""
    chosen: Setting
    """The setting to use."""
    select: str
    """What the second stage chose by: "cas" or "frechet"."""
    validation: dict[str, JSON]
    """The split that everything was chosen on: `name`, `fingerprint`, `images`; and whether it was
    compared with the test split (`compared_with_test`)."""
    extractor: dict[str, JSON]
    """Name of the features of the Fréchet distance, digest of their weights, their number `dim`."""
    classifier: dict[str, JSON]
    """Name of the classifier of the inception score and its weights, and how those of the accuracy
    were trained."""
    settings: dict[str, JSON] = field(default_factory=dict)
    """How the sweep was asked for, if it was from the command line (`command`)."""

    def rows(self, stage: str) -> list[list[str]]:
        """The table of one stage as text, header first; in the first the best comes first."""
        rows = (
            self.fine if stage == "fine" else sorted(self.coarse, key=lambda r: r.frechet_distance)
        )
        names = list(dict.fromkeys(name for row in rows for name in row.setting))
        if stage == "fine":
            header = ["guidance_scale", "Fréchet distance", "inception score", "CAS %"]
        else:
            header = [*names, "evaluations", "Fréchet distance", "precision", "recall"]
        shown = [header]
        for row in rows:
            distance = f"{row.frechet_distance:.4g}"
            if stage == "fine":
                score = row.scores.inception_score
                shown.append(
                    [
                        f"{row.setting['guidance_scale']:g}",
                        distance,
                        "-" if score is None else f"{score:.4g}",
                        percent(row.cas),
                    ]
                )
                continue
            values = (row.setting.get(name, "") for name in names)
            shown.append(
                [
                    *(f"{v:g}" if isinstance(v, float) else str(v) for v in values),
                    f"{row.evaluations:g}",
                    distance,
                    f"{row.scores.precision:.3f}",
                    f"{row.scores.recall:.3f}",
                ]
            )
        return shown

    def caption(self, stage: str) -> str:
        """A few sentences on how to read a table."""
        floor, images = (
            self.floors[stage],
            (self.fine if stage == "fine" else self.coarse)[0].images,
        )
        text = (
            f"{images:,} images per setting. Fréchet distance of {floor.n:,} of them to as many "
            f"validation images, in the {self.extractor['dim']} features of "
            f"{self.extractor['name']}; {floor.n:,} real training images get "
            f"{floor.frechet_distance:.4g}."
        )
        if stage == "fine":
            text += (
                f" Inception score by {self.classifier['name']}. CAS: accuracy on the validation "
                f"images of {self.classifier['model']} trained on the synthetic images alone for "
                f"{self.classifier['steps']} steps; on the real ones "
                f"{percent(self.real_accuracy)}."
            )
        return text

    def verdict(self) -> str:
        """What was chosen, and on what."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.chosen.items())
        compared = (
            "which shares no image with the test split"
            if self.validation["compared_with_test"]
            else "which must not be the split that results are reported on"
        )
        by = {"cas": "CAS", "frechet": "the Fréchet distance"}[self.select]
        split = f"the validation split ({self.validation['name']})"
        return f"Chosen by {by} on {split}, {compared}: {chosen}."

    def __str__(self) -> str:
        stages = [s for s in ("coarse", "fine") if getattr(self, s)]
        parts = [text_table(self.rows(stage)) + "\n" + self.caption(stage) for stage in stages]
        return "\n\n".join([*parts, self.verdict()])

    def _repr_html_(self) -> str:
        from synthaug._support.html import notebook, table

        parts = []
        for stage in ("coarse", "fine"):
            if getattr(self, stage):
                header, *rows = self.rows(stage)
                parts += [table(header, rows), self.caption(stage)]
        return notebook(self.verdict(), *parts)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes one self-contained page that opens from disk, offline."""
        from synthaug._sweep.show import render

        return write_text(path, render(self))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Writes a figure, as PNG, SVG or PDF by the name's ending."""
        from synthaug._sweep.show import plot

        return plot(self, path)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes the whole report."""
        record = {"format": FORMAT, **asdict(self)}
        return write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "SweepReport":
        """Reads what `to_json` wrote.

        Raises:
            DataError: If it is missing, damaged, or something else.
        """
        try:
            record: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if record.pop("format") != FORMAT:
                raise ValueError("it has another format")
            for stage in ("coarse", "fine"):
                record[stage] = [row_from_json(row) for row in record[stage]]
            record["floors"] = {k: Scores(**v) for k, v in record["floors"].items()}
            return cls(**record)
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{os.fspath(path)} is not the report of a sweep ({error}).") from error


def row_from_json(record: dict[str, Any]) -> SweepRow:
    """A row out of the dict that `dataclasses.asdict` made of it."""
    return SweepRow(**{**record, "scores": Scores(**record["scores"])})


def percent(accuracies: Sequence[float] | None) -> str:
    """Mean and sample standard deviation in percent."""
    if not accuracies:
        return "-"
    text = f"{100 * np.mean(accuracies):.2f}"
    if len(accuracies) > 1:
        text += f" ± {100 * np.std(accuracies, ddof=1):.2f}"
    return text
