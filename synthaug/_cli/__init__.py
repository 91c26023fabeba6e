"""The command line: parse, call one public function, print."""

from synthaug._cli.app import CACHE_COMMANDS, COMMANDS, build_parser, main

__all__ = ["CACHE_COMMANDS", "COMMANDS", "build_parser", "main"]
