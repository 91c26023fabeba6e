"""Class-conditional diffusion: its synthesizer, its training, and fine-tuning."""

from synthaug.synthesizers.class_conditional._synthesizer import ClassConditional

__all__ = ["ClassConditional"]
