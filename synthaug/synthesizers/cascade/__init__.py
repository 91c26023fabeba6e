"""Cascaded diffusion (Ho et al. 2021): a base model, and stages that enlarge its images."""

from synthaug.synthesizers.cascade._stage import CascadeStage
from synthaug.synthesizers.cascade._synthesizer import Cascade

__all__ = ["Cascade", "CascadeStage"]
