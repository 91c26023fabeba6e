"""The public names: all of them, nothing else, and none that costs before it is used."""

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import synthaug
from synthaug import errors, improvement, sweeps, synthesizers

HEAVY = (
    "accelerate",
    "albumentations",
    "diffusers",
    "docstring_parser",
    "faiss",
    "jinja2",
    "matplotlib",
    "sklearn",
    "transformers",
)


LAZY = pytest.mark.parametrize(
    "module", [synthaug, improvement, sweeps, synthesizers], ids=lambda m: m.__name__
)


def declared(module: ModuleType) -> dict[str, str]:
    """Names that the `TYPE_CHECKING` block of a module exports, and where they come from."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    lists = [text for text in map(ast.unparse, tree.body) if text.startswith("__all__ = [")]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            # What type checkers take as an export.
            assert alias.asname == alias.name or repr(alias.name) in "".join(lists)
            found[alias.name] = str(node.module)
    return found


@LAZY
def test_the_public_names_are_those_that_type_checkers_see(module):
    assert sorted(module.__all__) == sorted(declared(module))
    assert dir(module) == sorted(module.__all__)


@LAZY
def test_every_public_name_is_the_object_that_type_checkers_see(module):
    for name, home in declared(module).items():
        found = getattr(module, name)
        if inspect.ismodule(found):
            assert found is importlib.import_module(f"{module.__name__}.{name}")
        else:
            assert found is getattr(importlib.import_module(home), name)


def test_every_public_name_says_what_it_is():
    for name in synthaug.__all__:
        text = inspect.getdoc(getattr(synthaug, name))
        assert text, f"{name} has no docstring"
        assert len(text.splitlines()[0]) > 12


def test_what_star_imports_is_the_public_names():
    names: dict[str, Any] = {}
    exec("from synthaug import *", names)
    assert set(names) - {"__builtins__"} == set(synthaug.__all__)


@LAZY
def test_an_unknown_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'Unheard'"):
        _ = module.Unheard


@pytest.mark.parametrize(
    ("name", "meant"),
    [("MixDataset", "MixedDataset"), ("synthcache", "SynthCache"), ("transform", "transforms")],
)
def test_the_nearest_public_name_is_suggested(name, meant):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'. Did you mean '{meant}'?"):
        getattr(synthaug, name)
    assert not hasattr(synthaug, "__path_of_nothing__")


def test_every_error_of_ours_is_public_and_caught_by_one_base_class():
    classes = {name: getattr(errors, name) for name in errors.__all__}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(classes) == defined
    assert all(issubclass(error, synthaug.SynthaugError) for error in classes.values())
    assert all(f" {name} " in f"{errors.__doc__} ".replace("\n", " ") for name in classes)


def test_there_is_one_error_class_per_remedy():
    assert len(errors.__all__) <= 9


def test_the_root_has_the_names_that_a_first_program_needs_and_no_others():
    names = {name for name in synthaug.__all__ if not inspect.ismodule(getattr(synthaug, name))}
    assert names == {
        "AbstractSynthesizer",
        "AuditReport",
        "Cascade",
        "ClassConditional",
        "ClassifierConfig",
        "ColdDiffusion",
        "DiffusionInversion",
        "FromPipeline",
        "LowDensity",
        "MixedBatchSampler",
        "MixedDataset",
        "OnTheFlyDataset",
        "Plan",
        "SamplerConfig",
        "SynthCache",
        "SynthaugError",
        "TrainingConfig",
        "audit",
        "evaluate",
        "generate",
        "improve",
        "load_dataset",
        "membership",
        "split_for_audit",
    }


def test_every_namespace_lists_its_names():
    for name in synthaug.__all__:
        module = getattr(synthaug, name)
        if inspect.ismodule(module):
            assert all(hasattr(module, part) for part in module.__all__), name


@pytest.mark.xdist_group("new process")
def test_importing_costs_next_to_nothing_and_using_a_name_loads_no_heavy_library(new_process):
    found = json.loads((new_process[1] / "found.json").read_text())["imported"]
    ours = [name for name in found["root"] if name.partition(".")[0] == "synthaug"]
    assert ours == ["synthaug"]
    third_party = {name.partition(".")[0] for name in found["root"]} - sys.stdlib_module_names
    assert third_party == {"synthaug"}  # neither torch nor numpy
    assert len(found["root"]) < 30
    for name, loaded in found["names"].items():
        assert not set(HEAVY) & set(loaded), f"synthaug.{name} loads a heavy library"
    assert not set(HEAVY) & set(found["cli"])
