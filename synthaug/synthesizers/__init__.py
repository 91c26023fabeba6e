"""Synthesizers: one paper, one file."""
