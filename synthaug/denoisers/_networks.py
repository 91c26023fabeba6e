"""How networks are called that take more of a prompt than one token sequence.

Those of Stable Diffusion XL and 3, FLUX, PixArt and Sana. Podell et al. 2023 (SDXL), Esser et al.
2024 (SD3), Chen et al. 2023 (PixArt), Xie et al. 2024 (Sana).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from synthaug._support.devices import sent
from synthaug._types import Images

_PREFIX = "prompt."
"""Sets the parts of a prompt apart from other tensors in a file."""


@final
@dataclass(frozen=True, eq=False)
class Prompted:
    """Prompts as these networks take them; row i of every part belongs to prompt i."""

    tokens: Tensor
    """What the network attends to, float (n, k, d)."""
    others: Mapping[str, Tensor]
    """What else it takes: `pooled` (n, p), a vector for the whole prompt; `mask` (n, k), 1 for the
    tokens that count; `size` (n, 2), height and width of the image in pixels."""

    @property
    def shape(self) -> torch.Size:
        """(n, k, d)."""
        return self.tokens.shape

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.tokens.device

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> "Prompted":
        return self._each(lambda part: part[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Prompted":
        others = {name: change(part) for name, part in self.others.items()}
        return Prompted(change(self.tokens), others)

    def sent(self, device: torch.device) -> "Prompted":
        """The same on a device."""
        return self._each(lambda part: sent(part, device))

    def behind(self, other: "Prompted") -> "Prompted":
        """These prompts behind those of `other`."""
        others = {name: torch.cat([other.others[name], part]) for name, part in self.others.items()}
        return Prompted(torch.cat([other.tokens, self.tokens]), others)

    def attending(self, tokens: Tensor) -> "Prompted":
        """The same prompts, but for what is attended to: float (n, k, d).

        All of the tokens count, unless they are as many as before.
        """
        others = dict(self.others)
        if "mask" in others and tokens.shape[1] != self.tokens.shape[1]:
            others["mask"] = torch.ones_like(tokens[:, :, 0])
        return Prompted(tokens, others)

    def sized(self, height: int, width: int) -> "Prompted":
        """The same for images of a size in pixels."""
        size = torch.tensor([[height, width]], dtype=torch.float32, device=self.device)
        return Prompted(self.tokens, {**self.others, "size": size.repeat(len(self), 1)})

    def tensors(self) -> dict[str, Tensor]:
        """The parts by name, as a file holds them; `from_tensors` gives them back."""
        return {"class_embeddings": self.tokens} | {
            _PREFIX + name: part for name, part in self.others.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Prompted | Tensor":
        """The prompts that `tensors` took apart; or the one tensor, where there are no others."""
        others = {
            name.removeprefix(_PREFIX): part
            for name, part in tensors.items()
            if name.startswith(_PREFIX)
        }
        tokens = tensors["class_embeddings"]
        return cls(tokens, others) if others else tokens


Evaluate = Callable[..., Images]
"""`Denoiser.evaluate`: what the network says of x_t at t, with inputs as diffusers names them."""


def _sdxl(config: Any, evaluate: Evaluate, x: Images, t: Tensor, prompt: Prompted) -> Images:
    """A `UNet2DConditionModel` that is told the size of the image, and which part of it this is:
    here all of it."""
    del config
    size = prompt.others["size"]
    times = torch.cat([size, torch.zeros_like(size), size], 1)
    added = {"text_embeds": prompt.others["pooled"], "time_ids": times}
    return evaluate(x, t, encoder_hidden_states=prompt.tokens, added_cond_kwargs=added)


def _sd3(config: Any, evaluate: Evaluate, x: Images, t: Tensor, prompt: Prompted) -> Images:
    del config
    pooled = prompt.others["pooled"]
    return evaluate(x, t, encoder_hidden_states=prompt.tokens, pooled_projections=pooled)


def _pixart(config: Any, evaluate: Evaluate, x: Images, t: Tensor, prompt: Prompted) -> Images:
    size = prompt.others["size"]
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (
        config.use_additional_conditions is None and config.sample_size == 128
    ):
        added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    return evaluate(
        x,
        t,
        encoder_hidden_states=prompt.tokens,
        encoder_attention_mask=prompt.others["mask"],
        added_cond_kwargs=added,
    )


def _sana(config: Any, evaluate: Evaluate, x: Images, t: Tensor, prompt: Prompted) -> Images:
    return evaluate(
        x,
        t * config.timestep_scale,
        encoder_hidden_states=prompt.tokens,
        encoder_attention_mask=prompt.others["mask"],
    )


def _flux(config: Any, evaluate: Evaluate, x: Images, t: Tensor, prompt: Prompted) -> Images:
    """Takes the image as a sequence of its patches of 2 x 2, each with its place.

    A network that was distilled from guided predictions is told a guidance scale: here always 1,
    for the prediction without guidance, which is what the loss of flow matching has as its minimum.
    """
    n, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    patches = x.reshape(n, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.zeros(rows, columns, 3, dtype=torch.float32, device=x.device)
    places[..., 1] = torch.arange(rows, dtype=torch.float32, device=x.device)[:, None]
    places[..., 2] = torch.arange(columns, dtype=torch.float32, device=x.device)
    tokens = prompt.tokens
    inputs: dict[str, Any] = {}
    if config.guidance_embeds:
        inputs["guidance"] = torch.ones(n, dtype=torch.float32, device=x.device)
    flow = evaluate(
        patches.reshape(n, rows * columns, channels * 4),
        t / 1000,  # whatever the scheduler's number of timesteps: the network multiplies by it
        encoder_hidden_states=tokens,
        pooled_projections=prompt.others["pooled"],
        txt_ids=torch.zeros(tokens.shape[1], 3, dtype=torch.float32, device=x.device),
        img_ids=places.view(-1, 3),
        **inputs,
    )
    flow = flow.view(n, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return flow.reshape(n, channels, height, width)


CALLS: Mapping[str, Callable[[Any, Evaluate, Images, Tensor, Prompted], Images]] = {
    "UNet2DConditionModel": _sdxl,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
}
"""By class name; a `UNet2DConditionModel` only if it is one of Stable Diffusion XL."""

TRANSFORMERS = tuple(name for name in CALLS if "Transformer" in name)
"""Those of them that are no U-Nets."""


def part_beside_tokens(kind: str) -> str:
    """Names the part of a prompt that a network of `CALLS` takes beside the token sequence."""
    return "mask" if kind in ("PixArtTransformer2DModel", "SanaTransformer2DModel") else "pooled"


def cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """Inputs by name, those with numbers in a dtype; but for places, whose precision counts."""
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield name, dict(cast(value, dtype))
        elif isinstance(value, Tensor) and not name.endswith("_ids") and value.is_floating_point():
            yield name, value.to(dtype)
        else:
            yield name, value
