"""Low-density sampling (Sehwag et al. 2022): rare images of a class that stay real."""

from synthaug.synthesizers.low_density._synthesizer import LowDensity

__all__ = ["LowDensity"]
