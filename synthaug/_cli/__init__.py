"""The command line: parse, call one public function, print."""

from synthaug._cli._main import CACHE_COMMANDS, COMMANDS, build_parser, main

__all__ = ["CACHE_COMMANDS", "COMMANDS", "build_parser", "main"]
