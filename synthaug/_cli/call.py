"""A command with its arguments, and its result."""

import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synthaug._support.reading import without_secrets


@dataclass(frozen=True)
class Call:
    """A command and all its arguments, those that were left at their defaults among them."""

    command: str
    """As it is written: `cache export`."""
    arguments: Mapping[str, Any]
    """By their names in Python, those that are given by position first."""
    positional: Collection[str] = ()
    """Names of those."""
    stated: Collection[str] = field(default=(), compare=False)
    """Names of the arguments that the user gave, those that equal their defaults among them. Of a
    configuration file, which may have all of them, only those that differ from their defaults."""

    def without(self, names: Collection[str]) -> "Call":
        """The call less arguments that have no meaning in it."""
        kept = {name: value for name, value in self.arguments.items() if name not in names}
        return replace(self, arguments=kept)

    def having(self, **values: Any) -> "Call":
        """The call with what was decided in it."""
        return replace(self, arguments={**self.arguments, **values})

    @property
    def brief(self) -> "Call":
        """The call less all that was not stated."""
        return self.without({*self.arguments} - {*self.stated, *self.positional})

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments as JSON, which a configuration file can hold."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(self.arguments)))
        return plain

    @property
    def line(self) -> str:
        """A line for the shell that repeats the call; it is stored with what the call makes, so
        URLs in it have no credentials."""
        words = ["synthaug", *self.command.split()]
        for name, value in self.settings.items():
            option = "--" + name.replace("_", "-")
            if name in self.positional:
                words += map(str, value) if isinstance(value, list) else [str(value)]
            elif isinstance(value, bool):
                words += [option] if value else []
            elif value is not None:
                words += [
                    option,
                    json.dumps(value) if isinstance(value, list | dict) else f"{value}",
                ]
        return shlex.join(map(without_secrets, words))


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a command."""

    record: Mapping[str, Any]
    """JSON for programs (`--json`); docs/command_line.md lists its keys."""
    text: str = ""
    """For people, printed at the end."""
    code: int = field(default=0)
    """Exit code."""
