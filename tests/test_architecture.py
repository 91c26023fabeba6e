"""Imports point one way, so each part can be read, tested and replaced without those above it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import synthaug
from synthaug._cli import CACHE_COMMANDS, COMMANDS

ROOT = Path(synthaug.__file__).parent
TESTS = Path(__file__).parent

LAYERS = {  # a room imports rooms of earlier lines; within a line there is no circle
    "vocabulary": {
        "_cluster",
        "_noise",
        "_pixels",
        "_plan",
        "_printable",
        "_support",
        "_types",
        "errors",
    },
    "images in": {"_images"},
    "mathematics": {
        "_neighbors",
        "degradations",
        "denoisers",
        "density",
        "features",
        "guidance",
        "metrics",
        "samplers",
    },
    "models and training": {"_training"},
    "synthesizers": {"synthesizers"},
    "stages": {
        "_audit",
        "_cache",
        "_datasets",
        "_generate",
        "albumentations",
        "caches",
        "evaluation",
        "huggingface",
        "images",
        "lightning",
        "memorization",
        "mixing",
        "selection",
        "transforms",
    },
    "composition": {"__main__", "_cli", "_demo", "improvement", "sweeps"},
}
RANK = {room: rank for rank, layer in enumerate(LAYERS.values()) for room in layer}
STAGES = {"_audit", "_cache", "_datasets", "_generate", "evaluation", "selection"}
DOORS = LAYERS["stages"] - STAGES
"""Public entrances to the stages: they may use the insides of a stage, and no stage uses them."""
OUTSIDE, EVERYWHERE = 22, 60
"""Calls of `hasattr` and `getattr` outside `_images`, and in all: ceilings, which only go down."""
METHODS = {"cascade", "class_conditional", "cold", "inversion", "low_density"}


INSIDES = {  # the rooms into which a test, or what several tests share, may look; at most three
    "audits": {"_audit", "improvement"},
    "called_by_commands": {"_demo", "_training", "synthesizers"},
    "checkpoints": {"synthesizers"},
    "classifiers": {"evaluation"},
    "command_line": {"_cli"},
    "conftest": {"_datasets", "_support"},
    "fuzzing": {"_audit", "_datasets"},
    "killing": {"_demo"},
    "new_process": {"_cli"},
    "reports": {"_support", "evaluation"},
    "test_accelerators": {"_cluster", "_support", "synthesizers"},
    "test_adversarial": {"_images", "evaluation"},
    "test_alignment": {"_audit"},
    "test_architecture": {"_cli"},
    "test_arguments": {"_support"},
    "test_audit": {"_audit", "_neighbors", "_support"},
    "test_audit_continues": {"_audit"},
    "test_audit_review": {"_audit", "_plan"},
    "test_families": {"synthesizers"},
    "test_fewest_copies": {"_audit"},
    "test_cache": {"_cache"},
    "test_cache_damage": {"_cache"},
    "test_cache_faults": {"_cache", "_support"},
    "test_cache_races": {"_cache", "_generate", "_support"},
    "test_cache_tools": {"_cache"},
    "test_canaries": {"_audit", "_images", "_pixels"},
    "test_cascade": {"synthesizers"},
    "test_cite": {"_cache"},
    "test_encoded_caches": {"_cache", "_generate", "_support"},
    "test_class_lists": {"_images", "_plan", "evaluation"},
    "test_class_order": {"_images", "evaluation"},
    "test_classifiers": {"evaluation"},
    "test_cli": {"_audit", "_cli", "synthesizers"},
    "test_cli_conventions": {"_cli", "_plan"},
    "test_cli_defaults": {"_cli"},
    "test_cold_diffusion": {"synthesizers"},
    "test_cold_restore": {"_datasets", "_images"},
    "test_competition": {"_audit"},
    "test_other_systems": {"_cache", "_support"},
    "test_corruptions": {"evaluation"},
    "test_credentials": {"_cache"},
    "test_denoise_once": {"_noise", "synthesizers"},
    "test_own_data_sets": {"_images"},
    "test_partial": {"_audit"},
    "test_planted_files": {"_audit", "_images"},
    "test_precedence": {"_audit"},
    "test_registration": {"_audit"},
    "test_data": {"_images"},
    "test_datasets": {"_cache", "_images", "_plan"},
    "test_declared": {"_cli", "synthesizers"},
    "test_demo": {"_demo"},
    "test_density": {"density"},
    "test_devices": {"_training", "synthesizers"},
    "test_diffusion_inversion": {"_cache", "synthesizers"},
    "test_distillation": {"_cache", "synthesizers"},
    "test_difficulty": {"_images", "selection"},
    "test_docs": {"_audit", "evaluation", "synthesizers"},
    "test_engines": {"_cluster", "_generate", "_support"},
    "test_evaluation": {"_images", "_plan", "evaluation"},
    "test_extras": {"_support"},
    "test_fine_tuning": {"_training", "synthesizers"},
    "test_fitting": {"_training"},
    "test_from_pipeline": {"_support", "_training"},
    "test_forgetting": {"_cache", "_pixels", "_support"},
    "test_frameworks": {"_images"},
    "test_gains": {"_cli", "evaluation"},
    "test_long_tail": {"_images", "evaluation"},
    "test_hardness": {"_datasets", "evaluation"},
    "test_html": {"_support"},
    "test_improve": {"_cache", "_images", "improvement"},
    "test_hub": {"_training"},
    "test_label_check": {"evaluation"},
    "test_large_plans": {"_audit", "_cache", "_plan"},
    "test_layout": {"_support", "synthesizers"},
    "test_low_density": {"synthesizers"},
    "test_masks": {"_images", "_pixels"},
    "test_membership": {"_audit"},
    "test_metrics": {"metrics"},
    "test_noise": {"_noise"},
    "test_notebook": {"_support"},
    "test_on_the_fly": {"_datasets"},
    "test_pipelines": {"_images", "_pixels", "synthesizers"},
    "test_pixels": {"_pixels"},
    "test_plan": {"_plan"},
    "test_precision": {"_generate", "_support", "_training"},
    "test_progress": {"_support"},
    "test_prompts": {"_plan"},
    "test_readme": {"_cli"},
    "test_remote": {"_cache", "_cli", "_support"},
    "test_report": {"_support", "_types"},
    "test_rows": {"_audit", "_images", "_plan"},
    "test_scaled_audit": {"_audit", "_neighbors"},
    "test_scaling": {"_training", "synthesizers"},
    "test_source": {"_images", "_pixels"},
    "test_split_for_audit": {"_audit"},
    "test_selection": {"_images", "selection"},
    "test_sweep": {"sweeps"},
    "test_torch_defaults": {"_support", "evaluation", "samplers"},
    "test_torchvision_contract": {"_images"},
    "test_training": {"_support", "_training"},
    "test_transforms": {"_cache", "_datasets", "_images"},
    "tiny/cascades": {"_training", "synthesizers"},
    "tiny/cold": {"synthesizers"},
    "tiny/fine_tuning": {"synthesizers"},
    "tiny/inversions": {"synthesizers"},
    "tiny/low_density": {"synthesizers"},
    "tiny/networks": {"_training", "improvement"},
}


def modules() -> tuple[str, ...]:
    """Every module, relative to the package; the root's lazy exports have their own test."""
    return modules_below(ROOT)


@cache
def modules_below(root: Path) -> tuple[str, ...]:
    paths = sorted(root.rglob("*.py"))
    return tuple(str(path.relative_to(root)) for path in paths if path != root / "__init__.py")


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a module, at which several tests look."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the tree."""
    return tuple(ast.walk(tree_of(path)))


@cache
def dotted(module: str) -> tuple[str, ...]:
    """The name of a module without the root: ("_audit", "report"), or ("_audit",) for a package."""
    parts = Path(module).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(module: str) -> set[tuple[str, ...]]:
    """The modules of ours that `module` imports, lazily and for type checkers included."""
    known = {dotted(name) for name in modules()}
    targets = set()
    for node in nodes(ROOT / module):
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
                path = tuple(rest)
                while path not in known and len(path) > 1:  # the last part is a class or function
                    path = path[:-1]
                targets.add(path)
    return targets


def named(code: str) -> set[str]:
    """The full names that code imports or, as a test that patches them does, gives as text."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.match(r"synthaug\.[\w.]+$", str(node.value)):
            names.add(str(node.value))
    return names


def private_rooms(code: str) -> set[str]:
    """The rooms of the package whose private names some code names."""
    parts = [name.split(".") for name in named(code)]
    return {
        name[1]
        for name in parts
        if name[0] == "synthaug" and any(re.match(r"_(?!_)", part) for part in name)
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a directed graph, first node last; empty if there is none."""
    finished: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*path, node]):
                return found
        finished.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_every_room_has_a_layer_and_only_one():
    rooms = {dotted(module)[0] for module in modules()}
    assert rooms == set(RANK)
    assert sum(map(len, LAYERS.values())) == len(RANK)


def test_there_are_seven_layers_and_at_most_forty_rooms():
    assert len(LAYERS) == 7
    assert len([path for path in ROOT.iterdir() if path.name != "__pycache__"]) <= 40


def imports_of_later_layers(module: str) -> list[str]:
    """What a module imports from a room of a later layer, as sentences."""
    here = dotted(module)[0]
    targets = {names[0] for names in imported(module)} - {here}
    later = sorted(target for target in targets if RANK[target] > RANK[here])
    return [f"{module} must not import {target}" for target in later]


def test_imports_point_one_way():
    assert [fault for module in modules() for fault in imports_of_later_layers(module)] == []


def test_no_rooms_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module in modules():
        here = dotted(module)[0]
        graph.setdefault(here, set()).update(n[0] for n in imported(module) if n[0] != here)
    assert circle(graph) == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {".".join(dotted(m)): {".".join(n) for n in imported(m)} for m in modules()}
    assert circle(graph) == []


def test_a_stage_uses_the_cache_and_of_other_stages_the_front_door():
    of_stages = [module for module in modules() if dotted(module)[0] in STAGES]
    assert len(of_stages) > 50
    for module, target in ((m, target) for m in of_stages for target in imported(m)):
        here = dotted(module)[0]
        if target[0] in STAGES - {here, "_cache"}:
            assert len(target) == 1, f"{module} imports {'.'.join(target)}, not its package"
        assert target[0] not in DOORS, f"{module} imports the public door {target[0]}"
        assert here != "_cache" or target[0] not in STAGES - {"_cache"}


def test_a_method_knows_no_other_method():
    of_methods = [m for m in modules() if dotted(m)[0] == "synthesizers" and METHODS & {*dotted(m)}]
    assert len(of_methods) > 20
    for module in of_methods:
        others = {n[1] for n in imported(module) if n[0] == "synthesizers" and len(n) > 1}
        assert not others & (METHODS - {dotted(module)[1]}), module


BY_NAME = {"_support/lazy.py", "synthesizers/_parameters.py"}
"""What imports by name: public names, and the class of a registered synthesizer."""


def test_modules_are_imported_by_name_only_where_names_are_exported():
    # Otherwise the rules above would not see everything.
    dynamic = {"import_module", "__import__"}
    for module in modules():
        names = {getattr(node, "id", getattr(node, "attr", None)) for node in nodes(ROOT / module)}
        assert not names & dynamic or module in BY_NAME, module


def questions(module: str) -> int:
    """How often a module asks an object whether it has an attribute."""
    calls = (node for node in nodes(ROOT / module) if isinstance(node, ast.Call))
    names = (call.func.id for call in calls if isinstance(call.func, ast.Name))
    return sum(name in ("hasattr", "getattr") for name in names)


def test_foreign_objects_are_asked_what_they_have_in_one_room_only():
    inside = sum(questions(module) for module in modules() if dotted(module)[0] == "_images")
    outside = sum(questions(module) for module in modules() if dotted(module)[0] != "_images")
    assert inside + outside <= EVERYWHERE
    assert outside <= OUTSIDE, "Open data sets with ImageSource; declare attributes of our own."


def test_an_import_that_points_the_wrong_way_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "_cache").mkdir()
    for name in ("_cache/store.py", "_plan.py", "_cli.py", "samplers.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "_noise.py").write_text(
        "import os\n"
        "def f():\n    from synthaug._cache.store import SynthCache\n"
        "if TYPE_CHECKING:\n    import synthaug._plan as p\n"
        "from synthaug import _cli, samplers\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported("_noise.py") == {("_cache", "store"), ("_plan",), ("_cli",), ("samplers",)}
    later = ("_cache", "_cli", "samplers")
    assert imports_of_later_layers("_noise.py") == [f"_noise.py must not import {x}" for x in later]


def test_a_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def parts_of(module: str) -> list[tuple[str, ast.FunctionDef]]:
    """The functions of a module, each with its own name or that of its class, for `__init__` and
    class methods the way in."""
    tree = tree_of(ROOT / module)
    named = [(node.name, node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    for owner in (node for node in nodes(ROOT / module) if isinstance(node, ast.ClassDef)):
        methods = (node for node in owner.body if isinstance(node, ast.FunctionDef))
        named += [(owner.name, method) for method in methods]
    return named


def test_only_front_doors_have_more_than_eight_parameters_and_none_more_than_twelve():
    """They are public functions and classes, and the commands of the shell."""
    values = [getattr(synthaug, name) for name in synthaug.__all__]
    doors = {name for value in values for name in getattr(value, "__all__", ())}
    doors |= {*synthaug.__all__}
    commands = {(c.__module__, c.__name__) for c in {**COMMANDS, **CACHE_COMMANDS}.values()}
    wide = 0
    for module in modules():
        for name, function in parts_of(module):
            arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            place = ".".join(("synthaug", *dotted(module)))
            wide += count > 8
            assert count <= 8 or name in doors or (place, name) in commands, f"{place}.{name}"
            assert count <= 12, f"{place}.{name}"
    assert wide >= 15  # or they are not found


def length(node: ast.stmt) -> int:
    """Lines of a statement."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_sixty_lines():
    """Its docstring is not counted."""
    functions = [(m, n) for m in modules() for n in nodes(ROOT / m) if isinstance(n, FUNCTION)]
    assert len(functions) > 1000
    for module, function in functions:
        lines = length(function)
        if ast.get_docstring(function) is not None:
            lines -= length(function.body[0])
        assert lines <= 60, f"{module}: {function.name} has {lines}"


def test_no_two_public_classes_have_one_name():
    """The adapters to frameworks name their classes as those that they adapt, on purpose."""
    places: dict[str, list[str]] = {}
    for module in modules():
        if dotted(module)[0] in ("albumentations", "huggingface", "lightning"):
            continue
        for node in tree_of(ROOT / module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_report_derives_from_the_base_of_reports():
    reports = set()
    for module in modules():
        for node in nodes(ROOT / module):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Report", "LabelCheck")):
                reports.add(node.name)
                bases = {ast.unparse(base) for base in node.bases}
                ours = bases & {"Report", "VerdictReport"}
                assert ours or node.name == "Report", f"{module}: {node.name}"
    assert reports >= {"AuditReport", "EvaluationReport", "LabelCheck", "Report", "SweepReport"}


def test_a_test_names_what_is_public_or_what_it_tests_and_no_other_test():
    paths = sorted(TESTS.rglob("*.py"))
    assert len(paths) > 100
    for path in paths:
        code = path.read_text()
        others = {name for name in named(code) if name.startswith("tests.")} | {
            f"tests.{name}"
            for name in re.findall(r"from tests\.(\w+)", code)  # in programs as text
        }
        assert not [name for name in others if name.startswith("tests.test_")], path
        rooms = INSIDES.get(str(path.relative_to(TESTS).with_suffix("")), set())
        assert private_rooms(code) <= rooms, path
        assert len(rooms) <= 3, path


def test_private_names_would_be_seen_however_a_test_comes_by_them():
    for code in (
        "from synthaug._cache import SynthCache",
        "def f():\n    import synthaug._cache.store as store",
        "from synthaug import _cache",
        "patch.setattr('synthaug._cache.store._X', 1)",
    ):
        assert private_rooms(code) == {"_cache"}
    assert private_rooms("from synthaug.evaluation import _fit") == {"evaluation"}
    assert private_rooms("from synthaug.samplers import _KNOWN, sample") == {"samplers"}
    assert private_rooms("from synthaug.samplers import sample; sample.__name__") == set()


# Docstrings are sentences, not fragments that lean on something before them


FRAGMENT = re.compile(
    r"(What|Which|Whose|That|Of|As|Those|Likewise)\b"
    r"|(Holds|Says|Describes|Returns|Tells|Gives|Knows|Refuses) (what|which|whose)\b"
)
ENTRY = re.compile(
    r"^ +[\w*`]+(?:, [\w*`]+)*: "
    r"((?:(?:What|Which|Whose|That|Of|As|Those|Likewise)\b|How\.$).*)$",
    re.MULTILINE,
)
"""An argument or an error in a docstring that is explained by a fragment."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source: str) -> list[str]:
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def faults(docstring: str) -> list[str]:
    first = docstring.split("\n\n")[0]
    wrong = [first] if FRAGMENT.match(first) or first.rstrip()[-1] not in ".:?" else []
    return [*wrong, *ENTRY.findall(docstring)]


@pytest.mark.parametrize("folder", ["synthaug", "benchmarks", "examples"])
def test_first_lines_and_entries_are_no_fragments(folder):
    found = {
        f"{path.relative_to(TESTS.parent)}: {fault}"
        for path in sorted((TESTS.parent / folder).rglob("*.py"))
        for text in docstrings(path.read_text())
        for fault in faults(text)
    }
    assert not found, "\n".join(sorted(found))


def test_fragments_are_found():
    text = "What a row is.\n\nArgs:\n    seed: Of the plan.\n    rows: Rows of the plan.\n"
    assert faults(text) == ["What a row is.", "Of the plan."]
    text = "Holds what rows share.\n\nArgs:\n    it: What to draw.\n    n: How.\n    m: How many.\n"
    assert faults(text) == ["Holds what rows share.", "What to draw.", "How."]
