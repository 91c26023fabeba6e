"""Any diffusers pipeline as a synthesizer: from text, from noise alone, or from real images."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import streams
from synthaug._plan import REQUIRED, Plan, canonical_json
from synthaug._support.precision import Precision
from synthaug._support.torch_state import full_precision, torch_defaults
from synthaug._training.checkpoints import cause_of, loading, scheduler_settings, state_digest
from synthaug._types import JSON, Array, Images, ImageShape, Integers
from synthaug.errors import CheckpointError, DataError, SynthaugError
from synthaug.guidance import ClassifierGuidance
from synthaug.synthesizers._base import AbstractSourcedSynthesizer
from synthaug.synthesizers._diffusion import with_guidance
from synthaug.synthesizers._labels import rows_of_classes
from synthaug.synthesizers._loading import LoadingConfig
from synthaug.synthesizers._parameters import RowParameter, raise_problems
from synthaug.synthesizers._pipeline_files import load_pipeline
from synthaug.synthesizers._pipeline_images import MADE, image_to_image, made_from
from synthaug.synthesizers._promise import check_rows
from synthaug.synthesizers._prompts import (
    Prompts,
    PromptTable,
    check_distinct_prompts,
    check_lengths,
    prompt_table,
)
from synthaug.synthesizers._real import fitting_images
from synthaug.synthesizers._sampler import GUIDANCE_SCALE

_OURS = (
    "batch_size",
    "class_labels",
    "generator",
    "num_images_per_prompt",
    "output_type",
    "prompt",
    "return_dict",
)
"""Arguments that follow from the rows."""
_CALLBACK = "callback_on_step_end"

_VERDICTS = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
"""What safety checkers call their verdicts on the images that they blacken."""

_RANGES = {
    one.name: one
    for one in (
        GUIDANCE_SCALE,
        RowParameter(name="num_inference_steps", help="Denoising steps.", type=int, low=1),
        RowParameter(name="strength", help="Share of the diffusion.", low_included=False, high=1),
    )
}
"""Arguments of calls whose range is the same in all pipelines."""

_FROM_IMAGES = re.compile(
    "Control|Depth2Img|Edit|ImageVariation|Img2Img|Inpaint|Pix2Pix|SuperResolution|Upscale"
)
"""Names of pipelines that need an image, though their signatures do not say so."""


@final
class FromPipeline(AbstractSourcedSynthesizer):
    """Calls a diffusers pipeline: a prompt for each row, and a random stream.

        pipeline = StableDiffusionXLPipeline.from_pretrained(path).to("cuda")
        synthesizer = FromPipeline(pipeline, ["cat", "dog"], prompts="a photo of a {}", height=512)
        plan = synthesizer.plan(per_class=500, guidance_scale=[2.0, 4.0], seed=0)
        variants = synthesizer.with_sources(real).plan(per_class=500, strength=[0.3, 0.6], seed=0)

    For pipelines that we have no loop of our own for. Stable Diffusion, DiT and unconditional
    models are better loaded by `ClassConditional`, which can be fine-tuned.

    Parameters of a plan are arguments of the call, such as `guidance_scale`. A class with several
    prompts uses them in turn: the column `prompt` (or `negative_prompt`) of the plan numbers the
    texts in `recipe()["texts"]`. With real images (`with_sources`) the pipeline's image-to-image
    partner is called, and every row keeps the label of its source.

    The pipeline stays as it is, on its device and in its dtype. The recipe holds the digests of its
    weights, the configs of its schedulers, prompts and arguments. The scale of an adapter is in
    none of these: merge it into the weights (`fuse_lora`).
    """

    def __init__(
        self,
        pipeline: Callable[..., Any],
        classes: Sequence[str],
        *,
        prompts: Prompts = "{}",
        attributes: Mapping[str, Sequence[str]] | None = None,
        negative_prompt: Prompts | None = None,
        image_inputs: Mapping[str, str] | None = None,
        classifier_guidance: ClassifierGuidance | None = None,
        row_by_row: bool = False,
        **arguments: JSON,
    ) -> None:
        """Checks that rows can become calls.

        Args:
            pipeline: A `DiffusionPipeline`, called with a list of generators.
            classes: Names of the classes. A pipeline that takes no prompt has one.
            prompts: A template, in which `{}` stands for the class name (underscores become
                spaces); a list of templates; one prompt per class; a mapping from class names to
                lists; the `Path` of a caption file (.json, .csv or .txt); or a function that is
                given a class name and returns its prompts.
            attributes: Values of other places in the templates: `{"time": ["dawn", "night"]}` fills
                `{time}`. Every combination is a prompt of its own.
            negative_prompt: One for all rows, or several, as `prompts`.
            image_inputs: Arguments of the call that are images, and how each is made from the real
                image that a row starts from: "source" (the image itself), "edges" (its outlines,
                for a ControlNet) or "box" (a mask, white in a random box, for inpainting). By
                default `{"image": "source"}`, and "box" for a mask.
            classifier_guidance: A classifier that steers the pipeline through its step callback;
                see `ClassifierGuidance.callback`.
            row_by_row: Call the pipeline for each row alone: for those whose images depend on the
                others of a call, as where prompts are padded to the longest. Slower.
            arguments: For every call, such as `num_inference_steps`.

        Raises:
            TypeError: For an argument that the pipeline does not take, that follows from the rows,
                or that cannot be written as JSON.
            ValueError: For a pipeline that needs other inputs or has no step callback to guide it
                by, or prompts that do not fit.
            MismatchError: If the classifier does not know a class.
        """
        if isinstance(classes, str) or len(set(classes)) != len(classes) or not classes:
            raise ValueError(f"`classes` must be a list of different names, got {classes!r}.")
        self.pipeline: Any = pipeline
        self.classes = tuple(map(str, classes))
        self.arguments: dict[str, Any] = dict(arguments)
        self.image_inputs, self.row_by_row = dict(image_inputs or {}), row_by_row
        self.real = None
        self._files: str | Path | None = None
        """Where the pipeline was loaded from by us; `None` for one of the user's own."""
        self._text: dict[str, Any] = {
            "prompts": prompts,
            "attributes": attributes,
            "negative_prompt": None,
        }
        if isinstance(negative_prompt, str):
            self.arguments["negative_prompt"] = negative_prompt
        else:
            self._text["negative_prompt"] = negative_prompt
        self._accepted = _parameters(pipeline)
        if unknown := sorted({*self.image_inputs.values()} - {*MADE}):
            raise ValueError(
                f"`image_inputs` must be made by {', '.join(MADE)}, got {unknown[0]!r}."
            )
        self._check_names(self.arguments)
        for name, value in self.arguments.items():
            try:
                canonical_json(value)
            except (TypeError, ValueError):
                raise TypeError(
                    f"`{name}` is {type(value).__name__}, which the recipe of a cache cannot hold. "
                    "Give numbers and text."
                ) from None
        needed = {name for name, p in self._accepted.items() if p.default is p.empty}
        open_ = sorted(needed - {*arguments, *_OURS, "image", *self.image_inputs})
        if open_:
            raise ValueError(
                f"{self._name} needs `{open_[0]}` in every call. Give it as an argument, or, if it "
                f"is an image that is made from real ones, in `image_inputs`: {', '.join(MADE)}."
            )
        self._tables = self._made_tables()
        self.classifier_guidance = classifier_guidance
        if classifier_guidance is not None:
            self._check_guidable(classifier_guidance)
        self._class_rows = self._rows_of_labels()

    def _made_tables(self) -> dict[str, PromptTable]:
        """The texts of the arguments `prompt` and `negative_prompt`, if the pipeline takes any."""
        if "prompt" not in self._accepted:
            if len(self.classes) > 1 and "class_labels" not in self._accepted:
                raise ValueError(
                    f"{self._name} takes no prompt, so it knows one class; `classes` names "
                    f"{len(self.classes)}."
                )
            if self._text != {"prompts": "{}", "attributes": None, "negative_prompt": None}:
                raise TypeError(f"{self._name} takes no prompt. Leave the prompts out.")
            return {}
        attributes, negative = self._text["attributes"], self._text["negative_prompt"]
        tables = {"prompt": prompt_table(self._text["prompts"], self.classes, attributes)}
        check_distinct_prompts(tables["prompt"])
        if negative is not None:
            self._check_names(["negative_prompt"])
            tables["negative_prompt"] = prompt_table(
                negative, self.classes, shared_as="negative_prompt"
            )
        tokenizers = [part for name, part in self._parts.items() if name.startswith("tokenizer")]
        called = {name: p.default for name, p in self._accepted.items()} | self.arguments
        for table in tables.values():
            check_lengths(table.texts, [part for part in tokenizers if part is not None], called)
        return tables

    def _rows_of_labels(self) -> Integers | None:
        """The label of each class in the pipeline's own order; `None` if it knows no labels. Class
        names that do not fit them are a ValueError."""
        if "class_labels" not in self._accepted:
            return None
        network: Any = self._parts.get("unet", self._parts.get("transformer"))
        names = ("num_class_embeds", "num_embeds_ada_norm")
        count = next((n for n in map(network.config.get, names) if n is not None), None)
        if count is None:
            if len(self.classes) > 1:
                raise ValueError(
                    f"{self._name} knows one class, and `classes` names more. Give one name."
                )
            return None
        # A DiT's pipeline keeps a table from names to labels, where the checkpoint has names.
        words: dict[int, list[str]] = {}
        for word, row in (vars(self.pipeline).get("labels") or {}).items():
            words.setdefault(int(row), []).append(word)
        labels = {str(row): ", ".join(found) for row, found in words.items()}
        rows = rows_of_classes(Path(self._name), labels or None, self.classes, int(count))
        return np.array(rows, np.int64)

    @property
    def _parts(self) -> dict[str, Any]:
        # The user's pipeline may be any callable.
        parts: dict[str, Any] = getattr(self.pipeline, "components", {})
        return parts

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, class by class; the column `prompt` of a plan numbers them."""
        return self._tables["prompt"].texts if self._tables else ()

    @property
    def accepted(self) -> frozenset[str]:
        """Names of the arguments that a call of the pipeline takes."""
        return frozenset(self._accepted)

    @property
    def needs_images(self) -> bool:
        """Whether the pipeline cannot be called without images, and has no real ones to make them
        from."""
        return self.real is None and bool({*self.image_inputs} | self._required_images())

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

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name in (*_OURS, *self.image_inputs):
                raise TypeError(f"`{name}` follows from the rows of a plan; leave it out.")
            if name not in self._accepted:
                raise TypeError(
                    f"{self._name} takes no `{name}`. It takes: "
                    f"{', '.join(n for n in self._accepted if n not in _OURS)}."
                )

    @property
    def _kept(self) -> dict[str, Any]:
        """Settings of ours that a changed copy has too."""
        return {
            **self._text,
            "classifier_guidance": self.classifier_guidance,
            "row_by_row": self.row_by_row,
        }

    def with_settings(self, **settings: Any) -> "FromPipeline":
        """The same with other arguments, or other `prompts`, `attributes`, `negative_prompt`."""
        stated = {
            **self._kept,
            "image_inputs": self.image_inputs,
            **self.arguments,
            **settings,
        }
        changed = FromPipeline(self.pipeline, self.classes, **stated)
        changed.real, changed._files = self.real, self._files
        return changed

    # -- plans -----------------------------------------------------------------------------------

    def with_sources(self, real: Any, labels: ArrayLike | None = None) -> "FromPipeline":
        """The same pipeline, starting from real images: by its image-to-image partner if need be.

        Args:
            real: Any map-style data set of images, or a cache.
            labels: Class indices of the real images, int (n,), in the order of our `classes`.

        Raises:
            TypeError: If diffusers has no partner that takes images, or an argument is not the
                partner's.
            MismatchError: For images of other or differently ordered classes.
            ValueError: For labels beyond the classes, or not one for every image.
        """
        masked = "mask_image" in self._required_images()
        images = self.image_inputs or {
            "image": "source",
            **({"mask_image": "box"} if masked else {}),
        }
        pipeline = self.pipeline
        if {*images} - {*self._accepted}:
            pipeline = image_to_image(pipeline, images)
        elif not self.image_inputs and "Control" in self._name:
            raise TypeError(
                f"The images of {self._name} control what is drawn. Say how they are made, for "
                "example `image_inputs={'image': 'edges'}`."
            )
        opened = ImageSource.open(real, "`real`")
        source = fitting_images(
            opened, labels, classes=self.classes, image_shape=opened.image_shape
        )
        sized = {"height": source.image_shape[1], "width": source.image_shape[2]}
        taken = _parameters(pipeline)
        arguments = {**{name: sized[name] for name in sized if name in taken}, **self.arguments}
        if lacking := sorted({*images} - {*taken}):
            raise TypeError(
                f"{type(pipeline).__name__} takes no `{lacking[0]}`, which `image_inputs` makes "
                "from real images. Leave it out."
            )
        # Pipelines that take no size follow the image.
        left_out = {
            name for name in sized if name not in taken and self.arguments.get(name) == sized[name]
        }
        arguments = {name: arguments[name] for name in arguments if name not in left_out}
        made = FromPipeline(
            pipeline, self.classes, **{**self._kept, "image_inputs": images, **arguments}
        )
        if open_ := sorted(made._required_images() - {*images, *arguments}):
            raise ValueError(
                f"{made._name} needs `{open_[0]}` in every call. Say in `image_inputs` how it is "
                f"made from a real image: by {', '.join(MADE)}."
            )
        made.real, made._files = source, self._files
        return made

    def _checked_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the rows' calls, and which of several prompts each has."""
        self._check_open()
        self._check_names(given)
        columns = dict(given)
        if self.real is not None and "strength" in {*self._accepted} - {*self.arguments}:
            columns.setdefault("strength", self._accepted["strength"].default)
        checked = (_RANGES[name].problem(columns[name]) for name in columns if name in _RANGES)
        raise_problems(problem for problem in checked if problem)
        if self.real is not None:
            self._check_steps(columns)
        for name, table in self._tables.items():
            if table.in_turn is not None:
                columns[name] = table.in_turn
        return columns

    def _check_steps(self, columns: Mapping[str, Any]) -> None:
        """Refuses a share of the steps that is less than one: diffusers would go on without any."""
        names = ("strength", "num_inference_steps")
        defaults = {name: self._accepted[name].default for name in names if name in self._accepted}
        stated = {**defaults, **self.arguments, **columns}
        if not {*names} <= {*defaults} or stated["num_inference_steps"] is None:
            return
        strength, steps = (float(np.min(stated[name])) for name in names)
        if int(strength * steps) < 1:
            raise ValueError(
                f"`strength` {strength:g} of {steps:g} `num_inference_steps` is less than one "
                "step. Raise one of them."
            )

    def _check_open(self) -> None:
        if self.needs_images:
            needed = sorted({*self.image_inputs} | self._required_images())
            raise ValueError(
                f"{self._name} needs `{needed[0]}` in every call: it starts from real images. Give "
                "them with `with_sources` (`--source` on the command line)."
            )

    def _required_images(self) -> set[str]:
        """The image arguments without which the pipeline cannot be called."""
        required = {name for name, p in self._accepted.items() if p.default is p.empty}
        if _FROM_IMAGES.search(self._name):
            required |= {"image", "mask_image"} & self.accepted
        return required - {*_OURS, *self.arguments}

    @cached_property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images, as one drawn in two steps has it.

        Raises:
            ValueError: If the pipeline needs images and has none.
        """
        self._check_open()
        # Two steps: some pipelines treat a single one as a distilled model's.
        own = {"num_inference_steps": 2, "strength": 1.0}
        own = {name: value for name, value in own.items() if name in self._accepted}
        if {"timesteps", "sigmas"} & {*self.arguments}:
            own.pop("num_inference_steps", None)
        columns: dict[str, Array] = {name: np.zeros(1, np.int64) for name in REQUIRED}
        columns["source"] -= 1
        if self.real is not None:
            columns["label"] = self.real.labels[:1]
            columns["source"] = np.zeros(1, np.int64)
            columns["source_key"] = self.real.keys()[:1]
        for name, table in self._tables.items():
            columns[name] = np.array(table.starts)[columns["label"]]
        rows = Plan(columns=columns, classes=self.classes, settings={})
        _, channels, height, width = self._call(rows, own).shape
        return channels, height, width

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations per row, as pipelines usually count: twice with guidance."""

        def values(name: str, otherwise: float) -> Array:
            default = self._accepted[name].default if name in self._accepted else otherwise
            stated = self.arguments.get(name, default)
            usual = stated if isinstance(stated, int | float) else otherwise
            return rows.get(name, float(usual))

        steps = np.trunc(values("num_inference_steps", 1) * values("strength", 1))  # as diffusers
        guided = values("guidance_scale", 1) > 1
        return (np.maximum(steps, 1) * (1 + guided)).astype(np.int64)

    # -- images ----------------------------------------------------------------------------------

    @full_precision()
    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the plan is about other classes, or starts from real images and we do
                not, or the reverse.
            TypeError: If it has a parameter that the pipeline does not take.
            DataError: If the pipeline's safety checker blackened an image.
            CheckpointError: If a pipeline that was loaded from files fails.
            MismatchError: If a source image is not the one that the plan was made with.
        """
        self.check_classes(rows)
        if ((rows["source"] >= 0) != (self.real is not None)).any():
            raise ValueError(
                "Rows start from real images if and only if the synthesizer has some "
                "(`with_sources`). Make the plan with the synthesizer that draws it."
            )
        names = [name for name in rows.columns if name not in (*REQUIRED, *self._tables)]
        self._check_names(names)
        columns = [[_whole(value) for value in rows[name].tolist()] for name in names]
        settings = list(zip(*columns, strict=True)) if names else [()] * len(rows)
        drawn: dict[int, Tensor] = {}
        for setting in dict.fromkeys(settings):  # rows with equal ones share a call
            chosen = [i for i, other in enumerate(settings) if other == setting]
            own = dict(zip(names, setting, strict=True))
            drawn.update(zip(chosen, self._call(rows[np.array(chosen)], own), strict=True))
        return torch.stack([drawn[i] for i in range(len(rows))])

    @torch.inference_mode()
    def _call(self, rows: Plan, own: Mapping[str, float]) -> Images:
        """The images of rows whose call has the arguments `own` in common."""
        if self.row_by_row and len(rows) > 1:
            return torch.cat([self._call(row, own) for row in rows.batches(1)])
        inputs: dict[str, Any] = {
            name: [value] * len(rows) if isinstance(value, str) and "prompt" in name else value
            for name, value in self.arguments.items()  # one prompt of any kind for each image
        }
        if not self._tables and "batch_size" in self._accepted:
            inputs["batch_size"] = len(rows)
        if self._class_rows is not None:
            inputs["class_labels"] = self._class_rows[rows["label"]].tolist()
        for name, table in self._tables.items():
            numbers = table.numbers(rows["label"], rows.columns.get(name))
            inputs[name] = [table.texts[number] for number in numbers.tolist()]
        if self.real is not None:
            inputs |= made_from(self._source_pixels(rows), rows["seed"], self.image_inputs)
        inputs |= {**own, "generator": streams(rows["seed"]), "output_type": "np"}
        if self.classifier_guidance is not None and self.classifier_guidance.scale:
            labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
            inputs[_CALLBACK] = self.classifier_guidance.callback(labels, self.classes)
        with torch_defaults(), self._blaming_the_files(inputs):
            output = self.pipeline(**inputs)
        # Only pipelines with a safety checker have these in their output.
        verdicts = (getattr(output, name, None) or [False] for name in _VERDICTS)
        flagged = np.flatnonzero(np.any(np.broadcast_arrays(*verdicts), axis=0))
        if len(flagged):
            raise DataError(
                f"The safety checker of {self._name} blackened {len(flagged)} of {len(rows)} "
                f"images; the first is of row {rows.row(int(flagged[0]))}. Change the prompt, or "
                "leave such rows out of the plan."
            )
        images = torch.from_numpy(np.asarray(output.images, np.float32))
        return images.permute(0, 3, 1, 2) * 2 - 1  # NHWC => NCHW

    @contextmanager
    def _blaming_the_files(self, inputs: Iterable[str]) -> Iterator[None]:
        """Names the checkpoint in an error of its pipeline that does not name an input.

        A config may hold values that only a call meets.
        """
        try:
            yield
        except Exception as error:
            named = isinstance(error, TypeError | ValueError) and any(
                name in str(error) for name in inputs
            )
            if self._files is None or named or isinstance(error, SynthaugError):
                raise
            raise CheckpointError(
                f"{self._name} of {self._files} cannot draw ({cause_of(error)}). Copy the "
                "checkpoint again, or correct the arguments of its calls."
            ) from error

    def check_rows(self, plan: Plan) -> None:
        """See `AbstractSynthesizer.check_rows`: draws one row twice alone, and once beside another.

        In half precision images differ more in other company, from rounding.
        """
        texts = [""] * len(plan)
        if "prompt" in self._tables:
            table = self._tables["prompt"]
            numbers = table.numbers(plan["label"], plan.columns.get("prompt"))
            texts = [table.texts[number] for number in numbers.tolist()]
        whole = all(
            weight.dtype == torch.float32
            for part in self._parts.values()
            if isinstance(part, nn.Module)
            for weight in part.parameters()
        )
        check_rows(self.draw, plan, texts, name=self._name, tolerance=4 if whole else 32)

    # -- identity and files ----------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Pipeline, schedulers, prompts and arguments; the digests of all weights.

        `texts` holds the prompts that columns of the plan number.
        """
        schedulers, weights = {}, {}
        for name, part in self._parts.items():
            # Schedulers may be of any kind.
            if hasattr(part, "set_timesteps"):
                schedulers[name] = scheduler_settings(part)
            if isinstance(part, nn.Module):
                weights[name] = state_digest(part)
        records = {name: table.record for name, table in self._tables.items()}
        settings: dict[str, JSON] = {
            "pipeline": self._name,
            "prompts": records.pop("prompt", []),
            **records,
            "arguments": self.arguments,
            "schedulers": schedulers,
        }
        if self.real is not None:
            settings["image_inputs"] = self.image_inputs
        if self.row_by_row:
            settings["row_by_row"] = True
        recipe: dict[str, JSON] = {
            "synthesizer": "FromPipeline",
            "settings": settings,
            "weights": weights,
        }
        numbered = {n: list(t.texts) for n, t in self._tables.items() if t.in_turn is not None}
        if numbered:
            recipe["texts"] = numbered
        return with_guidance(recipe, self.classifier_guidance)

    @classmethod
    @loading
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        classes: Sequence[str] | None = None,
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        files: LoadingConfig | None = None,
        **settings: Any,
    ) -> "FromPipeline":
        """Loads any diffusers directory, or a model of the hub; nothing in it is executed.

        Args:
            path: A directory with `model_index.json`, or "hub:OWNER/NAME".
            classes: Names of the classes.
            dtype: Dtype of all networks: "auto" is bfloat16 where the hardware makes it faster,
                and else float32.
            device: Where to run; a GPU if there is one by default.
            files: The files to load, and where the networks wait.
            settings: Arguments of `FromPipeline`: prompts, images, and those of every call.

        Raises:
            CheckpointError: If there is no such directory, a part is missing, or its files name
                code to run or are not safetensors.
            ValueError: If no classes are named, or arguments do not fit.
        """
        if classes is None:
            raise ValueError(
                f"{path} does not name its classes. Pass `classes`: they become prompts."
            )
        files = files or LoadingConfig()
        made = cls(load_pipeline(path, files, dtype=dtype, device=device), classes, **settings)
        made._files = path
        return made


def _whole(value: float) -> float:
    """A whole number as `int`: a number of steps must be one."""
    return int(value) if float(value).is_integer() else value


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """Returns the named parameters of a call, or a ValueError if it takes no generator per
    image."""
    found = dict(inspect.signature(type(pipeline).__call__).parameters)
    found.pop("self", None)
    missing = {"generator", "output_type"} - set(found)
    if missing or not {"prompt", "batch_size", "class_labels", "image"} & set(found):
        raise ValueError(
            f"{type(pipeline).__name__} cannot be called with one generator per image, as a "
            "diffusers pipeline can that makes images from text, from noise or from images."
        )
    return {name: p for name, p in found.items() if p.kind is not p.VAR_KEYWORD}
