"""What the pages link to outside of this folder: examples and results go into the site too.

Links are written so that they work where the pages are read as files; here they are brought to
where the site has their targets.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
TAKEN = (
    "examples/*.md",
    "examples/*.py",
    "examples/frameworks/*.py",
    "examples/*.png",
    "benchmarks/results/*",
)
MOVED = {"CHANGELOG.md": "project/changelog.md", "CONTRIBUTING.md": "project/contributing.md"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|data:)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Adds what lies outside of `docs`."""
    found = [path.relative_to(ROOT).as_posix() for taken in TAKEN for path in ROOT.glob(taken)]
    for path in sorted(found):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path, page in MOVED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from one file of the project to another become links within the site."""
    here = Path(os.path.normpath(page.file.abs_src_path)).parent
    docs = Path(config.docs_dir)

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / link[1]))
        if target.is_relative_to(docs):
            place = target.relative_to(docs).as_posix()
        else:
            name = target.relative_to(ROOT).as_posix()
            place = MOVED.get(name, name)
        return os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)
