"""The papers behind a cache follow from its recipe and its plan."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synthaug import Plan, synthesizers
from synthaug._cache.citations import _RULES, papers
from synthaug.caches import cite
from synthaug.synthesizers import ClassConditional, DiffusionModel
from tests.checkpoints import cosine_config, sampled, tiny_unet
from tests.command_line import succeed
from tests.variants import make_cache, real_images

ROOT = Path(__file__).parents[1]


def cached(recipe: Any, plan: Plan | None = None, **parameters: Any) -> Any:
    """What `papers` asks of a cache."""
    plan = plan or Plan.build([2], classes=["cat"], settings={}, seed=0, parameters=parameters)
    return SimpleNamespace(manifest={"recipe": recipe, "versions": {"synthaug": "1.2"}}, plan=plan)


def keys(cache: Any) -> set[str]:
    return {paper.key for paper in papers(cache)}


@pytest.mark.parametrize(
    ("scheduler", "key"),
    [("ddpm", None), ("ddim", "song2021denoising"), ("dpmsolver++", "lu2022dpm")],
)
def test_a_sampler_is_cited_where_it_was_used_and_guidance_where_there_was_any(scheduler, key):
    model = DiffusionModel(
        network=tiny_unet(),
        scheduler_config=cosine_config(),
        classes=tuple("abcd"),
        image_shape=(1, 8, 8),
    )
    synthesizer = ClassConditional(model=model, **sampled(scheduler=scheduler))
    plain, guided = (synthesizer.plan(per_class=2, guidance_scale=g) for g in (1.0, [1.0, 2.0]))
    base = {"azizi2023synthetic", "ho2020denoising", "nichol2021improved"}
    base |= {"salimans2022progressive"} | ({key} if key else set())
    assert keys(cached(synthesizer.recipe(), plain)) == base
    assert keys(cached(synthesizer.recipe(), guided)) == base | {"ho2022classifier"}


def test_what_a_synthesizer_wraps_is_cited_too():
    base = {"synthesizer": "DiffusionInversion", "scheduler": "DDIMScheduler"}
    recipe = {"synthesizer": "LowDensity", "settings": {"base": base}, "weights": {"vae": "1f"}}
    found = keys(cached(recipe, guidance_scale=1.0))
    assert {"sehwag2022generating", "zhou2023training", "song2021denoising"} < found
    assert "rombach2022high" in found
    stages = {"synthesizer": "Cascade", "settings": {"stages": [{"scheduler": "DDIMScheduler"}]}}
    found = keys(cached(stages, stage_guidance_scale_2=2.0))
    assert {"ho2022cascaded", "song2021denoising", "ho2022classifier"} < found


def test_images_that_others_made_are_theirs_to_cite():
    cache = cached({"synthesizer": "Mine", "settings": {"version": 1}}, strength=0.5)
    assert papers(cache) == []
    assert cite(cache) == (
        "The synthesizer 'Mine' is not one of ours: cite what made the images.\n"
        "synthaug 1.2, which made the cache."
    )


def test_the_methods_that_are_cited_are_those_that_we_have():
    for name in synthesizers.METHODS:
        assert name in synthesizers.__all__
        assert keys(cached({"synthesizer": name}))


def test_every_entry_of_a_bibliography_is_complete_and_named_once():
    methods = synthesizers.METHODS.values()
    every = [paper for _, paper in _RULES] + [paper for m in methods for paper in m.papers]
    every += {p.paper: None for m in methods for p in m.row_parameters if p.paper is not None}
    assert len({paper.key for paper in every}) == len({paper.arxiv for paper in every})
    for paper in every:
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        assert str(paper.year) in paper.key
        assert paper.key.startswith(paper.authors.partition(",")[0].lower())
        entry = paper.bibtex()
        assert entry.count("{") == entry.count("}")
        assert f"eprint = {{{paper.arxiv}}}" in entry


def test_the_command_prints_text_or_bibtex(tmp_path):
    cache = make_cache(tmp_path, real_images())
    for option, start in ([], "The synthesizer 'test'"), (["--bibtex"], "@software{synthaug,"):
        text = succeed("cite", cache.path, *option)
        assert text.startswith(start)
        assert text.splitlines()[-1].removeprefix("% ").startswith("Next: synthaug cite ")


def test_the_paper_of_a_recipe_is_cited_first():
    recipe = {"synthesizer": "ClassConditional", "settings": {}}
    cache = cached(recipe)
    assert "trabucco2024effective" not in keys(cache)
    cache.manifest["command"] = "synthaug generate a 'b c.h5' --recipe da-fusion --ratio 1"
    assert papers(cache)[0].key == "trabucco2024effective"
    for strange in (3, "synthaug --recipe 'da-fusion"):
        cache.manifest["command"] = strange
        assert "trabucco2024effective" not in keys(cache)


def test_the_citation_file_names_the_version_that_the_package_has():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()
