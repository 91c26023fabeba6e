"""Real images through a latent model's autoencoder: what no latent generator can do better than."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from synthaug._images.labeled import LabeledImages
from synthaug._images.source import ImageSource
from synthaug._pixels import to_images, to_pixels
from synthaug._support.arguments import check_whole
from synthaug._support.devices import choose_device, sent
from synthaug._support.layout import settle_layout
from synthaug._support.progress import bar
from synthaug._training.checkpoints import read_json, resolve
from synthaug._training.parts import load_part, read_index
from synthaug.errors import CheckpointError, MismatchError


def reconstructions(
    real: Dataset[Any],
    checkpoint: str | Path,
    *,
    classes: Sequence[str] | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> LabeledImages:
    """Encodes every image with the checkpoint's autoencoder, and decodes it again.

        ceiling = synthaug.evaluation.reconstructions(train, "stable-diffusion-v1-5")
        table = synthaug.evaluate({"real": train, "real, decoded": ceiling}, test=test)

    A classifier trained on the result and tested on real images bounds what images of a latent
    generator can teach: whatever the generator draws goes through the same decoder, and detail that
    the autoencoder loses is lost in all of them.

    Args:
        real: Labeled images, a map-style data set; without random or normalizing transforms if it
            is not one of `load_dataset`.
        checkpoint: A diffusers directory with a `vae` (Stable Diffusion's, say), or the directory
            of an `AutoencoderKL` alone; or `hub:OWNER/NAME`.
        classes: Class names, if `real` does not know them.
        batch_size: Images that go through the network together. On one device in float32 it changes
            no image by more than a gray level.
        device: By default the GPU if there is one.
        progress: Show a bar with rate and time left.

    Returns:
        The images as they come out, in the order of `real`, with its labels, in memory. The mean of
        the posterior is decoded, so there is no randomness.

    Raises:
        CheckpointError: If there is no autoencoder, or it cannot be loaded.
        MismatchError: If the images have other channels than it takes, or a size that it cannot
            halve often enough.
        ValueError: If `batch_size` is below 1, or the classes have no names.
    """
    check_whole(1, batch_size=batch_size)
    place = choose_device(device)
    vae = settle_layout(_autoencoder(checkpoint)).eval().requires_grad_(False).to(place)
    source = ImageSource.open(real, "`real`")
    names = classes if classes is not None else source.classes
    if names is None:
        raise ValueError("`real` does not name its classes. Pass `classes`.")
    _check(vae, source.image_shape, str(checkpoint))
    parts: list[Tensor] = []
    job = bar(len(source), "reconstruct", "image", progress=progress)
    with torch.inference_mode(), job as shown:
        for pixels in source.blocks(batch_size):
            images = to_images(sent(pixels, place))
            encoded = vae.encode(images)
            # An autoencoder gives a distribution, or, as a VQ model does, the latents themselves.
            drawn = hasattr(encoded, "latent_dist")
            latents = encoded.latent_dist.mean if drawn else encoded.latents
            decoded = vae.decode(latents).sample
            parts.append(to_pixels(decoded.clamp(-1, 1).cpu()))
            shown.update(len(pixels))
    name = f"{source.title}, decoded"
    return LabeledImages(torch.cat(parts), source.labels, names, name=name)


def _autoencoder(checkpoint: str | Path) -> Any:
    path = resolve(checkpoint)
    if (path / "model_index.json").exists():
        index = read_index(path)
        if not index.get("vae"):
            raise CheckpointError(
                f"{path} has no autoencoder: it is a model of pixels, and nothing is lost there."
            )
        return load_part(path, index, "vae", torch.float32)
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} holds neither model_index.json nor config.json. Give a directory in diffusers "
            "layout, or that of an AutoencoderKL."
        )
    kind = read_json(path / "config.json").get("_class_name")
    index = {"vae": ("diffusers", kind)}
    return load_part(path.parent, index, "vae", torch.float32, folder=path.name)


def _check(vae: Any, shape: tuple[int, ...], name: str) -> None:
    channels, height, width = shape
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if channels != vae.config.in_channels:
        raise MismatchError(
            f"The autoencoder of {name} takes {vae.config.in_channels} channels, the images have "
            f"{channels}. Convert them, or take another checkpoint."
        )
    if height % factor or width % factor:
        raise MismatchError(
            f"The images are {height} x {width}; the autoencoder of {name} needs a multiple of "
            f"{factor}. Load them with another `image_shape`."
        )
