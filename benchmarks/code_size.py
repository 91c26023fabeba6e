"""How large the package is, and how it is laid out, as a table and as JSON.

    python benchmarks/code_size.py                        # this checkout
    python benchmarks/code_size.py --tree OTHER/CHECKOUT  # another one, for a comparison
    python benchmarks/code_size.py --json > benchmarks/results/code_size.json

Everything is counted from the source text: nothing is imported, so any commit can be measured.
"""

import argparse
import ast
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method of a module, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function) -> int:
    """Lines of a function from `def` to its end, its docstring not counted."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return total
    text = function.body[0]
    return total - ((text.end_lineno or text.lineno) - text.lineno + 1)


def parameters(function: Function) -> int:
    """The number of named parameters, `self` and `cls` not counted."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def asked(tree: ast.AST) -> int:
    """Calls of `hasattr` and `getattr`."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(isinstance(f, ast.Name) and f.id in ("hasattr", "getattr") for f in calls)


def imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of the package that a module imports, lazily and for type checkers included."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "synthaug":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                targets.add(name if name in modules else str(node.module))
    return targets


def circles(graph: dict[str, set[str]]) -> int:
    """Groups of modules that import each other in a circle (Tarjan's strong components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = 0

    def visit(node: str) -> None:
        nonlocal groups
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            groups += len(group) > 1

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def documented(tree: ast.Module) -> tuple[int, int]:
    """Public functions and classes with a docstring, and all of them."""
    public = [
        node
        for node in ast.walk(tree)
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
    ]
    return sum(ast.get_docstring(node) is not None for node in public), len(public)


def kinds_of_lines(text: str, tree: ast.Module) -> Counter[str]:
    """How many non-blank lines of a module are docstrings, comments, and so on.

    Every line counts once: a line of a `raise` or of an import is that and not code, wherever it
    is. A string that stands alone documents what is above it. Declarations are `__all__`, fields of
    classes and constants of modules.
    """
    lines = text.splitlines()
    kinds = ["comments" if line.lstrip().startswith("#") else "code" for line in lines]

    def mark(kind: str, first: int, last: int | None) -> None:
        for i in range(first - 1, last or first):
            if kinds[i] == "code" or kind == "docstrings":
                kinds[i] = kind

    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            mark("imports", node.lineno, node.end_lineno)
        elif isinstance(node, ast.Raise):
            mark("raise statements", node.lineno, node.end_lineno)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                mark("docstrings", node.lineno, node.end_lineno)
        elif isinstance(node, Function | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            mark("signatures", first, max(node.lineno, node.body[0].lineno - 1))
        if isinstance(node, ast.Module | ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.Assign | ast.AnnAssign):
                    mark("declarations", part.lineno, part.end_lineno)
    return Counter(kind for kind, line in zip(kinds, lines, strict=True) if line.strip())


def measure(root: Path) -> dict[str, Any]:
    """The measures of one checkout."""
    package = root / "synthaug"
    paths = sorted(package.rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    names = {
        path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
    }
    modules = set(names.values())
    nonblank = [sum(bool(line.strip()) for line in text.splitlines()) for text in texts.values()]
    every = [function for tree in trees.values() for function in functions(tree)]
    sizes = sorted(map(code_lines, every))
    counts = sorted(map(parameters, every))
    docs = [documented(tree) for tree in trees.values()]
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    test_lines = sum(bool(line.strip()) for text in tests for line in text.splitlines())
    graph = {name: set[str]() for name in modules}
    for path, tree in trees.items():
        if names[path] != "synthaug":  # its lazy exports
            graph[names[path]] = imports(tree, modules) - {names[path]}
    kinds = sum((kinds_of_lines(texts[path], tree) for path, tree in trees.items()), Counter())
    inside = [asked(tree) for path, tree in trees.items() if "_images" in path.parts]
    return {
        "files": len(paths),
        "nonblank_lines": sum(nonblank),
        "lines_of": dict(kinds.most_common()),
        "file_median": int(statistics.median(nonblank)),
        "file_max": max(nonblank),
        "entries_on_top": len([p for p in package.iterdir() if p.name != "__pycache__"]),
        "function_median": int(statistics.median(sizes)),
        "function_p90": sizes[int(0.9 * len(sizes))],
        "function_max": sizes[-1],
        "functions_over_60_lines": sum(size > 60 for size in sizes),
        "parameters_p90": counts[int(0.9 * len(counts))],
        "parameters_max": counts[-1],
        "functions_over_8_parameters": sum(count > 8 for count in counts),
        "hasattr_getattr": sum(map(asked, trees.values())),
        "hasattr_getattr_outside_images": sum(map(asked, trees.values())) - sum(inside),
        "import_circles": circles(graph),
        "documented_percent": round(100 * sum(d for d, _ in docs) / sum(n for _, n in docs)),
        "tests_to_code": round(test_lines / sum(nonblank), 2),
    }


def main() -> None:
    """Prints a column for each checkout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tree", action="append", type=Path, help="A checkout; may be repeated.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    arguments = parser.parse_args()
    here = Path(__file__).parent.parent
    trees = {str(tree): tree for tree in arguments.tree or ()} or {"this checkout": here}
    measured = {name: measure(tree) for name, tree in trees.items()}
    if arguments.json:
        print(json.dumps(measured, indent=1))
        return
    tables = [flat(values) for values in measured.values()]
    for name in tables[0]:
        print(f"{name:32}", *(f"{table[name]:>10}" for table in tables))


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """The measures in one row each, those of a group below its name."""
    rows = {}
    for name, value in values.items():
        group = value if isinstance(value, dict) else {}
        rows[name] = "" if group else value
        rows |= {f"    {inner}": count for inner, count in sorted(group.items())}
    return rows


if __name__ == "__main__":
    main()
