"""Prompts of a pipeline: which text a row has, and how plans, recipes and caches hold it."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import synthaug
from synthaug._plan import InTurnByClass
from synthaug.errors import DataError
from synthaug.synthesizers import FromPipeline

CLASSES = ("house_cat", "dog")


class Painter:
    """A pipeline whose images are the lengths of its prompts, and which notes its calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        prompt: Any,
        negative_prompt: Any = None,
        guidance_scale: float = 1.0,
        generator: Any = None,
        output_type: Any = None,
    ) -> Any:
        named = dict(prompt=prompt, negative=negative_prompt, scale=guidance_scale)
        self.calls.append(named)
        lengths = np.array([len(text) for text in prompt]) / 100
        return SimpleNamespace(
            images=np.ones((len(prompt), 2, 2, 3)) * lengths[:, None, None, None]
        )


def painter(prompts: Any = "{}", **settings: Any) -> Any:
    return FromPipeline(Painter(), CLASSES, prompts=prompts, **settings)


def texts(synthesizer: Any, rows: Any) -> list[str]:
    """The prompts of rows, in their order, as the pipeline is given them."""
    drawn = []
    for i in range(len(rows)):
        synthesizer.draw(rows[i : i + 1])
        drawn += synthesizer.pipeline.calls[-1]["prompt"]
    return drawn


def caption_file(folder: Path, name: str) -> Path:
    contents = {
        "a.json": json.dumps({"dog": ["a dog", "one dog"], "house_cat": "the cat"}),
        "a.csv": 'class,prompt\ndog,a dog\nhouse_cat,"the cat"\ndog,one dog\n',
    }
    path = folder / name
    path.write_text(contents[name])
    return path


@pytest.mark.parametrize(
    ("prompts", "attributes", "cats", "dogs"),
    [
        ("a {}", None, ["a house cat"], ["a dog"]),
        (["a {}", "the {}"], None, ["a house cat", "the house cat"], ["a dog", "the dog"]),
        (["cat", "dog"], None, ["cat"], ["dog"]),
        ({"dog": ["x", "y {}"], "house_cat": "z"}, None, ["z"], ["x", "y dog"]),
        (lambda name: [name.upper(), "{}"], None, ["HOUSE_CAT", "house cat"], ["DOG", "dog"]),
        (
            ["{} at {time}", "{}"],
            {"time": ["dawn", "noon"]},
            ["house cat at dawn", "house cat at noon", "house cat"],
            ["dog at dawn", "dog at noon", "dog"],
        ),
    ],
    ids=["template", "templates", "list", "mapping", "function", "grid"],
)
def test_each_class_uses_its_prompts_in_turn(prompts, attributes, cats, dogs):
    synthesizer = painter(prompts, attributes=attributes)
    rows = synthesizer.plan(per_class=6)
    expected = [*(cats * 6)[:6], *(dogs * 6)[:6]]
    assert texts(synthesizer, rows) == expected
    assert synthesizer.prompts == (*cats, *dogs)
    several = len(cats) > 1 or len(dogs) > 1
    assert ("prompt" in rows.columns) == several
    images = synthesizer.draw(rows)
    assert (images[:, 0, 0, 0] + 1).tolist() == pytest.approx([len(t) / 50 for t in expected])


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_captions_come_from_files(name, tmp_path):
    synthesizer = painter(caption_file(tmp_path, name))
    assert synthesizer.prompts == ("the cat", "a dog", "one dog")
    (tmp_path / "a.txt").write_text("a {}\n\nthe {}\n")
    lines = painter(tmp_path / "a.txt")
    assert lines.prompts == ("a house cat", "the house cat", "a dog", "the dog")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "3"), ("a.json", "{"), ("a.csv", "x,y\n1,2\n"), ("a.yaml", "x"), ("b.json", None)],
)
def test_a_file_that_holds_no_prompts_is_refused(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name} cannot be read .* columns class and prompt"):
        painter(tmp_path / name)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (["a {}", "b"], {}, "two classes|same prompt"),
        (["a", "b", "c"], {}, "3 `prompts` for 2 classes"),
        ({"dog": "x"}, {}, "no prompt for the class 'house_cat'"),
        ({"dog": "x", "cow": "y"}, {}, "the class 'cow'"),
        ({"dog": "x", "house_cat": []}, {}, r"`prompts\['house_cat'\]` must be a text"),
        ({"dog": ["x", "y"], "house_cat": ["z", "y"]}, {}, "same prompt: y"),
        ("{} at {time}", {}, "'time' is no place that is known"),
        ("{", {}, "no place that is known"),
        ("{0.__class__}", {}, "no place that is known"),
        ("{:>9}", {}, "no place that is known"),
        ("a {}", {"attributes": {"time": ["dawn"]}}, r"no template of `prompts` has .*\{time\}"),
    ],
    ids=range(11),
)
def test_prompts_that_do_not_fit_are_refused(prompts, settings, message):
    if prompts == ["a {}", "b"]:
        assert painter(prompts).prompts == ("a house cat", "b")  # one prompt per class
        return
    with pytest.raises(ValueError, match=message):
        painter(prompts, **settings)


def test_negative_prompts_are_numbered_too_and_one_is_an_argument():
    synthesizer = painter("a {}", negative_prompt=["blurry", "dark", "small"])
    rows = synthesizer.plan(per_class=3)
    assert rows["negative_prompt"].tolist() == [0, 1, 2] * 2
    synthesizer.draw(rows)
    assert synthesizer.pipeline.calls[-1]["negative"] == ["blurry", "dark", "small"] * 2
    assert synthesizer.recipe()["texts"] == {"negative_prompt": ["blurry", "dark", "small"]}
    single = painter("a {}", negative_prompt="blurry")
    assert single.recipe()["settings"]["arguments"] == {"negative_prompt": "blurry"}
    assert "texts" not in single.recipe()


def test_every_prompt_meets_every_value_of_the_other_parameters():
    synthesizer = painter(["a {}", "the {}"], negative_prompt=["x", "y"])
    rows = synthesizer.plan(per_class=16, guidance_scale=[1.0, 2.0])
    triples = zip(
        rows["prompt"].tolist(),
        rows["negative_prompt"].tolist(),
        rows["guidance_scale"].tolist(),
        strict=True,
    )
    counts = Counter(triples)
    assert len(counts) == 2 * 2 * 2 * 2  # with the class, which owns its prompts
    assert set(counts.values()) == {2}


def test_images_follow_the_prompt_of_their_row_in_any_company():
    synthesizer = painter({"dog": ["x", "yyyy", "zz"], "house_cat": ["cat", "a cat"]})
    rows = synthesizer.plan(per_class=5)
    order = np.array([7, 0, 3])
    assert (synthesizer.draw(rows[order]) == synthesizer.draw(rows)[order]).all()


def test_the_cache_says_which_prompt_each_image_had(tmp_path):
    synthesizer = painter(["a {}", "the {}"])
    plan = synthesizer.plan(per_class=3, seed=1)
    cache = synthaug.generate(synthesizer, plan, tmp_path / "c.h5", progress=False)
    assert cache.provenance(1)["texts"] == {"prompt": "the house cat"}
    assert cache.provenance(5)["texts"] == {"prompt": "a dog"}
    other = painter(["a {}", "one {}"])
    changed = other.plan(per_class=3, seed=1)
    with pytest.raises(synthaug.errors.SynthaugError, match="texts"):
        synthaug.generate(other, changed, tmp_path / "c.h5")


def test_seeds_and_settings_depend_on_the_whole_table():
    plans = [painter(p).plan(per_class=2) for p in (["a {}", "b {}"], ["a {}", "c {}"])]
    assert len({*plans[0]["seed"].tolist(), *plans[1]["seed"].tolist()}) == 8
    assert plans[0].settings["prompts"]["texts"] == 4


def test_a_plan_of_100_million_rows_and_of_many_prompts_stays_small():
    synthesizer = painter([f"{{}} number {i}" for i in range(500)])
    plan = synthesizer.plan(per_class=50_000_000)
    assert len(json.dumps(dict(plan.settings))) < 1000
    assert plan.at("prompt", [0, 499, 500, 50_000_001]).tolist() == [0, 499, 0, 501]


def test_a_plan_without_numbers_or_with_those_of_another_class_is_refused():
    synthesizer = painter(["a {}", "the {}"])
    rows = synthesizer.plan(per_class=1)
    with pytest.raises(ValueError, match="does not choose among the prompts"):
        synthesizer.draw(painter("a {}").plan(per_class=1))
    columns = {**rows.columns, "prompt": rows["prompt"][::-1]}
    with pytest.raises(ValueError, match="a prompt number of another class"):
        synthesizer.draw(synthaug.Plan(columns=columns, classes=CLASSES, settings={}))


def test_settings_change_prompts_and_arguments():
    synthesizer = painter("a {}", negative_prompt="x")
    changed = synthesizer.with_settings(prompts="the {}", guidance_scale=2)
    assert changed.prompts == ("the house cat", "the dog")
    assert changed.arguments == {"negative_prompt": "x", "guidance_scale": 2}


@pytest.mark.parametrize("counts", [(3, 2), (4, 4), (1, 6)])
def test_numbers_of_classes_take_turns_evenly_and_not_in_step(counts):
    numbers = InTurnByClass(np.array([0, counts[0]]), np.array(counts))
    plan = synthaug.Plan.build(
        (360, 360),
        classes=CLASSES,
        settings={},
        seed=0,
        parameters={"prompt": numbers, "a": [1, 2], "b": [1, 2, 3]},
    )
    for label, count in enumerate(counts):
        chosen = plan["label"] == label
        combined = zip(*(plan[name][chosen].tolist() for name in ("prompt", "a", "b")), strict=True)
        met = Counter(combined)
        assert len(met) == count * 6
        assert {*met.values()} == {360 // (count * 6)}
