"""Imports point one way, so each part can be read, tested and replaced without those above it."""

import ast
from pathlib import Path

import pytest

import synthaug

ROOT = Path(synthaug.__file__).parent

LAYERS = [  # a module may import from the lines above its own, and from nothing else of ours
    # vocabulary
    {"_devices", "_differences", "_errors", "_files", "_html", "_progress", "_types"},
    {"_plan", "_engines"},
    # mathematics: pure functions of tensors and arrays
    {"_cite", "_neighbours"},
    {
        "_checkpoints",
        "_noise",
        "_pixels",
        "_classifiers",
        "_serving",
        "denoisers",
        "density",
        "features",
    },
    {"samplers", "degradations", "metrics", "_training", "_adapt", "_variants"},
    {"_foreign", "_restoration", "guidance"},
    # real images in
    {"_stores"},
    {"_sources"},
    {"_data"},
    {"_comparison"},
    # one paper, one file
    {"synthesizers"},
    # stages: none imports another
    {
        "_cache",
        "_audit",
        "_evaluation",
        "_hardness",
        "_quality",
    },
    {
        "_cost",
        "_generate",
        "_label_check",
        "_opening",
        "_reconstructions",
        "caches",
    },
    {"_datasets", "_on_the_fly", "albumentations", "transforms"},
    {"huggingface", "lightning", "mixing"},
    # composition
    {"_demo", "_sweep"},
    {"_cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HANDED = {"synthesizers", "albumentations", "transforms", "_generate", "_on_the_fly"}
"""Parts that do not load real images themselves: they work with any that they are given."""


def modules() -> list[str]:
    """Every module, relative to the package; the root's lazy exports have their own test."""
    paths = sorted(ROOT.rglob("*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if path != ROOT / "__init__.py"]


def imported(module: str) -> set[tuple[str, ...]]:
    """Our own modules that `module` imports, anywhere in its code: ("_audit", "_report") ..."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: write imports from the root"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "synthaug":
                assert rest, f"{module}:{node.lineno}: import from a module, not from the root"
                found.add(tuple(rest))
    return found


def component(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def test_every_module_has_a_layer_and_only_one():
    assert {component(module) for module in modules()} <= set(RANK)
    assert sum(map(len, LAYERS)) == len(RANK)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    here = component(module)
    for target in {names[0] for names in imported(module)} - {here}:
        assert RANK[target] < RANK[here], f"{here} must not import {target}"
        if target in ("_data", "_sources", "_stores"):
            assert here not in HANDED, f"{here} is handed its images"


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("synthesizers/")])
def test_a_synthesizer_knows_its_base_and_no_other_synthesizer(module):
    if module.endswith(("__init__.py", "_kinds.py")):  # where those that wrap another find it
        return
    own = {names[1] for names in imported(module) if names[0] == "synthesizers"}
    assert all(name.startswith("_") for name in own)  # what all of them share


@pytest.mark.parametrize("module", modules())
def test_modules_are_imported_by_name_only_where_names_are_exported(module):
    # Otherwise the rules above would not see everything.
    dynamic = {"import_module", "__import__"}
    names = {
        getattr(node, "id", getattr(node, "attr", None))
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
    }
    assert not names & dynamic or module == "synthesizers/__init__.py"


def test_an_import_that_points_the_wrong_way_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "_noise.py").write_text(
        "import os\n"
        "def f():\n    from synthaug._cache._store import SynthCache\n"
        "if TYPE_CHECKING:\n    import synthaug._plan as p\n"
        "from synthaug import _cli, samplers\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported("_noise.py") == {
        ("_cache", "_store", "SynthCache"),
        ("_plan",),
        ("_cli",),
        ("samplers",),
    }
    with pytest.raises(AssertionError, match="_noise must not import"):
        test_imports_point_one_way("_noise.py")
