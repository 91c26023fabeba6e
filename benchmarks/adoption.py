"""How many lines of a training script change to mix synthetic images in, per framework.

    python benchmarks/adoption.py

For each pair `examples/frameworks/NAME_plain.py` and `NAME_mixed.py`: the lines of code that were
added and removed. The pairs are run by the tests; `docs/frameworks.md` shows the same differences.
"""

import difflib
from pathlib import Path

from _machine import write

EXAMPLES = Path(__file__).parents[1] / "examples/frameworks"
NAMES = sorted(path.stem.removesuffix("_mixed") for path in EXAMPLES.glob("*_mixed.py"))


def difference(name: str) -> list[str]:
    """The unified difference with one line of context, without the names of the files."""
    plain, mixed = ((EXAMPLES / f"{name}_{kind}.py").read_text() for kind in ("plain", "mixed"))
    lines = difflib.unified_diff(plain.splitlines(), mixed.splitlines(), n=1, lineterm="")
    return ["..." if line.startswith("@@") else line for line in lines][2:]


def changed(name: str) -> dict[str, int]:
    """Lines of code added and removed; blank ones do not count."""
    lines = [line for line in difference(name) if line[1:].strip()]
    return {
        "added": sum(line.startswith("+") for line in lines),
        "removed": sum(line.startswith("-") for line in lines),
        "of": sum(bool(x.strip()) for x in (EXAMPLES / f"{name}_plain.py").read_text().split("\n")),
    }


if __name__ == "__main__":
    table = {name: changed(name) for name in NAMES}
    for name in NAMES:
        print(f"{name}: {table[name]}\n\n" + "\n".join(difference(name)) + "\n")
    print(write("adoption", {"lines": table}))
