"""The search for synthetic images that help: what it tries, keeps, decides and refuses."""

import json
import pickle
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import synthaug
from synthaug import AuditReport, improve
from synthaug._cache import State
from synthaug._images.source import ImageSource
from synthaug.errors import DataError, MismatchError, SynthaugError
from synthaug.evaluation import AdversarialConfig, EvaluationReport, Run
from synthaug.improvement import Gain, ImproveConfig, ImproveReport, Recipe, Round, _cost
from synthaug.improvement._cost import Estimate, affordable, runs
from synthaug.improvement._recipes import RecipeImages
from synthaug.selection import Difficulty, ImageSelection
from tests.audits import measure_no_audit
from tests.command_line import check_answer, fail, succeed
from tests.images import to_pil
from tests.mixtures import report_on
from tests.payloads import Payload
from tests.searches import CLASSES, QUICK, TEST, VALIDATION, Levels, real, search


@pytest.fixture(autouse=True)
def none_drawn() -> None:
    Levels.drawn = 0


AUDITED = RecipeImages.audited
OF_AUDIT = _cost._of_audit


@pytest.fixture(scope="module", autouse=True)
def passing_audits() -> Iterator[None]:
    """Audits that withhold the first image: a real one takes seconds, and has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RecipeImages, "audited", lambda _, cache: report_on(cache, np.arange(len(cache)) > 0)
        )
        measure_no_audit(patch)
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ImproveReport]:
    folder = tmp_path_factory.mktemp("improve")
    return folder, search(folder)


def test_images_of_the_true_distribution_help_eight_real_ones(found):
    _, report = found
    assert report.verdict == "use"
    assert report.chosen == "true"
    assert report.gain.low > 0
    assert report.test_gain.mean > 0.02
    assert report.candidates[-1].recipe == "exchanged"  # dropped early, on fewer seeds
    assert report.candidates[-1].seeds == 2
    assert report.candidates[0].seeds == 4
    assert report.rounds[0].served == report.rounds[0].images - 1
    assert "MixedDataset" in report.lines()


def test_the_lines_to_paste_serve_what_a_real_audit_passed(tmp_path, monkeypatch):
    pool = RecipeImages(
        "true", Recipe(Levels()), ImageSource.open(real(8, 0)), real(20, 1), tmp_path, QUICK
    )
    cache = pool.cache([{"dark": 2, "light": 2}])
    report = AUDITED(pool, cache)
    assert AuditReport.from_json(pool.audit_path(cache)).identity == report.identity
    monkeypatch.setattr("synthaug.improvement._recipes.audit", None)  # none is made a second time
    assert AUDITED(pool, cache).verdict == report.verdict
    best = Round(
        images=4,
        served=4,
        accuracy=0.5,
        gain=Gain(mean=0.0, standard_error=None, low=None, high=None, seeds=1),
        kept=True,
        cache=str(cache.path),
        audit=report.verdict,
        audit_report=str(pool.audit_path(cache)),
    )
    answer = ImproveReport(
        verdict="use",
        reasons=[],
        sets={},
        candidates=[],
        settings={},
        share=0.5,
        rounds=[best],
    )
    names: dict[str, Any] = {"synthaug": synthaug, "train": real(8, 0)}
    exec("\n".join(answer.lines().splitlines()[:2]), names)
    assert len(names["mixed"]) == 8


def test_what_an_earlier_round_withheld_stays_withheld(found):
    _, report = found
    whole = synthaug.SynthCache(report.rounds[1].cache)
    assert len(whole) == 160
    # The stand-in of an audit passes all but the first image of the whole, and of the first round.
    assert np.flatnonzero(whole.state == State.WITHDRAWN).tolist() == [0]


def test_rerun_nothing_is_made_anew_and_the_answer_is_the_same(found):
    folder, report = found
    again = search(folder)
    assert Levels.drawn == 0
    assert again.gain == report.gain
    assert again.test_gain == report.test_gain


def test_images_that_harm_are_answered_with_none_and_the_test_stays_unused(tmp_path):
    config = replace(QUICK, rounds=1)
    report = search(tmp_path, recipes={"exchanged": Levels(exchanged=True)}, config=config)
    assert report.verdict == "none"
    assert report.test_gain is None
    assert report.lines() == ""
    assert "test images were not looked at" in " ".join(report.reasons)


def test_the_report_survives_its_file(found, tmp_path):
    folder, report = found
    again = ImproveReport.from_json(folder / "improve.json")
    assert again.candidates == report.candidates
    assert again.rounds == report.rounds
    assert str(again) == str(report)
    assert "To paste into a training loop" in (folder / "improve.html").read_text()


def test_without_splits_they_are_set_aside_by_class(tmp_path):
    report = search(tmp_path, n=200, validation=None, test=None, dry_run=True)
    assert report.verdict == "planned"
    assert report.sets["test"] + report.sets["validation"] + report.sets["train"] == 200
    assert 20 <= report.sets["validation"] <= 45
    assert Levels.drawn < 1000
    assert not list(tmp_path.glob("recipe-*/*.h5"))


def test_a_budget_too_small_for_one_recipe_is_refused_before_any_training(tmp_path):
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"`minutes` is 1e-05, and one recipe takes .*cost"):
            search(tmp_path, config=replace(QUICK, minutes=1e-5), dry_run=dry_run)
    assert not (tmp_path / "classifiers").exists()
    measured = json.loads((tmp_path / "cost.json").read_text())
    for seconds in (1e18, -1):
        (tmp_path / "cost.json").write_text(json.dumps({**measured, "classifier": seconds}))
        with pytest.raises(DataError, match=r"cost\.json is damaged: a step of .* Delete it"):
            search(tmp_path, config=replace(QUICK, minutes=1e-5))


def test_recipes_that_do_not_fit_are_named(tmp_path):
    config = replace(QUICK, shares=(0.5, 0.3))
    estimate = Estimate(
        classifier=60.0,
        generator=0.0,
        images={"a": 0.0, "b": 0.0},
        classifiers={"a": 0, "b": 3},
        overdrawn={"a": 1, "b": 2},
        audit=5.0,
        audited_image=0.1,
        rivals=2,
    )
    wanted = [("a", 0.5), ("a", 0.3)]
    minutes = estimate.total(wanted[:1], config, 100) / 60
    taken, left = affordable(wanted, estimate, replace(config, minutes=minutes), 100)
    assert (taken, left) == (wanted[:1], wanted[1:])
    # 2 rivals and 1 recipe on 2 seeds, then 2 arms to 4 seeds, a round, and the confirmation
    assert runs(1, config, 2) == 4 + 2 * 2 + 2 * 2 + 4 + 8
    # 20 validation images, and 10 synthetic ones per each of 100 real ones in each of 2 rounds
    audits = 5 + 0.1 * (1000 + 20) + 5 + 0.1 * (2000 + 20)
    total = estimate.total(wanted[:1], config, 100, 20)
    assert total == pytest.approx(60 * runs(1, config, 2) + audits)
    judged = estimate.total([("b", 0.5)], config, 100, 20)
    # 3 classifiers in each round, and twice as many images in its audit
    assert judged == pytest.approx(total + 2 * 3 * 60 + 0.1 * (1000 + 2000))


def test_the_time_of_an_audit_is_measured_on_real_images(monkeypatch, caplog):
    clock = [0.0]

    def audited(synthetic: Any, train: Any, *, holdout: Any, **_: Any) -> None:
        clock[0] += 3 + 0.5 * len(synthetic) + 0.5 * len(holdout)

    monkeypatch.setattr(_cost, "audit", audited)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    sets = ImageSource.open(real(200, 0)), ImageSource.open(real(300, 1))
    assert OF_AUDIT(*sets) == pytest.approx((3.0, 0.5))

    def refused(*_: Any, **__: Any) -> None:
        raise DataError("Too few images.")

    monkeypatch.setattr(_cost, "audit", refused)
    assert OF_AUDIT(*sets) == (0.0, 0.0)
    assert "was not measured: Too few images." in caplog.text


def test_difficult_classes_and_selected_images_are_tried_beside_all_rivals(tmp_path, monkeypatch):
    train = real(24, 0).subset([*range(12), *range(13, 24, 2)])  # 6 dark, 12 light
    config = replace(
        QUICK,
        shares=(0.5, 0.3),
        targets=("random", "difficult", "selected"),
        augmentations=("mixup",),
        rounds=1,
        final_seeds=2,
        images_per_round=2,
        classifiers=replace(QUICK.classifiers, steps=4),
    )
    report = improve(
        train,
        tmp_path,
        validation=VALIDATION,
        test=TEST,
        recipes={"true": Levels()},
        config=config,
        progress=False,
    )
    assert [*report.rivals] == [
        *("real, augmented", "real, as it is", "real, mixup"),
        *("real, balanced", "real, logit-adjustment"),
    ]
    assert sorted((one.recipe, one.share) for one in report.candidates) == [
        ("true", 0.3),
        ("true", 0.5),
        ("true, difficult classes first", 0.5),
        ("true, selected", 0.5),
    ]
    caches = {
        target: synthaug.SynthCache(tmp_path / f"recipe-1{target}" / "round-1.h5")
        for target in ("", "-difficult", "-selected")
    }
    counts = {target: np.bincount(cache.labels).tolist() for target, cache in caches.items()}
    assert counts[""] == [12, 24]
    assert counts["-selected"] == [24, 48]
    hard = Difficulty.from_json(tmp_path / "recipe-1-difficult" / "difficulty.json")
    loss = [hard.loss[hard.labels == c].mean() for c in (0, 1)]
    dark = 36 * (6 / 18 + loss[0] / sum(loss)) / 2
    assert counts["-difficult"] == [round(dark), 36 - round(dark)]
    (path,) = (tmp_path / "recipe-1-selected").glob("*.selection.json")
    chosen = ImageSelection.from_json(path)
    assert (chosen.counts["kept"] <= [12, 24]).all()
    assert (chosen.counts["kept"] > 0).all()

    pool = RecipeImages(
        "true", Recipe(Levels()), ImageSource.open(train), VALIDATION, tmp_path / "recipe-1", config
    ).targeting("selected")
    monkeypatch.setattr("synthaug.improvement._recipes.select", None)  # nothing is selected anew
    served = pool.served(caches["-selected"])
    assert served == (chosen.passed & (np.arange(72) > 0)).sum()
    best = replace(report.rounds[0], selection=str(path))
    lines = report.changed(verdict="use", rounds=[best]).lines()
    assert f"filters=[synthaug.selection.ImageSelection.from_json({str(path)!r})]" in lines


def test_rules_that_would_empty_a_class_or_cannot_be_asked_are_made_fewer(tmp_path, monkeypatch):
    asked = []

    def selected(cache: Any, real: Any, *, rules: Any, **_: Any) -> Any:
        asked.append(rules)
        if len(asked) == 1:
            raise DataError("All images of class 'dark' are near-duplicates.")
        taken = np.zeros(len(cache), np.int64) - 1
        taken[np.asarray(cache.labels) == 0] = -1 if len(asked) == 3 else 0
        return ImageSelection(
            identity=cache.identity,
            classes=CLASSES,
            labels=np.asarray(cache.labels),
            rules=("label", "number"),
            taken_by=taken,
            settings={},
            pictures={},
        )

    monkeypatch.setattr("synthaug.improvement._recipes.select", selected)
    pool = RecipeImages(
        "true", Recipe(Levels()), ImageSource.open(real(8, 0)), TEST, tmp_path / "recipe-1", QUICK
    ).targeting("selected")
    cache = pool.cache([{"dark": 2, "light": 2}])
    (chosen,) = pool.filters(cache)
    assert asked == [("label", "support", "distinct", "k-center"), ("distinct", "k-center"), ()]
    assert chosen.passed.all()


def test_targets_that_need_more_images_of_a_class_are_named(tmp_path):
    few = real(8, 0).subset([0, 1, 2, 3, 4, 5, 7])  # 3 dark
    config = replace(QUICK, targets=("random", "difficult", "selected"))
    report = improve(
        few,
        tmp_path,
        validation=VALIDATION,
        test=TEST,
        recipes={"true": Levels()},
        config=config,
        dry_run=True,
        progress=False,
    )
    assert [one.recipe for one in report.candidates] == ["true"]
    assert "Not tried: difficult and selected, for which every class needs 4" in report.reasons[0]
    assert "audits included" in report.reasons[0]
    for wrong in ({"targets": ("hard",)}, {"targets": ()}, {"augmentations": ("shear",)}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            replace(QUICK, **wrong)


def test_another_search_does_not_share_the_folder(tmp_path):
    search(tmp_path, dry_run=True)
    with pytest.raises(MismatchError, match="holds a search with other images"):
        search(tmp_path, dry_run=True, config=replace(QUICK, shares=(0.3,)))


def test_no_file_in_the_folder_of_a_search_runs_code(found, tmp_path):
    shutil.copytree(found[0], tmp_path / "work")
    marker = tmp_path / "marker"
    payload, refused = pickle.dumps(Payload(marker)), 0
    files = [p for p in (tmp_path / "work").rglob("*") if p.suffix in (".json", ".h5")]
    kinds = {re.sub(r".*seed.*|\d.*?(?=\.)", "", path.name): path for path in sorted(files)}
    assert len(kinds) > 5
    for path in kinds.values():  # one of each
        whole = path.read_bytes()
        for planted in (payload, b"[]"):
            path.write_bytes(planted)
            try:
                search(tmp_path / "work")
            except SynthaugError as error:
                refused += path.name in str(error)
        path.write_bytes(whole)
    assert refused > 6
    assert not marker.exists()


def by_mean(fails: Callable[[int], bool] = lambda seed: False) -> Any:
    """A classifier of the user's: the threshold between the mean levels of two classes."""

    def fit(dataset: Any, seed: int) -> Any:
        if fails(seed):
            raise RuntimeError("no memory")
        levels = np.array([np.asarray(image).mean() for image, _ in dataset])
        labels = np.array([int(label) for _, label in dataset])
        threshold = (levels[labels == 0].mean() + levels[labels == 1].mean()) / 2

        def predict(images: Any) -> Any:
            return [int(np.asarray(image).mean() > threshold) for image, _ in images]

        return predict

    return fit


def test_the_users_own_training_is_tried_and_a_failing_seed_is_named(tmp_path):
    recipes = {"true": Levels()}
    report = search(tmp_path, recipes=recipes, fit=by_mean(lambda seed: seed == 3))
    assert report.rival == "real, as it is"
    assert report.gain is not None
    assert report.gain.seeds == 3
    with pytest.raises(DataError, match=r"`fit` failed on 2 of 2 seeds.*RuntimeError: no memory"):
        search(tmp_path / "b", recipes=recipes, fit=by_mean(lambda seed: True))


def test_under_attack_the_accuracy_under_attack_decides(tmp_path):
    attack = AdversarialConfig(epsilon=0.05, steps=1, test_steps=1, restarts=1)
    config = replace(QUICK, rounds=1, final_seeds=2, adversarial=attack)
    recipes = {"true": Levels()}
    report = search(tmp_path, recipes=recipes, config=config)
    assert report.settings["decides"] == "accuracy under attack"
    plain = search(tmp_path / "plain", recipes=recipes, config=replace(config, adversarial=None))
    assert report.rivals["real, as it is"] < plain.rivals["real, as it is"] - 0.03
    with pytest.raises(ValueError, match=r"`config\.adversarial` is for the classifiers"):
        search(tmp_path / "own", fit=by_mean(), config=config)


def test_what_predict_returns_is_checked(tmp_path):
    def fit(dataset: Any, seed: int) -> Any:
        return lambda images: np.full(len(images), np.nan)

    with pytest.raises(DataError, match="returned NaN"):
        search(tmp_path, fit=fit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": {}}, "`recipes` is empty"),
        ({"recipes": {"a": 3}}, "`source` is a int"),
        ({"validation": real(10, 5)}, "`validation` has 10 images"),
        ({"fit": 3}, "`fit` is a int"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises((DataError, TypeError, ValueError), match=message):
        search(tmp_path, **changes)
    assert Levels.drawn == 0


def outcome(arm: str, seed: int, hits: Any) -> Run:
    zero: Any = dict.fromkeys(
        ("steps", "selected_step", "images_seen", "unique_real", "unique_synthetic"), 0
    )
    return Run(
        arm=arm,
        seed=seed,
        test_accuracy=float(np.mean(hits)),
        class_accuracies=[],
        validation_accuracy=None,
        seconds=0.0,
        loss_curve=[],
        validation_curve=[],
        correct="".join(map(str, np.asarray(hits, int).tolist())),
        **zero,
    )


def test_a_gain_counts_seeds_and_images():
    # Three seeds that agree in everything: what is left is that there are few images.
    ours, theirs = np.ones(100), np.r_[np.zeros(10), np.ones(90)]
    runs = [outcome(name, s, hits) for name, hits in (("a", theirs), ("b", ours)) for s in range(3)]
    report = EvaluationReport(runs=runs, classes=[], settings={}, arms={}, baseline="a")
    gain = Gain.of(report, "b", "a", 0.95)
    assert gain.mean == pytest.approx(0.1)
    assert gain.low is not None
    error = (ours - theirs).std(ddof=1) / 10
    assert gain.standard_error == pytest.approx(error)
    assert gain.low == pytest.approx(0.1 - 1.660391 * error)  # t of 99 degrees of freedom
    surer = Gain.of(report, "b", "a", 0.99).low
    assert surer is not None
    assert surer < gain.low


def test_the_bound_of_no_gain_is_above_zero_as_rarely_as_it_says():
    # Seeds move all images a little, and images are easy or hard for everyone.
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        hard = rng.normal(0, 1, 60)
        runs = []
        for arm in ("a", "b"):
            tilt = rng.normal(0, 1, 60)  # the arm's own luck with these images
            for seed in range(4):
                shift = 0.05 * rng.normal()
                runs.append(
                    outcome(arm, seed, hard + tilt + shift + 0.5 * rng.normal(0, 1, 60) > 0)
                )
        report = EvaluationReport(runs=runs, classes=[], settings={}, arms={}, baseline="a")
        low = Gain.of(report, "b", "a", 0.95).low
        assert low is not None
        false += low > 0
    # Bounds over seeds alone, which share the arm's luck, were wrong in 80 of 400.
    assert false <= 33  # of 400 at 0.05: 20 expected, more than 33 in one of 500 such tests


def test_a_recipe_is_a_synthesizer_or_a_cache():
    with pytest.raises(TypeError, match="expected a synthesizer"):
        Recipe("runs/model")


def test_a_search_from_the_command_line(tmp_path):
    for name, n in (("train", 12), ("validation", 20), ("test", 20)):
        images = real(n, len(name))
        for i in range(n):
            folder = tmp_path / name / CLASSES[int(images.labels[i])]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(images.read([i])[0]).save(folder / f"{i}.png")
    train, validation, test = (f"folder:{tmp_path / n}" for n in ("train", "validation", "test"))
    synthesizer = Levels()
    plan = synthesizer.plan(per_class=6, seed=0)
    synthaug.generate(synthesizer, plan, tmp_path / "cache.h5", progress=False)
    line = ["improve", train, str(tmp_path / "out"), "--validation", validation, "--test", test]
    line += ["--cache", str(tmp_path / "cache.h5"), "--channels", "1", "--device", "cpu"]
    line += ["--steps", "2", "--rounds", "1", "--final-seeds", "2", "--shares", "0.5"]
    line += ["--targets", "random", "--augmentations", "mixup"]
    told, _, command, *following = shlex.split(succeed(*line, "--dry-run").splitlines()[-1])
    assert (told, command) == ("Next:", "improve")
    assert "Report: " in succeed(command, *following)  # of the cache, as it was asked for
    report = ImproveReport.from_json(tmp_path / "out" / "improve.json")
    assert report.chosen == str(tmp_path / "cache.h5")
    assert str(report.settings["command"]).startswith("synthaug improve ")
    check_answer(*line)
    assert "`--shares` must be in (0, 1], got 1.5" in fail(2, *line, "--shares", "1.5")


def test_what_is_stopped_while_times_are_measured_is_not_said_to_be_saved(monkeypatch):
    def stopped(real: Any, folder: str, **options: Any) -> Any:
        raise KeyboardInterrupt(f"Step 2 is saved in {folder}.")

    monkeypatch.setattr(synthaug.ClassConditional, "fit", stopped)
    real: Any = SimpleNamespace(dataset=None)
    with pytest.raises(KeyboardInterrupt) as stop:
        _cost._of_training(real, ImproveConfig())
    assert stop.value.args == (_cost._MEASURING,)


def test_a_search_that_is_stopped_says_what_is_kept(found, monkeypatch):
    folder, _ = found

    def stopped(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("synthaug.improvement._run.Search.run", stopped)
    with pytest.raises(KeyboardInterrupt, match="Finished classifiers and images are kept in"):
        search(folder)
