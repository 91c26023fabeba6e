"""Any diffusers pipeline as a synthesizer: text to image, or unconditional."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._noise import streams
from synthaug._plan import REQUIRED, Plan, canonical_json
from synthaug._support.torch_state import torch_defaults
from synthaug._training.checkpoints import scheduler_settings, state_digest
from synthaug._types import JSON, Images
from synthaug.errors import DataError
from synthaug.guidance import ClassifierGuidance
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._diffusion import with_guidance

_OURS = ("batch_size", "generator", "num_images_per_prompt", "output_type", "prompt", "return_dict")
"""Arguments that follow from the rows."""
_CALLBACK = "callback_on_step_end"


@final
class FromPipeline(AbstractSynthesizer):
    """Calls a diffusers pipeline: one prompt per class, one random stream per row.

        pipeline = StableDiffusionXLPipeline.from_pretrained(path).to("cuda")
        synthesizer = FromPipeline(pipeline, ["cat", "dog"], prompts="a photo of a {}", height=512)
        plan = synthesizer.plan(per_class=500, guidance_scale=[2.0, 4.0], seed=0)

    For pipelines that we have no loop of our own for. Stable Diffusion, DiT and unconditional
    models are better loaded by `ClassConditional`, which starts from real images too.

    Parameters of a plan are arguments of the call, such as `guidance_scale`. Nothing is loaded or
    downloaded here, and the pipeline stays as it is, on its device and in its dtype. The recipe
    holds the digests of its weights, the configs of its schedulers, prompts and arguments. The
    scale of an adapter is in none of these: merge it into the weights (`fuse_lora`).
    """

    def __init__(
        self,
        pipeline: Callable[..., Any],
        classes: Sequence[str],
        *,
        prompts: str | Sequence[str] = "{}",
        classifier_guidance: ClassifierGuidance | None = None,
        **arguments: JSON,
    ) -> None:
        """Checks that rows can become calls.

        Args:
            pipeline: A `DiffusionPipeline`, called with a list of generators.
            classes: Names of the classes. A pipeline that takes no prompt has one.
            prompts: A template for class names (underscores become spaces), or one prompt per
                class.
            classifier_guidance: A classifier that steers the pipeline through its step callback;
                see `ClassifierGuidance.callback`.
            arguments: For every call, such as `num_inference_steps` or `negative_prompt`.

        Raises:
            TypeError: For an argument that the pipeline does not take, that follows from the rows,
                or that cannot be written as JSON.
            ValueError: For a pipeline that needs other inputs or has no step callback to guide it
                by, or another number of prompts.
            MismatchError: If the classifier does not know a class.
        """
        if isinstance(classes, str) or len(set(classes)) != len(classes) or not classes:
            raise ValueError(f"`classes` must be a list of different names, got {classes!r}.")
        self.pipeline, self.classes = pipeline, tuple(map(str, classes))
        self._accepted = _parameters(pipeline)
        self.arguments = dict(arguments)
        self._check_names(arguments)
        for name, value in arguments.items():
            try:
                canonical_json(value)
            except (TypeError, ValueError):
                raise TypeError(
                    f"`{name}` is {type(value).__name__}, which the recipe of a cache cannot hold. "
                    "Give numbers and text."
                ) from None
        needed = [name for name, p in self._accepted.items() if p.default is p.empty]
        open_ = [name for name in needed if name not in (*arguments, *_OURS)]
        if open_:
            raise ValueError(
                f"{self._name} needs `{open_[0]}` in every call. Only pipelines that make images "
                "from text or from noise alone can follow the rows of a plan."
            )
        if "prompt" not in self._accepted and len(self.classes) > 1:
            raise ValueError(
                f"{self._name} takes no prompt, so it knows one class; `classes` names "
                f"{len(self.classes)}."
            )
        if isinstance(prompts, str):
            prompts = [prompts.format(name.replace("_", " ")) for name in self.classes]
        if len(prompts) != len(self.classes):
            raise ValueError(f"Got {len(prompts)} `prompts` for {len(self.classes)} classes.")
        self.prompts = tuple(prompts) if "prompt" in self._accepted else ()
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"Two classes have the same prompt: {', '.join(self.prompts)}. Put {{}} where the "
                "class name goes, or give a prompt for each class."
            )

        self.classifier_guidance = classifier_guidance
        if classifier_guidance is not None:
            self._check_guidable(classifier_guidance)

    def _check_guidable(self, guidance: ClassifierGuidance) -> None:
        guidance.numbered(torch.zeros(1, dtype=torch.int64, device="cpu"), self.classes)
        if _CALLBACK not in self._accepted:
            raise ValueError(
                f"{self._name} takes no `{_CALLBACK}`, so no classifier can steer it. Load the "
                "checkpoint by `ClassConditional`, or leave `classifier_guidance` out."
            )
        if _CALLBACK in self.arguments or self.arguments.get("eta"):
            raise ValueError(
                f"`classifier_guidance` needs the pipeline's `{_CALLBACK}` for itself, and steps "
                "without noise (`eta` 0)."
            )

    @property
    def _name(self) -> str:
        return type(self.pipeline).__name__

    def _check_names(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        for name in names:
            if name in _OURS:
                raise TypeError(f"`{name}` follows from the rows of a plan; leave it out.")
            if name not in self._accepted:
                raise TypeError(
                    f"{self._name} takes no `{name}`. It takes: "
                    f"{', '.join(n for n in self._accepted if n not in _OURS)}."
                )

    @torch.inference_mode()
    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the plan is about other classes.
            TypeError: If it has a parameter that the pipeline does not take.
            DataError: If the pipeline's safety checker blackened an image.
        """
        self.check_classes(rows)
        names = [name for name in rows.columns if name not in REQUIRED]
        self._check_names(names)
        columns = [[_whole(value) for value in rows[name].tolist()] for name in names]
        settings = list(zip(*columns, strict=True)) if names else [()] * len(rows)
        drawn: dict[int, Tensor] = {}
        for setting in dict.fromkeys(settings):  # rows with equal ones share a call
            chosen = [i for i, other in enumerate(settings) if other == setting]
            own = dict(zip(names, setting, strict=True))
            drawn.update(zip(chosen, self._call(rows[np.array(chosen)], own), strict=True))
        return torch.stack([drawn[i] for i in range(len(rows))])

    def _call(self, rows: Plan, own: dict[str, float]) -> Images:
        inputs: dict[str, Any] = {"batch_size": len(rows)}
        if self.prompts:
            inputs = {"prompt": [self.prompts[label] for label in rows["label"]]}
        fixed = {  # one prompt of any kind for each image, as pipelines want it
            name: [value] * len(rows) if isinstance(value, str) and "prompt" in name else value
            for name, value in self.arguments.items()
        }
        inputs |= {**fixed, **own, "generator": streams(rows["seed"]), "output_type": "np"}
        if self.classifier_guidance is not None and self.classifier_guidance.scale:
            labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
            inputs[_CALLBACK] = self.classifier_guidance.callback(labels, self.classes)
        with torch_defaults():
            output = self.pipeline(**inputs)
        # Only pipelines with a safety checker have this in their output.
        flagged = np.flatnonzero(getattr(output, "nsfw_content_detected", None) or ())
        if len(flagged):
            raise DataError(
                f"The safety checker of {self._name} blackened {len(flagged)} of {len(rows)} "
                f"images; the first is of row {rows.row(int(flagged[0]))}. Change the prompt, or "
                "leave such rows out of the plan."
            )
        images = torch.from_numpy(np.asarray(output.images, np.float32))
        return images.permute(0, 3, 1, 2) * 2 - 1  # NHWC => NCHW

    def recipe(self) -> dict[str, JSON]:
        """Pipeline, schedulers, prompts and arguments; the digests of all weights."""
        # The user's pipeline may be any callable, and its schedulers of any kind.
        parts: dict[str, Any] = getattr(self.pipeline, "components", {})
        schedulers, weights = {}, {}
        for name, part in parts.items():
            if hasattr(part, "set_timesteps"):
                schedulers[name] = scheduler_settings(part)
            if isinstance(part, nn.Module):
                weights[name] = state_digest(part)
        settings: dict[str, JSON] = {
            "pipeline": self._name,
            "prompts": list(self.prompts),
            "arguments": self.arguments,
            "schedulers": schedulers,
        }
        recipe = {"synthesizer": "FromPipeline", "settings": settings, "weights": weights}
        return with_guidance(recipe, self.classifier_guidance)


def _whole(value: float) -> float:
    """A whole number as `int`: a number of steps must be one."""
    return int(value) if float(value).is_integer() else value


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """What a call takes by name.

    Raises:
        ValueError: If it cannot be called with a generator per image.
    """
    found = dict(inspect.signature(type(pipeline).__call__).parameters)
    found.pop("self", None)
    missing = {"generator", "output_type"} - set(found)
    if missing or not {"prompt", "batch_size"} & set(found):
        raise ValueError(
            f"{type(pipeline).__name__} cannot be called with one generator per image, as a "
            "diffusers pipeline can that makes images from text or from noise."
        )
    return {name: p for name, p in found.items() if p.kind is not p.VAR_KEYWORD}
