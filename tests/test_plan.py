"""The plan: what its rows are, and that the seed of a row says all that its image depends on."""

import hashlib
import json
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from synthaug import Plan
from synthaug._plan import (
    REQUIRED,
    balanced_quota,
    bytes_text,
    canonical_json,
    filling_quota,
    given_quota,
    matching_quota,
    row_seed,
    settings_digest,
    time_text,
)
from synthaug._plan.plan import _hashable
from tests.new_process import identity, model, planned

CLASSES = ("cat", "dog", "emu")
SETTINGS = {
    "scheduler": "DDIM",
    "steps": 25,
    "eta": 0.5,
    "size": [8, 8],
    "guidance": {"scale": 2.0},
}


def plan_of(quota: Any = (3, 0, 2), **changes: Any) -> Plan:
    return Plan.build(quota, **{"classes": CLASSES, "settings": SETTINGS, "seed": 0, **changes})


def plan_from_sources(quota: Any = (4, 2, 3), **changes: Any) -> Plan:
    keys = np.array([11, 22, 33, 44, 55, 66], np.uint64)
    return plan_of(quota, **{"sources": [[0, 1], [5], [2, 3, 4]], "source_keys": keys, **changes})


# Quotas


def test_a_plan_holds_the_quota_of_each_class_in_columns_of_equal_length():
    plan = plan_of((3, 0, 2), parameters={"strength": [0.25, 0.5], "level": 7})
    assert {name: column.shape for name, column in plan.columns.items()} == dict.fromkeys(
        (*REQUIRED, "level", "strength"), (5,)
    )
    assert {name: plan[name].dtype.name for name in plan.columns} == {
        "label": "int64",
        "source": "int64",
        "source_key": "uint64",
        "variant": "int64",
        "seed": "uint64",
        "level": "int64",
        "strength": "float64",
    }
    assert plan["label"].tolist() == [0, 0, 0, 2, 2]
    assert plan.quota.tolist() == [3, 0, 2]
    assert plan["variant"].tolist() == [0, 1, 2, 0, 1]


def test_a_balanced_quota_is_the_same_for_every_class():
    assert balanced_quota(4, per_class=7).tolist() == [7, 7, 7, 7]
    with pytest.raises(TypeError, match=r"got {'cat': 2}. Numbers by class are `counts`"):
        balanced_quota(4, per_class={"cat": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.003, 0.1, 0.29, 0.5, 1, 1.5, 2.75, 10])
def test_a_matching_quota_has_the_exact_total_and_is_within_one_image_of_each_exact_share(ratio):
    rng = np.random.default_rng(0)
    for num_classes in (1, 2, 7, 40):
        weights = rng.pareto(1, num_classes) + 1e-3  # a long tail
        labels = rng.choice(num_classes, size=500, p=weights / weights.sum())
        quota = matching_quota(labels, num_classes, ratio=ratio)
        assert quota.sum() == math.floor(ratio * 500 + 0.5)
        exact = np.bincount(labels, minlength=num_classes) * ratio
        assert (np.abs(quota - exact) < 1).all()


def test_a_filling_quota_is_what_each_class_lacks():
    labels = [0] * 5 + [2] * 2
    assert filling_quota(labels, 3, fill_to="largest").tolist() == [0, 5, 3]
    assert filling_quota(labels, 3, fill_to=3).tolist() == [0, 3, 1]
    with pytest.raises(ValueError, match="leaves nothing to draw: the smallest class has 1 images"):
        filling_quota([0, 1, 1], 2, fill_to=1)
    for wrong in ("smallest", 0, 2.5, True):
        with pytest.raises(ValueError, match="`fill_to` must be"):
            filling_quota(labels, 3, fill_to=wrong)  # type: ignore[arg-type]


def test_a_matching_quota_gives_the_remainder_to_the_largest_fractions():
    labels = np.repeat([0, 1, 2], [1, 2, 4])  # shares of 0.4, 0.8 and 1.6: three images in all
    assert matching_quota(labels, 3, ratio=0.4).tolist() == [0, 1, 2]


def test_halves_of_an_image_are_rounded_up_whatever_the_number():
    halves = [matching_quota([0] * n, 1, ratio=0.5).tolist() for n in (1, 3, 5, 7)]
    assert halves == [[1], [2], [3], [4]]
    assert matching_quota([0] * 10, 1, ratio=1.15).tolist() == [12]  # 11.499999999999998 in floats


def test_a_given_quota_names_classes_and_leaves_out_the_others():
    assert given_quota({"emu": 2, "cat": 0}, CLASSES).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: balanced_quota(3, per_class=0), "`per_class` must be at least 1, got 0"),
        (lambda: matching_quota([0], 1, ratio=0), "`ratio` must be positive and finite, got 0"),
        (lambda: matching_quota([0], 1, ratio=float("nan")), "`ratio` must be positive"),
        (lambda: matching_quota([0], 1, ratio=float("inf")), "finite, got inf"),
        (lambda: matching_quota([0, 3], 3, ratio=1), "Label 3 is not one of the 3 classes"),
        (lambda: matching_quota([0, -1], 3, ratio=1), "Label -1 is not one of the 3 classes"),
        (lambda: given_quota({"cow": 1}, CLASSES), "names 'cow', which is not a class"),
        (lambda: given_quota({"cat": -2}, CLASSES), "got -2 for 'cat'"),
        (lambda: plan_of((0, 0, 0)), "The plan is empty"),
        (lambda: plan_of((1, 1)), r"shape \(2,\), expected \(3,\)"),
        (lambda: plan_of((1, -1, 1)), "`quota` must not be negative, got -1"),
        (lambda: plan_of(sources=[[0], [1], [2]]), "`sources` and `source_keys` go together"),
        (lambda: plan_from_sources(sources=[[0], [], [2]]), "Class 'dog' has a quota of 2"),
        (lambda: plan_of(parameters={"seed": 1}), "'seed' has the name of a column"),
        (lambda: plan_of(parameters={"strength": []}), "'strength' must be a number or a list"),
        (
            lambda: plan_of(parameters={"strength": float("nan")}),
            "'strength' holds a value that is not fin",
        ),
        (lambda: plan_of(classes=("cat", "dog", "cat")), "`classes` holds 'cat' more than once"),
        (lambda: plan_of(settings={"eta": float("nan")}), "`eta` is nan, which cannot be written"),
        (lambda: plan_of(settings={"blur": np.ones(2)}), "setting `blur` holds a ndarray, which"),
    ],
)
def test_what_cannot_be_planned_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": None}, "`columns` lacks 'seed'"),
        ({"variant": [0, 1]}, r"'variant' has shape \(2,\), expected \(1,\)"),
        ({"label": [3]}, "Label 3 is not one of the 3 classes"),
        ({"label": [-1]}, "Label -1 is not one"),
    ],
)
def test_columns_that_are_no_plan_are_refused(changes, message):
    columns = {**dict(plan_of((1, 0, 0)).columns), **changes}
    columns = {name: np.array(c) for name, c in columns.items() if c is not None}
    with pytest.raises(ValueError, match=message):
        Plan(columns=columns, classes=CLASSES, settings={})


# Seeds


def test_seeds_are_unique_over_source_and_variant_also_for_equal_source_images():
    # Images 0 and 1 of a class are equal, image 2 of another class too.
    keys = np.array([9, 9, 9, 8], np.uint64)
    plan = plan_of((50, 50, 50), sources=[[0, 1], [2], [3]], source_keys=keys)
    assert len(set(plan["seed"].tolist())) == 150
    rows = zip(
        plan["label"].tolist(), plan["source_key"].tolist(), plan["variant"].tolist(), strict=True
    )
    assert max(Counter(rows).values()) == 1


def test_ten_thousand_seeds_differ_and_fill_all_64_bits():
    seeds = plan_of((5000, 5000, 0))["seed"]
    assert len(np.unique(seeds)) == 10_000
    bits = np.unpackbits(seeds.view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / 100  # six standard errors


@pytest.mark.xdist_group("new process")
def test_seeds_digests_and_recipes_are_equal_in_a_process_with_another_hash_seed(new_process):
    found = json.loads((new_process[1] / "found.json").read_text())
    assert found["plan"] == planned()
    assert found["drawn"] == identity(model())


def test_seeds_are_those_of_every_earlier_release():
    # Caches and plans that exist depend on these numbers.
    text = b'[7,"ab12","image:00000000000000ff:cat",3]'
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    assert row_seed(7, "ab12", "image:00000000000000ff:cat", 3) == seed == 696140915036528833
    assert plan_of(settings={"steps": 25})["seed"].tolist()[:2] == [
        2137406472754715254,
        12483929644412318333,
    ]


def mutations(value: Any) -> list[Any]:
    """Every way to change one leaf of `value`, or to leave one out."""
    if isinstance(value, dict):
        found = [{**value, k: m} for k, v in value.items() for m in mutations(v)]
        return found + [{k: v for k, v in value.items() if k != left} for left in value]
    if isinstance(value, list):
        return [[*value[:i], m, *value[i + 1 :]] for i, v in enumerate(value) for m in mutations(v)]
    return [value + "x"] if isinstance(value, str) else [value + 1, str(value), None]


def test_every_field_of_the_settings_changes_every_seed():
    assert len(mutations(SETTINGS)) > 15
    seen = set(plan_of()["seed"].tolist())
    for settings in mutations(SETTINGS):
        seeds = set(plan_of(settings=settings)["seed"].tolist())
        assert len(seeds) == 5
        assert not seeds & seen, settings
        seen |= seeds


def test_base_seed_class_name_source_content_and_parameters_change_the_seeds():
    plan = plan_from_sources()
    others = [
        plan_from_sources(seed=1),
        plan_from_sources(classes=("Cat", "Dog", "Emu")),
        plan_from_sources(source_keys=np.arange(100, 106, dtype=np.uint64)),
        plan_from_sources(parameters={"strength": 0.5}),
        plan_from_sources(parameters={"strength": 0.25}),
        plan_from_sources(parameters={"level": 0.5}),
        plan_of((4, 2, 3)),
    ]
    seeds = [set(p["seed"].tolist()) for p in (plan, *others)]
    assert len(set().union(*seeds)) == sum(map(len, seeds))


def test_the_order_of_settings_and_the_way_a_number_is_written_do_not_matter():
    reordered: dict[str, Any] = dict(reversed(SETTINGS.items()))
    reordered |= {"steps": 25.0, "size": (8.0, np.int64(8)), "guidance": {"scale": np.float32(2)}}
    assert list(reordered) != list(SETTINGS)
    assert settings_digest(reordered) == settings_digest(SETTINGS)
    assert plan_of(settings=reordered).digest == plan_of().digest
    assert plan_of(seed=np.int64(3)).digest == plan_of(seed=3).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [(2, 2.0), (2, np.float32(2)), ([1, 2], [1.0, 2.0]), (1, True), (0, -0.0), (0.0, -0.0)],
)
def test_a_parameter_is_its_value_whatever_its_type(one, other):
    first, second = (plan_of(parameters={"p": value}) for value in (one, other))
    assert first.digest == second.digest
    assert first["seed"].tolist() == second["seed"].tolist()
    assert first.with_settings({"a": 1}).digest == second.with_settings({"a": 1}).digest


def test_whole_numbers_beyond_floating_point_keep_their_own_digests():
    large = [plan_of(parameters={"p": 2**53 + i}).digest for i in range(3)]
    assert len({*large}) == 3
    # Their seeds differ as well: so the values alone.
    hashed = [_hashable(np.array([2**53 + i]), np.dtype(float)).tobytes() for i in range(3)]
    assert len({*hashed}) == 3
    same = [_hashable(np.array([x]), np.dtype(float)).tobytes() for x in (2**62, 2.0**62)]
    assert len({*same}) == 1


def test_of_joined_plans_no_value_is_cut():
    plans = [plan_of(parameters={"p": value}) for value in (2, 2.5)]
    joined = Plan.joined(plans)
    assert np.unique(joined["p"]).tolist() == [2, 2.5]


@pytest.mark.parametrize("value", ["2", ["a"], 1j, None, [[1]]])
def test_a_parameter_is_a_number(value):
    with pytest.raises(ValueError, match="Parameter 'p' must be a number"):
        plan_of(parameters={"p": value})


@pytest.mark.parametrize("seed", [True, "0", 1.5, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match=r"`seed` is .*, expected a whole number"):
        plan_of(seed=seed)


def test_values_that_differ_have_different_canonical_json():
    values = [0, 1, -1, 0.5, 1e300, True, None, "1", [], [1], [[1]], {}, {"a": 1}, {"a": [1]}, ""]
    assert len({canonical_json(v) for v in values}) == len(values)


def test_the_source_index_does_not_matter_but_its_content_does():
    # The same images in another order: every image keeps its seeds.
    def by_image(order: list[int]) -> dict[int, list[int]]:
        keys = np.array([70, 80, 90], np.uint64)[order]
        plan = plan_of((6, 0, 0), sources=[[0, 1, 2], [], []], source_keys=keys)
        pairs = zip(plan["source_key"].tolist(), plan["seed"].tolist(), strict=True)
        found: dict[int, list[int]] = {}
        for key, seed in pairs:
            found.setdefault(key, []).append(seed)
        return found

    assert by_image([0, 1, 2]) == by_image([2, 0, 1])


def test_a_larger_plan_begins_with_the_seeds_of_a_smaller_one():
    small, large = plan_of((3, 1, 2)), plan_of((10, 10, 10))
    for label in range(3):
        seeds = small["seed"][small["label"] == label].tolist()
        assert large["seed"][large["label"] == label].tolist()[: len(seeds)] == seeds


# Sources and parameters


def test_sources_are_used_in_turn_and_carry_their_keys():
    plan = plan_from_sources()
    assert plan["source"].tolist() == [0, 1, 0, 1, 5, 5, 2, 3, 4]
    assert plan["source_key"].tolist() == [11, 22, 11, 22, 66, 66, 33, 44, 55]
    assert plan["variant"].tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0]


def test_without_sources_a_plan_starts_from_noise():
    plan = plan_of()
    assert plan["source"].tolist() == [-1] * 5
    assert plan["source_key"].tolist() == [0] * 5


def test_a_sequence_is_used_in_turn_within_each_class():
    plan = plan_of((3, 1, 4), parameters={"strength": [0.1, 0.2, 0.3], "level": 5})
    assert plan["strength"].tolist() == [0.1, 0.2, 0.3, 0.1, 0.1, 0.2, 0.3, 0.1]
    assert plan["level"].tolist() == [5] * 8


@pytest.mark.parametrize("pool", [1, 2, 3, 4, 5])
def test_a_sequence_is_used_in_turn_within_the_rows_of_each_source(pool):
    values = [0.1, 0.2, 0.3, 0.4]
    plan = plan_of(
        (4 * pool, 0, 0),
        sources=[np.arange(pool), [], []],
        source_keys=np.arange(pool, dtype=np.uint64),
        parameters={"strength": values},
    )
    for source in range(pool):
        used = plan["strength"][plan["source"] == source]
        assert sorted(used.tolist()) == values
        start = values.index(used[0])
        assert used.tolist() == values[start:] + values[:start]


def test_a_class_with_fewer_rows_than_sources_still_sees_every_value():
    keys = np.arange(100, dtype=np.uint64)
    plan = plan_of(
        (10, 0, 0),
        sources=[np.arange(100), [], []],
        source_keys=keys,
        parameters={"strength": [0.3, 0.7]},
    )
    assert plan["strength"].tolist() == [0.3, 0.7] * 5


# A slice is a plan


@pytest.mark.parametrize(
    "rows",
    [
        slice(2, 7),
        slice(None, None, 3),
        slice(0, 0),
        np.array([8, 0, 3]),
        [1, 1, -1],
        np.arange(9) % 2 == 0,
    ],
    ids=str,
)
def test_slices_indices_and_masks_keep_rows_as_they_are(rows):
    plan = plan_from_sources(parameters={"strength": [0.25, 0.5]})
    part = plan[rows]
    numbers = np.arange(len(plan))[rows]
    assert [part.row(i) for i in range(len(part))] == [plan.row(i) for i in numbers]
    assert (part.classes, part.settings) == (plan.classes, plan.settings)


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_batches_joined_are_the_plan(size):
    plan = plan_from_sources(parameters={"strength": [0.25, 0.5]})
    batches = list(plan.batches(size))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
    columns = {name: np.concatenate([b[name] for b in batches]) for name in plan.columns}
    joined = Plan(columns=columns, classes=plan.classes, settings=plan.settings)
    assert joined.digest == plan.digest


def test_a_number_is_no_slice():
    with pytest.raises(TypeError, match="see `row`"):
        plan_of()[0]


def test_a_plan_cannot_be_changed_and_shares_nothing_with_its_input():
    settings, labels = {"sizes": [8]}, np.array([0, 1])
    columns = {"label": labels, **{name: np.zeros(2) for name in REQUIRED[1:]}}
    plan = Plan(columns=columns, classes=CLASSES, settings=settings)
    digest = plan.digest
    labels[0], settings["sizes"][0] = 2, 16
    assert plan.digest == digest
    with pytest.raises(ValueError, match="read-only"):
        plan["label"][0] = 1


# Digest


def test_the_digest_changes_with_every_column_every_row_the_names_and_the_settings():
    plan = plan_from_sources(parameters={"strength": [0.25, 0.5]})
    digests = {plan.digest}

    def add(**changes: Any) -> None:
        same = {"columns": plan.columns, "classes": plan.classes, "settings": plan.settings}
        digest = Plan(**{**same, **changes}).digest
        assert digest not in digests, changes
        digests.add(digest)

    for name, column in plan.columns.items():
        for row in (0, 4, 8):
            changed = column.copy()
            changed[row] = (changed[row] + 1) % 3 if name == "label" else changed[row] + 1
            add(columns={**plan.columns, name: changed})
    add(columns={**plan.columns, "more": plan["strength"]})
    add(columns={{"strength": "eta"}.get(k, k): v for k, v in plan.columns.items()})
    add(columns={**plan.columns, "strength": np.zeros(9)})
    add(classes=("cat", "dog", "eel"))
    add(classes=(*CLASSES, "fox"))
    add(settings={**SETTINGS, "eta": 0.25})
    assert plan[:-1].digest not in digests
    assert plan[::-1].digest not in digests


def test_the_digest_does_not_depend_on_the_order_of_columns():
    plan = plan_from_sources(parameters={"strength": 0.5, "eta": 1})
    shuffled = Plan(
        columns=dict(reversed(list(plan.columns.items()))), classes=CLASSES, settings=SETTINGS
    )
    assert shuffled.digest == plan.digest


# Sizes and durations as text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (15_682_624, "15.7 MB"),
        (312_500_000_000, "312.5 GB"),
        (4 * 10**15, "4,000.0 TB"),
    ],
)
def test_a_size_is_read_in_its_own_unit(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59, "under a minute"),
        (61, "about 1 minute"),
        (7100, "about 118 minutes"),
        (7200, "about 2.0 hours"),
        (36_000, "about 10 hours"),
        (22_622_400, "about 6,284 hours"),
    ],
)
def test_a_duration_is_read_in_its_own_unit(seconds, text):
    assert time_text(seconds) == text


def test_the_text_of_a_plan_says_how_many_rows_of_what():
    text = repr(plan_of(parameters={"strength": 0.5}))
    assert "5 rows, 3 classes, parameters: strength" in text


def test_a_wrapping_synthesizers_parameters_take_turns_like_those_of_the_plan_itself():
    arguments: dict[str, Any] = {
        "quota": [7, 3],
        "classes": ("cat", "dog"),
        "settings": {"a": 1},
        "seed": 3,
        "sources": [[0, 2, 4], [1]],
        "source_keys": np.arange(10, 15, dtype=np.uint64),
    }
    inner = Plan.build(**arguments, parameters={"x": [1.0, 2.0]})
    outer = inner.with_parameters({"y": [0.0, 0.5], "z": 3.0}, settings={"b": 2})
    assert (outer["y"] == (inner["x"] - 1) / 2).all()
    assert (outer["z"] == 3).all()
    assert outer.settings == {"b": 2}
    for name in ("label", "source", "source_key", "variant", "x"):
        assert (outer[name] == inner[name]).all()
    assert len({*outer["seed"].tolist(), *inner["seed"].tolist()}) == 20
    other = inner.with_parameters({"y": [0.0, 0.7], "z": 3.0}, settings={"b": 2})
    assert ((other["seed"] == outer["seed"]) == (outer["y"] == 0)).all()
    free = Plan.build([5], classes=("cat",), settings={}, seed=0, parameters={"x": [1.0, 2.0]})
    again = free.with_parameters({"y": [1.0, 2.0]}, settings={})
    assert (again["y"] == free["x"]).all()
    with pytest.raises(ValueError, match="'seed' has the name of a column"):
        free.with_parameters({"seed": 1.0}, settings={})


@pytest.mark.parametrize("cuts", [(0, 50), (0, 1, 20, 21, 47, 50), (0, 30, 50)], ids=str)
def test_a_plan_can_be_made_in_parts_none_of_which_needs_the_others(cuts):
    keys = np.array([11, 22, 11, 44, 55, 66], np.uint64)  # two of the images are equal
    strange: Any = {"classes": ("cat", 'a "dög"', "emu"), "parameters": {"strength": [0.25, 0.5]}}
    given: dict[str, Any] = {"sources": [[0, 1, 2], [5], [3, 4]], "source_keys": keys, **strange}
    for changes in (strange, given, {}):
        whole = plan_of((20, 5, 25), **changes)
        for start, stop in pairwise(cuts):
            part = plan_of((20, 5, 25), **changes, rows=slice(start, stop))
            assert part.digest == whole[start:stop].digest
    seen = [(row["label"], row["source_key"], row["variant"]) for row in map(whole.row, range(50))]
    assert len(set(seen)) == 50
    with pytest.raises(ValueError, match="expected a slice without a step"):
        plan_of(rows=slice(0, 4, 2))


def test_the_seed_of_a_row_is_the_hash_that_is_documented():
    plan = plan_from_sources((4, 2, 3), parameters={"strength": [0.25, 0.5]})
    for row in map(plan.row, range(len(plan))):
        own = settings_digest({"settings": SETTINGS, "row": {"strength": row["strength"]}})
        name = f"image:{row['source_key']:016x}:{CLASSES[int(row['label'])]}"
        assert row["seed"] == row_seed(0, own, name, int(row["variant"]))
