"""The site: built strictly, complete, and whole without a network."""

import inspect
import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import synthaug

ROOT = Path(__file__).parents[1]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
CHOICES = {"ESTIMATORS", "STRUCTURES", "Estimator", "Structure"}
"""Public names that are listed where they are chosen from."""


class Page(HTMLParser):
    """The anchors of a page, what it loads, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        if tag in LOADS and given.get("rel") != "canonical" and given.get(LOADS[tag]):
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def test_every_public_name_has_a_place_in_the_api_pages():
    pages = sorted((ROOT / "docs/api").glob("*.md"))
    named = re.findall(r"^::: synthaug\.(\w+)$", "".join(p.read_text() for p in pages), re.M)
    assert sorted(named) == synthaug.__all__


pytestmark = pytest.mark.xdist_group("site")  # built once


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages by their place; warnings while building are errors."""
    pytest.importorskip("mkdocs", reason="the extra `docs`")
    pytest.importorskip("material", reason="the extra `docs`")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        # To break long signatures, the builder starts a formatter for each of them.
        options = config.plugins["mkdocstrings"].config["handlers"]["python"]["options"]
        options["line_length"] = 10_000
        build(config)
    logging.getLogger("mkdocs").handlers.clear()
    return {path: Page(path) for path in folder.rglob("*.html")}


@pytest.mark.filterwarnings("ignore")  # of mkdocs' plugins
def test_every_public_name_is_documented_on_the_site(site):
    anchors = set().union(*(page.anchors for page in site.values()))
    for name in synthaug.__all__:
        assert f"synthaug.{name}" in anchors
        value = getattr(synthaug, name)
        inner = set(getattr(value, "__all__", ())) if inspect.ismodule(value) else set()
        assert {f"synthaug.{name}.{part}" for part in inner - CHOICES} <= anchors


@pytest.mark.filterwarnings("ignore")
def test_pages_load_nothing_from_elsewhere_and_what_they_load_is_there(site):
    for path, page in site.items():
        if path.name == "404.html":  # the one page that cannot know where it is
            continue
        for target in page.loads:
            assert not re.match(r"(\w+:)?//", target), f"{path.name} loads {target}"
            if not target.startswith("data:"):
                assert (path.parent / target.partition("?")[0].partition("#")[0]).exists(), target


@pytest.mark.filterwarnings("ignore")
def test_links_open_from_disk(site):
    by_place = {str(path): page for path, page in site.items()}
    for path, page in site.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if path.name == "404.html" or re.match(r"(\w+:)?//|mailto:", link):
                continue
            # As text: every page has the same hundreds of links, and the disk answers slowly.
            place = os.path.normpath(f"{path.parent}/{target}") if target else str(path)
            assert place in by_place or os.path.isfile(place), f"{path.name} links to {link}"
            if anchor and place in by_place:
                assert anchor in by_place[place].anchors, f"{path.name} links to {link}"
