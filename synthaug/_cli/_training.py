"""The command that trains a generator."""

from pathlib import Path
from typing import Any, Literal

_MEANT_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("num_tokens", "token_width", "token_noise"), ("--condition tokens",)),
    **dict.fromkeys(
        ("degradation", "degradation_settings", "colour_components"), ("--method cold",)
    ),
    **dict.fromkeys(
        (
            "low_size",
            "conditioning_augmentation",
            "max_noise_level",
            "blur_probability",
            "blur_std_range",
        ),
        ("--method upsample",),
    ),
    **dict.fromkeys(
        ("width", "num_layers"),
        ("--condition labels", "--condition tokens", "--method cold", "--method upsample"),
    ),
    "prediction_type": ("--condition labels", "--condition tokens", "--method upsample"),
    "label_dropout": ("--condition labels", "--method upsample", "--method finetune"),
    "unlabelled": ("--condition labels", "--method upsample"),
    "base": ("--method hardness", "--method finetune"),
    **dict.fromkeys(("synthetic", "num_synthetic"), ("--method hardness",)),
    **dict.fromkeys(
        ("lora_rank", "prompt_template", "snapshots", "validation", "features"),
        ("--method finetune",),
    ),
}
"""Options that are not for every training, and those that they are for."""


def train(
    data: str,
    out: str,
    *,
    method: Literal["diffusion", "cold", "upsample", "hardness", "finetune"] = "diffusion",
    condition: Literal["labels", "tokens"] = "labels",
    unlabelled: str | None = None,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float | None = None,
    warmup_steps: int = 200,
    decay_steps: int = 0,
    ema_decay: float = 0.9995,
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    width: int | None = None,
    num_layers: int | None = None,
    prediction_type: Literal["v_prediction", "epsilon", "sample"] | None = None,
    label_dropout: float | None = None,
    num_tokens: int | None = None,
    token_width: int | None = None,
    token_noise: float | None = None,
    degradation: str | None = None,
    degradation_settings: dict[str, Any] | None = None,
    colour_components: int | None = None,
    low_size: int | None = None,
    conditioning_augmentation: Literal["gaussian", "blur", "none"] | None = None,
    max_noise_level: int | None = None,
    blur_probability: float | None = None,
    blur_std_range: tuple[float, float] | None = None,
    base: str | None = None,
    synthetic: str | None = None,
    num_synthetic: int | None = None,
    lora_rank: int | None = None,
    prompt_template: str | None = None,
    snapshots: list[int] | None = None,
    validation: str | None = None,
    features: str | None = None,
    horizontal_flip: bool = False,
    checkpoint_seconds: float = 120.0,
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Train a generator; run again to resume.

    synthaug train folder:cifar10/train runs/cifar10 --steps 20000 --precision bfloat16

    Args:
        data: Labelled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits.
        out: Directory to write; it becomes a checkpoint in diffusers layout.
        method: diffusion learns to remove noise, cold (cold diffusion) to undo --degradation,
            upsample (a stage for synthaug cascade) to draw what --low-size leaves out, hardness to
            steer the generator --base to rare images of each class, finetune to draw the classes of
            the data with the pretrained model --base.
        condition: What diffusion is told about an image: its label, or tokens of an encoder that is
            learned along with it, for synthaug invert.
        unlabelled: Further images, which train the unconditional branch.
        image_size: Resize the shorter side to it and cut out the centre.
        channels: 1 converts to grey, 3 to RGB.
        steps: Optimiser steps in all.
        batch_size: Images per step.
        learning_rate: Peak learning rate of AdamW; 4e-4 by default, for finetune 1e-5, or 1e-4 with
            --lora-rank.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Steps at the end over which the learning rate falls to 0.
        ema_decay: Decay of the moving average of the weights.
        precision: bfloat16 runs the network under autocast.
        compile: Compile the network: a slow start, then faster steps.
        width: Channels of a new network's first level; 32 by default.
        num_layers: Residual blocks per level of a new network; 1 by default.
        prediction_type: What a new network predicts; v_prediction by default.
        label_dropout: Share of the labels hidden, to train the unconditional branch; 0.1 by
            default.
        num_tokens: Tokens per image, with --condition tokens; 4 by default.
        token_width: Size of each token; 64 by default.
        token_noise: Noise on the tokens in training; 0.2 by default. More of it makes tokens say
            less about an image, so that variants move farther from it.
        degradation: What cold diffusion undoes: blur (the default), inpainting,
            super-resolution, snow, decolorization or noise.
        degradation_settings: Those that differ from its defaults, for example '{"num_levels": 20}'.
        colour_components: Gaussians in the mixture of colours that cold generation starts from; 1
            by default.
        low_size: Shorter side of the small images that --method upsample starts from.
        conditioning_augmentation: What they go through, to be like drawn ones: gaussian noise (the
            default), blur or none.
        max_noise_level: Highest level of the noise, in steps of 1,000; 500 by default.
        blur_probability: Share of them that is blurred; 0.5 by default.
        blur_std_range: Standard deviations of the blur, in pixels; '[0.4, 0.6]' by default.
        base: Checkpoint of the generator that --method hardness steers. Its network sets the size
            of those that are trained, and the images are brought to its size and channels. Or the
            checkpoint that --method finetune goes on from, to whose size --image-size brings them.
        synthetic: Cache of images that it drew; by default they are drawn now.
        num_synthetic: How many are drawn; at most 5,000 by default.
        lora_rank: Rank of the low-rank adapters that are trained instead of all weights.
        prompt_template: Prompt of a class, where {} stands for its name; {} by default.
        snapshots: Steps after which the model is also kept in snapshots, for example '[500, 1000]'.
        validation: Images, neither training nor test images, on which the best snapshot is chosen,
            by the Fréchet distance.
        features: What that is measured in: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum.
        horizontal_flip: Mirror half of the training images.
        checkpoint_seconds: Seconds between checkpoints.
        device: cpu, cuda ...; a GPU if there is one by default.
        seed: Seed.
    """
    arguments = dict(locals())
    given = {name: value for name, value in arguments.items() if name in _MEANT_FOR}
    chosen = f"--condition {condition}" if method == "diffusion" else f"--method {method}"
    foreign = [n for n, v in given.items() if v is not None and chosen not in _MEANT_FOR[n]]
    if method != "diffusion" and condition == "tokens":
        foreign.append("condition")
    if foreign:
        option = foreign[0].replace("_", "-")
        raise ValueError(f"`--{option}` has no meaning with {chosen}. Leave it out.")
    shared = ("unlabelled", "base", "width", "num_layers", "prediction_type", "label_dropout")
    own = {n: value for n, value in given.items() if value is not None and n not in shared}
    if method == "upsample" and low_size is None:
        raise ValueError("`--method upsample` needs `--low-size`, that of the model before it.")
    if method in ("hardness", "finetune") and base is None:
        what = "the generator to steer" if method == "hardness" else "the checkpoint to start from"
        raise ValueError(f"`--method {method}` needs `--base`, {what}.")
    if (validation is None) != (features is None) or (validation and not snapshots):
        raise ValueError("To choose a snapshot takes `--snapshots`, `--validation`, `--features`.")
    width = 32 if width is None else width
    num_layers = 1 if num_layers is None else num_layers
    prediction_type = prediction_type or "v_prediction"
    label_dropout = 0.1 if label_dropout is None else label_dropout
    if width < 1:  # whose name in Python is `channels`, which is another option here
        raise ValueError(f"`width` must be at least 1, got {width}.")
    from accelerate import PartialState

    from synthaug._data import load_dataset
    from synthaug._training import TrainingConfig

    real = load_dataset(data, image_size=image_size, channels=channels)
    more = None
    if unlabelled is not None:
        more = load_dataset(unlabelled, image_shape=real.image_shape)
    score = None if features is None else _score(str(validation), features, real, device)
    if learning_rate is None:
        learning_rate = 4e-4 if method != "finetune" else 1e-5 if lora_rank is None else 1e-4
    config = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        ema_decay=ema_decay,
        precision=precision,
        compile=compile,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
        device=device,
    )
    common: dict[str, Any] = {
        "config": config,
        "channels": width,
        "num_layers": num_layers,
        "horizontal_flip": horizontal_flip,
    }
    model: Any
    if method == "hardness":
        model, result = _hardness(
            str(base), real, data, out, synthetic, num_synthetic, config, horizontal_flip
        )
    elif method == "cold":
        from synthaug import degradations
        from synthaug.synthesizers import ColdDiffusion

        model, result = ColdDiffusion.fit(
            real,
            out,
            degradation=degradations.named(degradation or "blur", **(degradation_settings or {})),
            colour_components=colour_components or 1,
            **common,
        )
    elif method == "upsample":
        from synthaug.synthesizers import Cascade

        model, result = Cascade.fit_stage(
            real,
            out,
            unlabelled=more,
            prediction_type=prediction_type,
            label_dropout=label_dropout,
            **own,
            **common,
        )
    elif method == "finetune":
        from synthaug.synthesizers import ClassConditional

        model, result = ClassConditional.fine_tune(
            str(base),
            real,
            out,
            config=config,
            label_dropout=label_dropout,
            image_size=image_size,
            horizontal_flip=horizontal_flip,
            **{name: own[name] for name in own if name not in ("validation", "features")},
        )
    elif condition == "tokens":
        from synthaug.synthesizers import DiffusionInversion

        model, result = DiffusionInversion.fit_generator(
            real,
            out,
            num_tokens=num_tokens or 4,
            token_width=token_width or 64,
            token_noise=0.2 if token_noise is None else token_noise,
            prediction_type=prediction_type,
            **common,
        )
    else:
        from synthaug.synthesizers import ClassConditional

        model, result = ClassConditional.fit(
            real,
            out,
            unlabelled=more,
            prediction_type=prediction_type,
            label_dropout=label_dropout,
            **common,
        )
    if not PartialState().is_main_process:
        return
    loss = f", loss {result.loss_curve[-1][1]:.4f}" if result.loss_curve else ""
    print(f"{result.step:,} steps{loss}. Checkpoint: {out}.")
    picture = Path(out) / "samples.png"
    if method == "cold":
        _restored(model, real, picture)
        print(f"Real images, what the last level leaves of them, what is restored: {picture}")
    elif method == "upsample":
        _enlarged(model, real, picture)
        print(f"Real images, smaller copies, what is drawn from those: {picture}")
        print(f"Next: synthaug cascade DIRECTORY BASE {out}")
    elif method == "hardness":
        _samples(model, seed, picture)
        print(f"Samples, a row per class, in turn plain and steered: {picture}")
    elif condition == "tokens":
        print(f"Next: synthaug invert {out} {data} DIRECTORY")
    else:
        _samples(model, seed, picture)
        print(f"Samples, a row per class: {picture}")
    if score is not None:
        _select(out, score, device)


def _score(validation: str, features: str, real: Any, device: str | None) -> Any:
    """The Fréchet distance to as many validation images as there are, but for remainders."""
    from synthaug._cli._inputs import load
    from synthaug._devices import choose_device
    from synthaug.features import named
    from synthaug.synthesizers import frechet_score

    images = load(validation, real.image_shape, real.classes)
    per_class = max(1, min(len(images), 10_000) // len(real.classes))
    extractor = named(features, device=choose_device(device))
    return frechet_score(images, extractor, per_class=per_class)


def _select(out: str, score: Any, device: str | None) -> None:
    """Scores the snapshots, and names the best one."""
    from synthaug.synthesizers import select_snapshot

    best = select_snapshot(out, score, device=device)
    for step, value in best.scores.items():
        print(f"Step {step:,}: Fréchet distance {value:.4g} to the validation images.")
    print(f"Best snapshot: {best.path}")


def _hardness(
    base: str,
    real: Any,
    data: str,
    out: str,
    synthetic: str | None,
    num_synthetic: int | None,
    config: Any,
    horizontal_flip: bool,
) -> Any:
    """What steers `base`, and the course of its training."""
    from synthaug._cache import SynthCache
    from synthaug._data import load_dataset
    from synthaug.synthesizers import LowDensity
    from synthaug.synthesizers._kinds import load, origin_of

    generator: Any = load(**origin_of(base, real.classes))
    if real.image_shape != generator.image_shape:
        real = load_dataset(data, image_shape=generator.image_shape)
    return LowDensity.fit(
        real,
        base,
        out,
        synthetic=None if synthetic is None else SynthCache(synthetic),
        num_synthetic=num_synthetic,
        config=config,
        horizontal_flip=horizontal_flip,
    )


def _samples(model: Any, seed: int, path: Path) -> None:
    """Eight images of each of the first ten classes."""
    from synthaug._pixels import grid, to_pixels

    counts = dict.fromkeys(model.classes[:10], 8)
    row: dict[str, Any] = {"guidance_scale": 1.5 if model.can_be_guided else 1.0}
    if hasattr(model, "realism"):
        row = {name: [0.0, value] for name, value in model.default_strengths.items()}
    images = model.draw(model.plan(counts=counts, seed=seed, **row))
    zoom = max(1, 32 // images.shape[-1])
    grid(to_pixels(images), columns=8, scale=zoom).save(path)


def _enlarged(stage: Any, real: Any, path: Path, images: int = 8) -> None:
    """A row of real images, one of smaller copies, one of what is drawn from those."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from synthaug._noise import streams
    from synthaug._pixels import grid, to_images, to_pixels

    chosen = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    pixels = real.read(chosen)
    low = stage.shrink(to_images(pixels))
    drawn = stage.draw(
        low,
        torch.zeros(len(chosen), dtype=torch.int64),
        torch.tensor(np.asarray(real.targets)[chosen]),
        torch.ones(len(chosen)),
        streams(chosen.tolist()),
    )
    blocks = F.interpolate(to_pixels(low).float(), pixels.shape[2:], mode="nearest-exact")
    sheet = torch.cat([pixels, blocks.to(torch.uint8), to_pixels(drawn).cpu()])
    grid(sheet, columns=len(chosen), scale=max(1, 32 // pixels.shape[-1])).save(path)


def _restored(cold: Any, real: Any, path: Path, images: int = 8) -> None:
    """A row of real images, one of what the last level leaves, one of what is restored."""
    import numpy as np
    import torch

    from synthaug._noise import streams
    from synthaug._pixels import grid, to_images, to_pixels

    chosen = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    pixels = real.read(chosen)
    drawn = cold.degradation.realise(streams(chosen.tolist()), cold.image_shape)
    realisation = {name: value.to(cold.device) for name, value in drawn.items()}
    T = cold.degradation.num_levels
    x_T = cold.degradation(to_images(pixels).to(cold.device), T, realisation)
    restored = cold.restore(x_T, T, realisation).x0
    sheet = torch.cat([pixels, to_pixels(x_T).cpu(), to_pixels(restored).cpu()])
    grid(sheet, columns=len(chosen), scale=max(1, 32 // pixels.shape[-1])).save(path)
