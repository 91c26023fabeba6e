"""Licenses of checkpoints, and what follows from them for the images.

This is a record and no legal advice: licenses say different things about what a model makes. What
can be said for sure is what was written down, and that images made from something that is for
non-commercial use should not be passed on as if they were free.
"""

import re
from collections.abc import Mapping
from typing import Any

# As each publisher's page on huggingface.co shows it at the top, "License:", in copies of it, but
# for FLUX, whose licenses are a table in the README of black-forest-labs/flux on GitHub (the first
# is named so in `license_name` of models made from it), and for stable-diffusion-v1-5, a copy of
# runwayml's, which was deleted in 2024. The card of sd-turbo names no license: it is not here.
LICENSES: dict[str, str] = {
    "black-forest-labs/FLUX.1-dev": "flux-1-dev-non-commercial-license",
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "facebook/DiT-XL-2-256": "cc-by-nc-4.0",
    "facebook/DiT-XL-2-512": "cc-by-nc-4.0",
    "google/ddpm-cifar10-32": "apache-2.0",
    "PixArt-alpha/PixArt-XL-2-512x512": "openrail++",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/sdxl-turbo": "sai-nc-community",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}
"""License of each known checkpoint, by OWNER/NAME on the hub. Add yours. Publishers change
licenses: what you state yourself goes first."""

_NONCOMMERCIAL = re.compile(r"non-?\s?commercial|\bnc\b|research[- ]only|academic", re.IGNORECASE)


def license_of(checkpoint: str) -> str | None:
    """The license of a checkpoint, "hub:OWNER/NAME" or "OWNER/NAME"; `None` if it is not known.

    `LICENSES` is the table that it looks into, which you may extend.
    """
    wanted = str(checkpoint).removeprefix("hub:").casefold()
    return next((text for name, text in LICENSES.items() if name.casefold() == wanted), None)


def noncommercial_parts(license: Mapping[str, Any]) -> list[str]:
    """Names those licenses, "generator" or "source", that allow non-commercial use only."""
    texts = {name: str(license.get(name) or "") for name in ("generator", "source")}
    return [name for name, text in texts.items() if _NONCOMMERCIAL.search(text.replace("_", "-"))]
