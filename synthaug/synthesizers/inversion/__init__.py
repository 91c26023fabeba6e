"""Diffusion inversion (Zhou et al. 2023): learned embeddings, and variants from them."""

from synthaug.synthesizers.inversion._fit import InversionConfig
from synthaug.synthesizers.inversion._synthesizer import DiffusionInversion
from synthaug.synthesizers.inversion._variant_plan import soft_labels

__all__ = ["DiffusionInversion", "InversionConfig", "soft_labels"]
