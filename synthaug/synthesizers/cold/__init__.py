"""Cold diffusion (Bansal et al. 2022): real images, degraded without noise and restored."""

from synthaug.synthesizers.cold._synthesizer import ColdDiffusion

__all__ = ["ColdDiffusion"]
