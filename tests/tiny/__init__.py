"""Synthesizers with random networks of a few thousand weights, and images to train them with."""
