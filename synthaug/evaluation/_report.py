"""The report of an evaluation: one record per run, and their comparison."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
from markupsafe import Markup

from synthaug._support.charts import Line, dot_chart, line_chart, save_figure
from synthaug._support.html import Part, blocks, heading, table
from synthaug._support.report import Report, percent, text_table
from synthaug._training.trackers import logging_to
from synthaug._types import JSON, Doubles, StrPath
from synthaug.evaluation._adversarial import AdversarialConfig
from synthaug.evaluation._gains import Difference
from synthaug.evaluation._runs import Run

_PER_CHART = 6  # more lines cannot be told apart
_STEP = "optimizer step"

ROBUST = "robust"
"""The result under attack, among the others of a run."""

Which: TypeAlias = str | Sequence[str] | None
"""A result by name, the mean of several, or `None` for the test images as they are."""
_FEW_SETS = 3  # more columns would not fit

Curve: TypeAlias = Literal["loss_curve", "validation_curve"]


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """Test accuracies of classifiers trained on different arms for equal optimizer steps.

        print(report.table())
        report.accuracies("real")               # float64 (seeds,)
        report.difference("real + synthetic")   # paired with the baseline, seed by seed
        report.to_json(path); report.to_html(path); report.plot(path)

    Accuracies are shares in [0, 1]; tables have them in percent.
    """

    _FORMAT = "synthaug-evaluation"
    _FORMAT_VERSION = 1
    _NOUN = "an evaluation report"
    _REMEDY = "Evaluate again: runs that are done are kept in their folder."
    _TITLE = "Evaluation"

    baseline: str
    """The arm that the others are compared with."""
    classes: list[str]
    """Class names."""
    settings: dict[str, JSON]
    """What all arms shared: model, optimizer, steps, number of test images, versions."""
    arms: dict[str, dict[str, JSON]]
    """For each arm its number of `images`, how they were augmented (`augment`), what an audit said
    about its synthetic ones (`synthetic`), and how `rare classes` count more, if they do."""
    runs: list[Run]
    """All runs, arm by arm."""
    test_labels: list[int] = field(default_factory=list)
    """The class of every test image."""
    train_counts: list[int] = field(default_factory=list)
    """Training images of every class in the baseline; empty if they are not known."""
    class_sizes: tuple[int, int] = (20, 100)
    """Classes with fewer training images than the first number are few, with more than the second
    many, the others medium."""

    @property
    def arm_names(self) -> list[str]:
        """Names of the arms, in the order in which they were given."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of one arm.

        Raises:
            ValueError: If there is no such arm.
        """
        runs = [run for run in self.runs if run.arm == arm]
        if not runs:
            raise ValueError(f"`arm` {arm!r} is unknown. Arms: {', '.join(self.arm_names)}.")
        return runs

    @property
    def results(self) -> list[str]:
        """Names of the results besides the accuracy on the test images, such as "robust"."""
        return list(self.runs[0].others) if self.runs else []

    def accuracies(self, arm: str, result: Which = None) -> Doubles:
        """Test accuracies of an arm, one per seed, float64 (seeds,) in [0, 1].

        Args:
            arm: Name of the arm.
            result: One of `results`, such as "robust", in place of the test images as they are; or
                several, whose mean accuracy counts.

        Raises:
            ValueError: If there is no such arm or result.
        """
        names = _names(result)
        by_run = [[run.tested(name).accuracy for name in names] for run in self.of(arm)]
        return np.array(by_run, np.float64).mean(axis=1)

    def calibration_errors(self, arm: str, result: Which = None) -> Doubles:
        """Expected calibration errors of an arm, one per seed, float64 (seeds,); as `accuracies`.

        Of several results it is their mean; of attacked images, and of reports without, NaN.
        """
        names = _names(result)
        by_run = [[run.tested(name).calibration_error for name in names] for run in self.of(arm)]
        return np.array(by_run, np.float64).mean(axis=1)

    def class_accuracies(self, arm: str, result: str | None = None) -> Doubles:
        """Accuracies by class, one row per seed, float64 (seeds, classes) in [0, 1].

        NaN for classes without test images. See `group_accuracies` for means over some of them.

        Args:
            arm: Name of the arm.
            result: One of `results`; by default the test images.
        """
        return np.array([run.tested(result).class_accuracies for run in self.of(arm)], np.float64)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Groups of classes by name: "all", and by their number of training images "many", "medium"
        and "few", if the classes are not all of one group. Classes without test images are left
        out."""
        tested = self.runs[0].class_accuracies if self.runs else []
        classes = [c for c, accuracy in enumerate(tested) if accuracy is not None]
        low, high = self.class_sizes
        groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
        for c in classes if self.train_counts else ():
            n = self.train_counts[c]
            groups["many" if n > high else "few" if n < low else "medium"].append(c)
        groups = {name: members for name, members in groups.items() if members}
        return {"all": classes, **(groups if len(groups) > 1 else {})}

    def group_accuracies(self, arm: str, group: str = "all", result: str | None = None) -> Doubles:
        """Mean accuracy of some classes, one per seed, float64 (seeds,) in [0, 1].

            report.group_accuracies("real")             # balanced accuracy
            report.group_accuracies("real", "few")
            report.group_accuracies("real", "worst")    # of the class with the lowest mean

        Args:
            arm: Name of the arm.
            group: One of `groups`, or "worst": the class of which the arm has the lowest accuracy,
                averaged over seeds.
            result: One of `results`; by default the test images.

        Raises:
            ValueError: If there is no such arm, group or result.
        """
        members = [self.worst_class(arm, result)] if group == "worst" else self._members(group)
        return np.array([run.tested(result).over_classes(members) for run in self.of(arm)])

    def worst_class(self, arm: str, result: str | None = None) -> int:
        """The class of which an arm has the lowest accuracy, averaged over seeds."""
        return int(np.nanargmin(self.class_accuracies(arm, result).mean(axis=0)))

    def aucs(self, arm: str, result: str | None = None) -> Doubles:
        """Areas under the receiver operating characteristic, one per seed, float64 (seeds,); NaN
        for other numbers of classes than two."""
        return np.array([run.tested(result).auc for run in self.of(arm)], np.float64)

    def _members(self, group: str) -> list[int]:
        if group not in self.groups:
            known = ", ".join(map(repr, self.groups))
            raise ValueError(
                f"`group` {group!r} is not a fixed group of classes. Groups here: {known}. "
                '`group_accuracies` also has "worst", the worst classes of each arm.'
            )
        return self.groups[group]

    def mean(self, arm: str, result: Which = None) -> float:
        """Mean test accuracy over the seeds."""
        return float(self.accuracies(arm, result).mean())

    def std(self, arm: str, result: Which = None) -> float | None:
        """Sample standard deviation of the test accuracy over the seeds, with n - 1 below the line.

        `None` for a single seed, which has no spread.
        """
        values = self.accuracies(arm, result)
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def difference(
        self,
        arm: str,
        baseline: str | None = None,
        *,
        result: Which = None,
        class_name: str | None = None,
        group: str | None = None,
    ) -> Difference:
        """The arm's gain over the baseline, paired by seed and by test image.

        Runs of one seed share initial weights and random draws, so the pairs are compared and not
        the means: what a seed does to both arms cancels. In the same way an image that both arms
        classify alike says nothing about their difference.

        Args:
            arm: Name of the arm.
            baseline: Arm to compare with; by default the report's baseline.
            result: One of `results`, or several, whose mean counts; by default the accuracy on the
                test images.
            class_name: Counts images of this class only, of a single result.
            group: Counts the mean accuracy of one of `groups` of classes, of a single result: "all"
                is the gain in balanced accuracy.

        Raises:
            ValueError: If the two arms have no seed in common, or the class has no test image;
                for a class and a group at once, or one of them with several results.
        """
        if class_name is not None and group is not None:
            raise ValueError("`class_name` and `group` exclude each other. Give one of them.")
        base = {run.seed: run for run in self.of(baseline or self.baseline)}
        pairs = [(run, base[run.seed]) for run in self.of(arm) if run.seed in base]
        if not pairs:
            raise ValueError(
                f"{arm!r} and {baseline or self.baseline!r} have no seed in common. "
                "Evaluate both with the same seeds."
            )
        sets = [
            [(ours.tested(name), theirs.tested(name)) for ours, theirs in pairs]
            for name in _names(result)
        ]
        if class_name is None and group is None:
            return Difference.of(*sets)
        if len(sets) > 1:
            raise ValueError(
                f"`result` has {len(sets)} names, and the gain of some classes is that of a single "
                "result. Give one of them."
            )
        if class_name is None:
            members = self._members(str(group))
        elif class_name not in self.classes:
            raise ValueError(
                f"`class_name` {class_name!r} is unknown. The report's `classes` has the names."
            )
        else:
            members = [self.classes.index(class_name)]
        labels = self.test_labels if result in (None, ROBUST) else []  # of other sets not known
        return Difference.of_classes(sets[0], members, np.array(labels, np.int64))

    def losing_classes(self, arm: str, *, result: Which = None) -> dict[str, Difference]:
        """The classes that an arm loses accuracy in, beyond chance, with their negative gains.

        Those whose 95 % interval, each class taken alone, is below 0: of twenty classes that
        nothing changes, one is expected in half of all cases. Empty for reports without labels of
        the test images.
        """
        present = {self.classes[c] for c in set(self.test_labels)}
        gains = {
            name: self.difference(arm, result=result, class_name=name)
            for name in self.classes
            if name in present
        }
        return {n: gain for n, gain in gains.items() if gain.high is not None and gain.high < 0}

    def gain_notes(self) -> list[str]:
        """A sentence on the gain of every arm: its interval, and the classes that lose."""
        notes = []
        for arm in self.arm_names if self.test_labels else ():
            for title, result in self._shown():
                gain = None if arm == self.baseline else self.difference(arm, result=result)
                if gain is None or gain.low is None or gain.high is None:
                    continue
                what = "accuracy" if result is None else f"{title} accuracy"
                low, high = (f"{100 * bound:+.2f}" for bound in (gain.low, gain.high))
                if result not in (None, ROBUST):
                    notes.append(
                        f"{arm}: the 95 % interval of its gain in {what} is {low} to {high}."
                    )
                    continue
                losing = self.losing_classes(arm, result=result)
                classes = ", ".join(f"{name} {_gain(loss)}" for name, loss in losing.items())
                lost = f"It loses in {classes}." if classes else "No class loses beyond chance."
                notes.append(
                    f"{arm}: the 95 % interval of its gain in {what} is {low} to {high}. {lost}"
                )
        return notes

    def rows(self) -> list[list[str]]:
        """The table as text, header first: a row per arm, accuracies in percent."""
        gain = f"gain over {self.baseline}"
        others = [title for name, _ in self._shown()[1:] for title in (f"{name} %", "gain")]
        classes = ["AUC %" if name == "AUC" else f"{name} %" for name in self._by_group()]
        header = ["arm", "n", "accuracy %", gain, *others, *classes, "real seen", "synthetic seen"]
        return [header, *(self._row(arm) for arm in self.arm_names)]

    def _by_group(self) -> dict[str, Callable[[str], Doubles]]:
        """Further columns about classes: title, and the values of an arm, one per seed."""
        columns: dict[str, Callable[[str], Doubles]] = {}
        for group in self.groups:
            title = "balanced" if group == "all" else group
            columns[title] = partial(self.group_accuracies, group=group)
        if len(columns) > 1:
            columns["worst class"] = partial(self.group_accuracies, group="worst")
        if self.runs and self.runs[0].auc is not None:
            columns["AUC"] = self.aucs
        return columns

    def table(self) -> str:
        """A text table, in percent: mean ± standard deviation, and gain ± its standard error."""
        texts = (self.caption(), *self.gain_notes(), *self.synthetic_notes())
        notes = [textwrap.fill(text, 79) for text in texts]
        return "\n".join([text_table(self.rows(), rule=True), "", *notes])

    def synthetic_notes(self) -> list[str]:
        """One line on every pool of synthetic images: how many, and what an audit said."""
        arms: dict[str, list[str]] = {}
        for name, arm in self.arms.items():
            if arm.get("synthetic"):
                arms.setdefault(str(arm["synthetic"]), []).append(repr(name))
        return [f"Synthetic images of {', '.join(who)}: {text}." for text, who in arms.items()]

    def caption(self) -> str:
        """A few sentences on how to read the table."""
        steps = ", ".join(str(n) for n in sorted({run.steps for run in self.runs}))
        images = any(run.correct for run in self.runs)
        over = "over seeds and test images" if images else "seed by seed"
        tested = self.settings.get("test_images")
        number = f"{tested:,}" if isinstance(tested, int) else "the"
        return (
            f"Accuracy on {number} test images after {steps} "
            "optimizer steps: mean ± sample standard deviation over n seeds. Gain: mean ± standard "
            f"error of the differences {over}. Seen: different images in all batches, mean "
            f"over seeds. Balanced: mean over classes.{self._groups_text()}{self._attack()}"
        )

    def _groups_text(self) -> str:
        """Explains the groups of classes."""
        if len(self.groups) < 2:
            return ""
        low, high = self.class_sizes
        return (
            f" Many, medium and few: mean over classes with more than {high}, {low} to {high}, and "
            f"fewer than {low} training images. Worst class: the one with the lowest mean."
        )

    def _attack(self) -> str:
        """Explains what "robust" means here."""
        attack = self.settings.get("adversarial")
        if not isinstance(attack, dict):
            return ""
        config = AdversarialConfig(**attack)
        return (
            f" All arms are trained on images attacked in {config.steps} steps of projected "
            f"gradient, by up to {config.epsilon:.3g} per pixel, with the network in "
            f"{config.attack_mode} mode. Robust: classified correctly under an attack of "
            f"{config.test_steps} steps with {config.restarts} random starts."
        )

    def _shown(self) -> list[tuple[str, Which]]:
        """The results that have columns: title and names. Many test sets share one, their mean."""
        further = [name for name in self.results if name != ROBUST]
        shown: list[tuple[str, Which]] = [("test", None)]
        shown += [(name, name) for name in self.results if name == ROBUST]
        if len(further) <= _FEW_SETS:
            return [*shown, *((name, name) for name in further)]
        return [*shown, (f"mean of {len(further)} further sets", further)]

    def _row(self, arm: str) -> list[str]:
        runs = self.of(arm)
        measured = []
        for _, result in self._shown():
            gain = "" if arm == self.baseline else _gain(self.difference(arm, result=result))
            measured += [percent(self.accuracies(arm, result)), gain]
        return [
            arm,
            str(len(runs)),
            *measured,
            *(percent(values(arm)) for values in self._by_group().values()),
            f"{np.mean([run.unique_real for run in runs]):,.0f}",
            f"{np.mean([run.unique_synthetic for run in runs]):,.0f}",
        ]

    def _text(self) -> str:
        return self.table()

    def _summary(self) -> list[Part]:
        return [self.rows(), self.caption(), *self.gain_notes(), *self.synthetic_notes()]

    def _columns(self) -> dict[str, Any]:
        """Returns a row per run; curves are left out, and classes have a column each."""
        curves = {"class_accuracies", "loss_curve", "validation_curve", "correct", "others"}
        names = [field.name for field in fields(Run) if field.name not in curves]
        columns = {name: [vars(run)[name] for run in self.runs] for name in names}
        groups = {"balanced" if name == "all" else name: c for name, c in self.groups.items()}
        for name, members in groups.items():
            columns[f"{name} accuracy"] = [run.tested().over_classes(members) for run in self.runs]
        for result in (None, *self.results):
            tested = [run.tested(result) for run in self.runs]
            kind = "accuracy" if result is None else f"{result} accuracy"
            if result is not None:
                columns[kind] = [one.accuracy for one in tested]
            for c, name in enumerate(self.classes):
                columns[f"{kind}, {name}"] = [one.class_accuracies[c] for one in tested]
        return columns

    def _record(self) -> dict[str, Any]:
        """Returns the contents of the JSON file; runs without what they do not have."""
        runs = [
            {
                name: value
                for name, value in vars(run).items()
                if value not in ("", {}) and not (name == "auc" and value is None)
            }
            for run in self.runs
        ]
        by_group: dict[str, dict[str, float | None]] = {}
        for arm in self.arm_names:
            means = {name: float(values(arm).mean()) for name, values in self._by_group().items()}
            by_group[arm] = {n: None if np.isnan(mean) else mean for n, mean in means.items()}
        record = {**super()._record(), "runs": runs, "by_class_size": by_group}
        if not self.test_labels:
            del record["test_labels"]
        return record

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "EvaluationReport":
        record.pop("by_class_size", None)  # follows from the runs
        return super()._from_record(record)

    def _sections(self) -> list[Part]:
        """Returns table, charts, and accuracy by class."""
        rows, *notes = self._summary()
        small = [Markup("<p><small>{}</small></p>").format(text) for text in notes]
        parts: list[Part] = [rows, *small]
        for title, result in self._shown() if self.runs else ():
            percent = {arm: 100 * self.accuracies(arm, result) for arm in self.arm_names}
            label = f"{title} accuracy in percent, one dot per seed"
            parts.append(dot_chart(percent, x_label=label))
        if any(run.calibration_error is not None for run in self.runs):
            parts += [heading("Accuracy and calibration"), self._by_result()]
        if any(run.validation_curve for run in self.runs):
            parts.append(heading("Validation accuracy while training"))
            parts += self._charts("validation_curve", "accuracy in percent")
        parts += [heading("Training loss"), *self._charts("loss_curve", "cross entropy")]
        for title, result in self._shown():
            if not (result is None or isinstance(result, str)):
                continue  # classes of many sets would fill pages: they are in the file
            kind = "Accuracy" if result is None else f"{title.capitalize()} accuracy"
            by_class = table(["class", *self.arm_names], self._by_class(result))
            parts += [heading(f"{kind} by class, and gain"), by_class]
        return parts

    def _made_with(self) -> dict[str, dict[str, JSON]]:
        return {"": {**self.settings, "baseline": self.baseline}}

    def html_sections(self) -> Markup:
        """The whole page without its frame and heading, to go into a larger page."""
        arms = []
        for name, arm in self.arms.items():
            seconds = np.mean([run.seconds for run in self.of(name)])
            rare = f"; rare classes {arm['rare classes']}" if "rare classes" in arm else ""
            arms.append([name, arm["images"], f"{seconds:,.1f}", f"{arm['augment']}{rare}"])
        header = ["arm", "images", "seconds per run", "augmentation"]
        return blocks(super().html_sections(), table(header, arms, text_columns=1))

    def _charts(self, curve: Curve, y_label: str) -> list[Markup]:
        lines = self._mean_curves(curve)
        groups = [lines[i : i + _PER_CHART] for i in range(0, len(lines), _PER_CHART)]
        return [line_chart(group, x_label=_STEP, y_label=y_label) for group in groups]

    def _mean_curves(self, curve: Curve) -> list[Line]:
        """Mean and sample standard deviation over seeds, at the steps that all runs of an arm have.

        Accuracies are in percent. Arms without such a step are left out.
        """
        lines = []
        for arm in self.arm_names:
            curves = [dict(vars(run)[curve]) for run in self.of(arm)]
            steps = sorted(set.intersection(*(set(c) for c in curves)))
            if not steps:
                continue
            values = np.array([[c[step] for step in steps] for c in curves], np.float64)
            values = 100 * values if curve == "validation_curve" else values
            mean = values.mean(axis=0)
            spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
            lines.append(Line(name=arm, x=steps, y=mean, low=mean - spread, high=mean + spread))
        return lines

    def _by_result(self) -> Markup:
        """Tabulates mean accuracy and calibration error on every set of images."""
        rows = []
        for result in (None, *self.results):
            cells = []
            for arm in self.arm_names:
                accuracy = f"{100 * self.mean(arm, result):.1f}"
                error = 100 * self.calibration_errors(arm, result).mean()
                cells.append(accuracy if np.isnan(error) else f"{accuracy} (ECE {error:.1f})")
            rows.append([result or "test", *cells])
        return table(["images", *self.arm_names], rows)

    def _by_class(self, result: str | None) -> list[list[str]]:
        rows = []
        for c, name in enumerate(self.classes):
            cells = []
            for arm in self.arm_names:
                accuracies = [run.tested(result).class_accuracies[c] for run in self.of(arm)]
                tested = [accuracy for accuracy in accuracies if accuracy is not None]
                text = f"{100 * np.mean(tested):.1f}" if tested else "no test image"
                if tested and self.test_labels and arm != self.baseline:
                    gain = self.difference(arm, result=result, class_name=name)
                    text += f" ({_gain(gain)})"
                cells.append(text)
            rows.append([name, *cells])
        return rows

    def to_tracker(self, log_with: Any, folder: StrPath) -> None:
        """Sends the curves of all runs, and their accuracies, to an experiment tracker.

            report.to_tracker("tensorboard", "runs/evaluation")

        Args:
            log_with: "tensorboard", "wandb" or "mlflow", or a `GeneralTracker` of accelerate.
            folder: One folder is one run of the tracker; TensorBoard writes into it.

        Raises:
            ValueError: For another name.
            ImportError: If its library is not installed.
        """
        points: dict[int, dict[str, float]] = {}
        for run in self.runs:
            name = f"{run.arm}/seed {run.seed}"
            for title, curve in (
                ("loss", run.loss_curve),
                ("validation accuracy", run.validation_curve),
                ("test accuracy", [(run.steps, run.test_accuracy)]),
            ):
                for step, value in curve:
                    points.setdefault(step, {})[f"{name}/{title}"] = value
        with logging_to(log_with, self.settings, folder) as log:
            for step in sorted(points):  # trackers take no step before the last one
                log(points[step], step)

    def plot(self, path: StrPath) -> Path:
        """Writes a figure, as PNG, SVG or PDF by the name's ending.

        Accuracies with mean and spread are to the left, curves to the right.

        Args:
            path: File to write; its folder is made if it is missing.
        """
        from matplotlib.figure import Figure  # pyplot would keep figures and open windows

        arms = {arm: f"C{row % 10}" for row, arm in enumerate(self.arm_names)}
        figure = Figure(figsize=(11, 1.6 + 0.5 * max(4, len(arms))), layout="constrained")
        left, right = figure.subplots(1, 2)
        for row, (arm, color) in enumerate(arms.items()):
            values, std = 100 * self.accuracies(arm), 100 * (self.std(arm) or 0)
            left.scatter(values, np.full(len(values), row), s=18, color=color, alpha=0.6, zorder=3)
            bar = {"xerr": std or None, "fmt": "|", "markersize": 16, "capsize": 3}
            left.errorbar(values.mean(), row, color=color, **bar)
        left.set_yticks(range(len(arms)), arms)
        left.set_ylim(len(arms) - 0.5, -0.5)
        left.set_xlabel("test accuracy in percent: seeds, mean ± standard deviation")
        left.grid(axis="x", alpha=0.3)
        curve: Curve = "loss_curve"
        right.set(xlabel=_STEP, ylabel="training loss")
        if any(run.validation_curve for run in self.runs):
            curve = "validation_curve"
            right.set(ylabel="validation accuracy in percent")
        for line in self._mean_curves(curve):
            color = arms[line.name]
            right.plot(line.x, line.y, color=color, label=line.name)
            right.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, lw=0)
        right.grid(alpha=0.3)
        right.legend(fontsize=8)
        return save_figure(figure, path)


def _names(result: Which) -> list[str | None]:
    """The results that are meant."""
    if result is None or isinstance(result, str):
        return [result]
    if not result:
        raise ValueError("`result` is an empty list. Name one of the report's `results`.")
    return list(result)


def _gain(difference: Difference) -> str:
    """A gain in percent, with its standard error if it has one."""
    error = difference.standard_error
    return f"{100 * difference.mean:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}")
