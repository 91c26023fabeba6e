"""Before a job starts, a pipeline must draw images that depend on their rows alone."""

from typing import Any

import numpy as np
import pytest
import torch

from synthaug import generate
from synthaug.errors import DataError
from synthaug.synthesizers import FromPipeline, streams

CLASSES = ("a", "bcdefghijklmnopqrstuvw")
"""A short prompt and a long one, in different blocks of 16 tokens."""


def from_pipeline(checkpoint: Any, classes: Any = CLASSES, **changes: Any) -> FromPipeline:
    return FromPipeline(checkpoint.pipeline, classes, **{**checkpoint.arguments, **changes})


def test_prompts_that_are_padded_to_the_longest_of_a_call_are_noticed(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("cogview4")
    synthesizer = from_pipeline(checkpoint)
    plan = synthesizer.plan(per_class=2)
    with pytest.raises(ValueError, match=r"alone and beside another .*`--row-by-row`"):
        generate(synthesizer, plan, tmp_path / "c.h5", progress=False)
    assert not (tmp_path / "c.h5").exists()
    alone = from_pipeline(checkpoint, row_by_row=True)
    assert alone.recipe()["settings"]["row_by_row"] is True  # type: ignore[index,call-overload]
    plan = alone.plan(per_class=2)
    cache = generate(alone, plan, tmp_path / "c.h5", progress=False)
    order = np.array([3, 0])
    drawn = (alone.draw(plan[order]) / 2 + 0.5) * 255
    assert (cache.read(order).float() - drawn).abs().max() < 1


def test_random_numbers_from_elsewhere_are_noticed(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("stable_diffusion_3")
    scheduler = checkpoint.pipeline.scheduler
    checkpoint.pipeline.scheduler = type(scheduler).from_config(
        scheduler.config, stochastic_sampling=True
    )
    try:
        synthesizer = from_pipeline(checkpoint, ("a", "b"))
        plan = synthesizer.plan(per_class=1)
        with pytest.raises(ValueError, match=r"twice, and .* without `stochastic_sampling`"):
            generate(synthesizer, plan, tmp_path / "c.h5", progress=False)
    finally:
        checkpoint.pipeline.scheduler = scheduler
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize("family", ["flux", "sdxl", "latent_consistency"])
def test_pipelines_that_keep_the_promise_start(tiny_checkpoint, family):
    synthesizer = from_pipeline(tiny_checkpoint(family), ("a", "b c d"))
    synthesizer.check_rows(synthesizer.plan(per_class=2, guidance_scale=[1.0, 4.0]))


@pytest.mark.parametrize(
    ("family", "classes", "labels"),
    [
        ("consistency", list("abcd"), [2, 0, 3, 1]),
        ("dit", ["goldfinch", "House_finch", "tench", "thing 3"], [0, 3, 11, 12]),
    ],
)
def test_rows_of_a_pipeline_with_labels_draw_their_class(tiny_checkpoint, family, classes, labels):
    checkpoint = tiny_checkpoint(family)
    synthesizer = from_pipeline(checkpoint, classes)
    plan = synthesizer.plan(per_class=1)
    synthesizer.check_rows(plan)
    order = np.argsort([11, 12, 0, 3]) if family == "dit" else np.array(labels)
    rows = plan[order]
    sized = {"batch_size": 4} if family == "consistency" else {}
    theirs = checkpoint.pipeline(
        class_labels=labels,
        generator=streams(rows["seed"]),
        output_type="np",
        **sized,
        **checkpoint.arguments,
    ).images
    expected = torch.from_numpy(theirs).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(synthesizer.draw(rows), expected, atol=1e-4, rtol=0)


def test_labels_of_a_pipeline_need_a_name_each(tiny_checkpoint):
    with pytest.raises(ValueError, match="knows 4 classes, but `classes` has 2 names"):
        from_pipeline(tiny_checkpoint("consistency"), ("a", "b"))
    with pytest.raises(ValueError, match="'gold' in `classes` is no class"):
        from_pipeline(tiny_checkpoint("dit"), ["gold"])
    with pytest.raises(TypeError, match="`class_labels` follows from the rows"):
        from_pipeline(tiny_checkpoint("consistency"), list("abcd"), class_labels=[0])


@pytest.mark.parametrize("name", ["nsfw", "watermark"])
def test_a_safety_checker_by_another_name_is_heard(tiny_checkpoint, monkeypatch, name):
    checkpoint = tiny_checkpoint("deepfloyd")
    synthesizer = from_pipeline(checkpoint, ("a", "b"))

    def second(image: Any, device: Any, dtype: Any) -> tuple[Any, Any, Any]:
        verdicts = [[False, True] if kind == name else None for kind in ("nsfw", "watermark")]
        return image, *verdicts

    monkeypatch.setattr(checkpoint.pipeline, "run_safety_checker", second, raising=True)
    with pytest.raises(DataError, match="blackened 1 of 2 images"):
        synthesizer.draw(synthesizer.plan(per_class=1))
