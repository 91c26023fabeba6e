"""Text-to-image models that our own loop knows besides Stable Diffusion 1 and 2.

What differs between them is how prompts are embedded, by up to three text encoders, and how their
network is called (`synthaug.denoisers._networks`). Diffusers' pipeline embeds the prompts, once.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from synthaug._printable import shortened
from synthaug._support.digests import tensor_digest
from synthaug._support.torch_state import lasting_tensors
from synthaug.denoisers._networks import Prompted
from synthaug.errors import CheckpointError
from synthaug.synthesizers._loading import LoadingConfig
from synthaug.synthesizers._pipeline_files import load_pipeline
from synthaug.synthesizers._prompts import check_lengths

OUR_PIPELINES = (
    "DDIMPipeline",
    "DDPMPipeline",
    "DiTPipeline",
    "DiffusionPipeline",
    "LDMPipeline",
    "PNDMPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPipeline",
)
"""Pipelines of diffusers in whose place our loop draws, wherever both can."""

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionXLPipeline": ("tokens", "negative", "pooled", "negative pooled"),
    "StableDiffusion3Pipeline": ("tokens", "negative", "pooled", "negative pooled"),
    "FluxPipeline": ("tokens", "pooled", "places"),
    "PixArtAlphaPipeline": ("tokens", "mask", "negative", "negative mask"),
    "PixArtSigmaPipeline": ("tokens", "mask", "negative", "negative mask"),
    "SanaPipeline": ("tokens", "mask", "negative", "negative mask"),
}
"""What `encode_prompt` of each pipeline returns, in order."""

_TOGETHER = 16  # prompts that are embedded at once
_AS_CALLED = ("max_sequence_length", "clean_caption", "complex_human_instruction")
"""Arguments of `encode_prompt` whose defaults are those of the pipeline's call."""


def family_of(index: Mapping[str, Any]) -> str | None:
    """The pipeline that a checkpoint is for, if it is one of `FAMILIES`, by its index."""
    name = index.get("_class_name")
    return name if name in FAMILIES and index.get("text_encoder") else None


def check_known(path: str | Path, index: Mapping[str, Any], what: str) -> None:
    """Refuses the checkpoint of a pipeline whose network we do not know how to call.

    Args:
        path: The checkpoint, for the error message.
        index: Contents of `model_index.json`.
        what: The task that needs it, such as "fine-tune".

    Raises:
        CheckpointError: Naming the pipelines that are known.
    """
    name = index.get("_class_name", "DiffusionPipeline")
    if name not in OUR_PIPELINES and name not in FAMILIES:
        raise CheckpointError(
            f"{path} is a {shortened(name)}, which we cannot {what}. We support "
            f"{', '.join((*OUR_PIPELINES, *FAMILIES))}."
        )


@lasting_tensors()
def embed(
    path: Path, family: str, prompts: Sequence[str], negative: str, device: torch.device
) -> Prompted:
    """The prompts and behind them the negative one, on the CPU, as the pipeline embeds them.

    An empty negative prompt is what the pipeline takes it for if none is given.

    Args:
        path: A checkpoint of the family.
        family: One of `FAMILIES`.
        prompts: One for each class.
        negative: The negative prompt.
        device: Where the text encoders run, in the precision that suits it.

    Raises:
        CheckpointError: If a text encoder or tokenizer is missing or damaged.
        ValueError: If a prompt is too long, or two prompts are the same to the encoders.
    """
    left_out = {"unet" if family == "StableDiffusionXLPipeline" else "transformer": None}
    pipeline = load_pipeline(
        path, LoadingConfig(), dtype="auto", device=device, vae=None, **left_out
    )
    parts: Mapping[str, Any] = pipeline.components
    tokenizers = [part for name, part in parts.items() if name.startswith("tokenizer") and part]
    call = inspect.signature(type(pipeline).__call__).parameters
    check_lengths([*prompts, negative], tokenizers, {name: call[name].default for name in call})
    batches = [prompts[i : i + _TOGETHER] for i in range(0, len(prompts), _TOGETHER)]
    embedded = [_embed(pipeline, family, batch, negative) for batch in batches]
    whole = embedded[0][0]
    for batch, _ in embedded[1:]:
        whole = batch.behind(whole)
    _check_apart(prompts, whole)
    return embedded[0][1].behind(whole).sent(torch.device("cpu"))


@torch.no_grad()
def _embed(
    pipeline: Any, family: str, prompts: Sequence[str], negative: str
) -> tuple[Prompted, Prompted]:
    """The prompts, and the negative one, float32."""
    call = inspect.signature(type(pipeline).__call__).parameters
    taken = inspect.signature(pipeline.encode_prompt).parameters
    arguments = {name: call[name].default for name in _AS_CALLED if name in call and name in taken}
    arguments |= {name: None for name in ("prompt_2", "prompt_3") if name in taken}
    guided = "negative_prompt" in taken
    if guided:
        arguments["negative_prompt"] = negative or call["negative_prompt"].default
        arguments["do_classifier_free_guidance"] = True
    found = pipeline.encode_prompt(prompt=list(prompts), **arguments)
    parts = {name: part.float().clone() for name, part in zip(FAMILIES[family], found, strict=True)}
    if not guided:
        only = pipeline.encode_prompt(prompt=[negative], **arguments)
        parts |= {
            "negative" if name == "tokens" else f"negative {name}": part.float().clone()
            for name, part in zip(FAMILIES[family], only, strict=True)
        }
    other = "mask" if "mask" in parts else "pooled"
    return (
        Prompted(parts["tokens"], {other: parts[other]}),
        Prompted(parts["negative"][:1], {other: parts[f"negative {other}"][:1]}),
    )


def _check_apart(prompts: Sequence[str], embedded: Prompted) -> None:
    """Refuses prompts of classes that the text encoders do not tell apart."""
    seen: dict[str, str] = {}
    for number, prompt in enumerate(prompts):
        digest = tensor_digest({"": embedded.tokens[number]})
        if (same := seen.get(digest)) is not None:
            raise ValueError(
                f"The prompts {shortened(same)!r} and {shortened(prompt)!r} of two classes are the "
                "same to the text encoders. Give names in `classes` that differ, and put {} into "
                "`prompt_template` where the name goes."
            )
        seen[digest] = prompt
