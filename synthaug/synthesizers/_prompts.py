"""Prompts of a pipeline: tables of text, of which the rows of a plan hold numbers.

A plan of 100 million rows holds a whole number for each prompt, and the text once: it stands in the
recipe, so in the manifest of the cache.
"""

import csv
import hashlib
import itertools
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np

from synthaug._plan import InTurnByClass
from synthaug._printable import shortened
from synthaug._support.reading import parse_json, read_text
from synthaug._types import JSON
from synthaug.errors import DataError

Texts: TypeAlias = str | Sequence[str]
Prompts: TypeAlias = Texts | Mapping[str, Texts] | Path | Callable[[str], Texts]
"""A template, templates, one prompt per class, a list for each class, a file, or a function of the
class name."""

FILES = (".json", ".csv", ".txt")
"""Kinds of caption files, by their endings."""


@final
@dataclass(frozen=True)
class PromptTable:
    """Texts, and which of them belong to each class."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]
    """Number of the first text of every class."""
    counts: tuple[int, ...]
    """Texts of every class."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> "PromptTable":
        """The table of lists of texts, one list per class; if all are equal they are kept once."""
        if all(list(one) == list(texts[0]) for one in texts):
            count = len(texts)
            return cls(tuple(texts[0]), (0,) * count, (len(texts[0]),) * count)
        counts = tuple(map(len, texts))
        starts = tuple(itertools.accumulate(counts, initial=0))[:-1]
        return cls(tuple(itertools.chain(*texts)), starts, counts)

    @property
    def in_turn(self) -> InTurnByClass | None:
        """The column of a plan that numbers them; `None` if each class has one text."""
        if set(self.counts) == {1}:
            return None
        return InTurnByClass(np.array(self.starts), np.array(self.counts))

    @property
    def record(self) -> JSON:
        """The texts for the settings of a recipe, or their digest if rows choose among them.

        Settings are hashed again for each combination of row parameters, so they must be short.
        """
        if self.in_turn is None:
            return [self.texts[start] for start in self.starts]
        text = json.dumps([self.texts, self.starts, self.counts])
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return {"texts": len(self.texts), "digest": digest}

    def numbers(self, labels: Any, column: Any) -> Any:
        """The number of the text of every row, int64 (n,); `column` is the plan's. A ValueError if
        it is missing where a class has several texts, or a number is not of the row's class."""
        starts, counts = np.array(self.starts)[labels], np.array(self.counts)[labels]
        if column is None:
            if (counts > 1).any():
                raise ValueError("The plan does not choose among the prompts. Make it with `plan`.")
            return starts
        if ((column < starts) | (column >= starts + counts)).any():
            raise ValueError(
                "The plan holds a prompt number of another class. Make it again with `plan`."
            )
        return column


def prompt_table(
    prompts: Prompts,
    classes: Sequence[str],
    attributes: Mapping[str, Sequence[str]] | None = None,
    *,
    shared_as: str | None = None,
) -> PromptTable:
    """The texts that prompts stand for.

    Args:
        prompts: A template, in which `{}` stands for the class name, with spaces for underscores; a
            list of templates; a list with one prompt per class; texts or templates by class name; a
            function that is given a class name and returns its texts or templates; or the path of
            a file, see `read_prompts`.
        classes: Names of the classes.
        attributes: Values of other places in templates: `{"time": ["dawn", "night"]}` fills
            `{time}`. Every combination is a text of its own.
        shared_as: Name of another argument, of which a list is for every class.

    Raises:
        ValueError: If classes are missing or unknown, a class has no text, a template has an
            unknown place, or an attribute has no place.
        DataError: If a file cannot be read as prompts.
    """
    name = shared_as or "prompts"
    given = dict(attributes or {})
    attributes = {key: _listed(given[key], f"attributes[{key!r}]") for key in given}
    places: set[str] = set()
    texts = []
    for templates, kind in zip(_by_class(prompts, classes, shared_as), classes, strict=True):
        filled: list[str] = []
        for template in templates:
            places |= _places(template, attributes, name)
            filled += _filled(template, kind.replace("_", " "), attributes)
        texts.append(filled)
    if unused := sorted({*attributes} - places):
        raise ValueError(
            f"`attributes` names {unused[0]!r}, but no template of `{name}` has the place "
            f"{{{unused[0]}}}."
        )
    return PromptTable.of(texts)


def check_distinct_prompts(table: PromptTable) -> None:
    """Refuses a text that stands for two classes, whose images would have random labels, with a
    ValueError that quotes it."""
    owner: dict[str, int] = {}
    for label, (start, count) in enumerate(zip(table.starts, table.counts, strict=True)):
        for text in table.texts[start : start + count]:
            if owner.setdefault(text, label) != label:
                raise ValueError(
                    f"Two classes have the same prompt: {shortened(text)}. Put {{}} where the "
                    "class name goes, or give a prompt for each class."
                )


def check_lengths(
    texts: Sequence[str], tokenizers: Sequence[Any], called: Mapping[str, Any]
) -> None:
    """Refuses prompts whose ends no text encoder would read.

    Args:
        texts: The prompts.
        tokenizers: One for each text encoder of a pipeline.
        called: Arguments of the pipeline's call with their values. Some pipelines pass
            `max_sequence_length` tokens on, whatever their tokenizers know.

    Raises:
        ValueError: Naming one.
    """
    if not tokenizers:
        return
    longest = max(tokenizers, key=lambda tokenizer: int(tokenizer.model_max_length))
    most, passed = int(longest.model_max_length), called.get("max_sequence_length")
    if isinstance(passed, int):  # Sana's keeps one token of its instruction
        most = min(most, passed - bool(called.get("complex_human_instruction")))
    for text, tokens in zip(texts, longest(list(texts), verbose=False)["input_ids"], strict=True):
        if len(tokens) > most:
            raise ValueError(
                f"The prompt {shortened(text)!r} has {len(tokens)} tokens, and the text encoder "
                f"reads {most}: the end would be cut off. Shorten it, or the name in `classes`."
            )


def _by_class(
    prompts: Prompts, classes: Sequence[str], shared_as: str | None
) -> Iterator[list[str]]:
    """The texts or templates of each class."""
    name = shared_as or "prompts"
    if isinstance(prompts, Path):
        prompts = read_prompts(prompts)
    if callable(prompts):
        prompts = {kind: prompts(kind) for kind in classes}
    if isinstance(prompts, Mapping):
        if unknown := sorted({*prompts} - {*classes}):
            raise ValueError(
                f"`{name}` names the class {unknown[0]!r}; `classes` are {', '.join(classes)}."
            )
        for kind in classes:
            if kind not in prompts:
                raise ValueError(f"`{name}` has no prompt for the class {kind!r}. Add one.")
            yield _listed(prompts[kind], f"{name}[{kind!r}]")
        return
    given = _listed(prompts, name)
    if shared_as or isinstance(prompts, str) or all("{" in text for text in given):
        yield from [given] * len(classes)
    elif len(given) == len(classes):
        yield from ([text] for text in given)
    else:
        raise ValueError(
            f"Got {len(given)} `{name}` for {len(classes)} classes. Give one per class, templates "
            "that all have the place {} for the class name, or a list for each class by its name."
        )


def _listed(texts: Any, name: str) -> list[str]:
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"`{name}` must be a text or a list of texts, got {texts!r}.")
    return listed


def _places(template: str, attributes: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """The places of a template, "" for the class name; a ValueError for other places than "" and
    the attributes, or a single brace."""
    places: set[str] = set()
    try:
        for _, place, form, conversion in string.Formatter().parse(template):
            if place is not None:
                places.add(template if form or conversion else place)
    except ValueError:
        places = {template}
    if unknown := sorted(places - {"", *attributes}):
        known = ", ".join(["{} for the class name", *(f"{{{one}}}" for one in attributes)])
        raise ValueError(
            f"`{name}` has the template {template!r}, in which {unknown[0]!r} is no place that is "
            f"known. Known are: {known}. Double the braces that are text, as in {{{{."
        )
    return places


def _filled(template: str, word: str, attributes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The texts of a template for a class, one for every combination of its attributes."""
    used = [place for place in attributes if f"{{{place}}}" in template]
    for values in itertools.product(*(attributes[place] for place in used)):
        yield template.format(*[word] * template.count("{"), **dict(zip(used, values, strict=True)))


def read_prompts(path: Path) -> Texts | Mapping[str, Texts]:
    """Reads a caption file.

    `.json` holds a list of templates, or an object of texts or lists by class name. `.csv` has the
    columns `class` and `prompt`, and a line for every caption. `.txt` has a template on each line.

    Raises:
        DataError: If it cannot be read, or holds something else.
    """
    try:
        text = read_text(path)
        if path.suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        if path.suffix == ".csv":
            captions: dict[str, list[str]] = {}
            for row in csv.DictReader(text.splitlines()):
                captions.setdefault(row["class"].strip(), []).append(row["prompt"].strip())
            return captions
        if path.suffix == ".json":
            content: Any = parse_json(text)
            if isinstance(content, list | dict):
                return content
        fault = f"expected a file of the kind {', '.join(FILES)}"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise DataError(
        f"The prompts in {path} cannot be read ({fault}). A .json file holds a list of templates "
        "or an object of lists by class name, a .csv file the columns class and prompt, a .txt "
        "file a template on each line."
    )
