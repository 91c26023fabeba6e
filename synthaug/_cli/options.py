"""Options that several commands have, as dataclasses: one name, one meaning, one default."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from synthaug._cli.declared import defaults
from synthaug._support.precision import Precision

LOADING = defaults("synthesizers.class_conditional._synthesizer:ClassConditional.from_pretrained")
Tracker: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]
EVALUATION = defaults("evaluation._evaluate:evaluate")
READING = defaults("_images.labeled:load_dataset")
SIGNING = defaults("_cache.credentials:ContentCredentials")
MASKING = defaults("_cache.masks:SourceMasks.__init__")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The generator's network.

    Args:
        classes: Class names or prompts (cat,dog), for a checkpoint that does not name them.
        precision: auto is bfloat16 where the hardware makes it faster, else float32; what was
            begun keeps its own. In bfloat16 images depend slightly on the batch size.
        device: cpu, cuda ...; by default a GPU if there is one.
    """

    classes: str | list[str] | None = None
    precision: Precision = LOADING.dtype
    device: str | None = LOADING.device

    def loading(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        from synthaug._cli.arguments import names

        return {
            "classes": None if self.classes is None else names(self.classes),
            "dtype": self.precision,
            "device": self.device,
        }


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Folders of images.

    Args:
        skip_bad: Leave out files that cannot be used, in place of an error that lists them.
        upright: Turn photos as their EXIF orientation says.
    """

    skip_bad: bool = READING.skip_bad
    upright: bool = READING.upright

    def opened(self, spec: str, **how: Any) -> Any:
        """A data set; further arguments of `load_dataset` are `how`."""
        from synthaug._images.labeled import load_dataset

        return load_dataset(spec, skip_bad=self.skip_bad, upright=self.upright, **how)

    def shaped(
        self, spec: str, image_shape: tuple[int, int, int], classes: Sequence[str] | None = None
    ) -> Any:
        """A data set, brought to the shape (C, H, W) of what it goes with."""
        return self.opened(spec, image_shape=image_shape, classes=classes)


@dataclass(frozen=True, kw_only=True)
class UnlabeledFileOptions(FileOptions):
    """Folders of images, for commands that need no labels."""

    def opened(self, spec: str, **how: Any) -> Any:
        """A data set; images that lie directly in a folder are one class."""
        from synthaug._images.labeled import load_unlabeled

        return load_unlabeled(spec, skip_bad=self.skip_bad, upright=self.upright, **how)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images of data sets. A cache has its own size and channels.

    Args:
        image_size: Resize the shorter side to it and cut out the center.
        channels: 1 converts to gray, 3 to RGB.
    """

    image_size: int | None = None
    channels: Literal[1, 3] | None = None

    def load(self, spec: str, files: FileOptions) -> Any:
        """A data set, brought to this size and these channels."""
        return files.opened(spec, image_size=self.image_size, channels=self.channels)

    def synthetic(self, spec: str, files: FileOptions) -> Any:
        """A cache, which has its own size, or a data set brought to this one."""
        from synthaug._support.reading import is_remote

        if ":" in spec and not is_remote(spec):
            return self.load(spec, files)
        if os.path.isdir(spec):
            raise ValueError(
                f"{spec} is a folder, expected a cache (FILE.h5) or a data set. Did you mean "
                f"folder:{spec}?"
            )
        from synthaug._cache import SynthCache

        cache = SynthCache(spec)
        if self.image_size is not None or self.channels is not None:
            raise ValueError(
                "`image_size` and `channels` are for folders; with a cache, real images are "
                f"brought to its shape, {cache.image_shape}."
            )
        return cache


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions:
    """Networks that extract features.

    Args:
        features_dir: Folder in which the features of networks, and of an audit its comparisons, are
            kept for other calls. Without it they are in OUT.unfinished until the report is written,
            so that the same command continues after a kill.
        trust_torchscript: Run torchscript:FILE, a program that can read and write your files.
        device: Where they run: cpu, cuda ...; by default a GPU if there is one.
    """

    features_dir: str | None = None
    trust_torchscript: bool = False
    device: str | None = None

    def extractor(self, name: str | None, option: str = "--features") -> Any:
        """Returns the extractor that `--features`, or another option, names."""
        if name is None:
            raise ValueError(
                "`features` is missing. Choose pixels, spectrum, torchscript:FILE, "
                "torchvision:NAME or timm:NAME."
            )
        from synthaug._support.devices import choose_device
        from synthaug.features import named

        try:
            return named(name, trusted=self.trust_torchscript, device=choose_device(self.device))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"`{option} {name}`: {error}") from error

    @contextmanager
    def kept(self, out: str) -> Iterator[str]:
        """Where features are kept until the report `out` is written."""
        import shutil
        from pathlib import Path

        from synthaug._support.files import check_folder
        from synthaug._support.stopping import kept_at_stop

        check_folder(Path(out).parent)
        unfinished = f"{out}.unfinished"
        folder = self.features_dir or unfinished
        check_folder(folder)

        def kept() -> str:
            kept = any(Path(folder).glob("*.np[yz]"))
            return f"What was done is kept in {folder}." if kept else ""

        with kept_at_stop(kept):
            yield folder
        shutil.rmtree(unfinished, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class LicenseOptions:
    """Licenses, for the record.

    Args:
        generator_license: License of the generator; that of a checkpoint of the hub may be known.
        source_license: License of the data it was trained on.
    """

    generator_license: str | None = None
    source_license: str | None = None

    def record(self, checkpoint: str = "") -> dict[str, str | None]:
        """The licenses, as a cache keeps them; the generator's of its checkpoint if it is known."""
        from synthaug._cache.licenses import license_of

        generator = self.generator_license or license_of(checkpoint)
        return {"generator": generator, "source": self.source_license}


@dataclass(frozen=True, kw_only=True)
class SigningOptions:
    """Who signs exported images; needs the extra "c2pa".

    Args:
        certificates: PEM file of the signer's certificate, and behind it of those that vouch for
            it.
        private_key: PEM file of its key, without a password.
        key_algorithm: es256, es384 or es512 for elliptic curves, ps256, ps384 or ps512 for RSA, or
            ed25519.
        timestamp_url: Time stamp server, asked over the network for every image.
    """

    certificates: str | None = None
    private_key: str | None = None
    key_algorithm: str = SIGNING.algorithm
    timestamp_url: str | None = SIGNING.timestamp_url

    def credentials(self) -> Any:
        """The `ContentCredentials` to sign with; `None` where no certificate is given."""
        from synthaug._cache.credentials import ContentCredentials

        if self.certificates is None or self.private_key is None:
            if self != SigningOptions():
                raise ValueError("To sign images, give both --certificates and --private-key.")
            return None
        algorithm: Any = self.key_algorithm
        return ContentCredentials(
            self.certificates,
            self.private_key,
            algorithm=algorithm,
            timestamp_url=self.timestamp_url,
        )


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Masks and boxes of the real images that variants were made from.

    Args:
        real: The real images that the plan was made for, for example folder:PATH. Only variants
            whose edges lie where those of their source do are written.
        masks: Folder with a mask for each of them, of the same name and size but without losses:
            MASKS/cat/1.png for PATH/cat/1.jpg. Written beside the images.
        boxes: COCO file with the boxes in them. Written as annotations.json.
        min_edge_agreement: The least agreement of edges, above 0 and at most 1.
    """

    real: str | None = None
    masks: str | None = None
    boxes: str | None = None
    min_edge_agreement: float = MASKING.min_edge_agreement

    def sources(self, cache: Any, files: FileOptions) -> Any:
        """The `SourceMasks` for a cache; `None` where no real images are given."""
        from synthaug._cache.masks import SourceMasks

        if self.real is None:
            if self != MaskOptions() or files != FileOptions():
                raise ValueError(
                    "`real` is missing: the images that masks and boxes belong to, and that "
                    "variants are compared with. For example --real folder:PATH."
                )
            return None
        real = files.shaped(self.real, cache.image_shape)
        least = self.min_edge_agreement
        return SourceMasks(real, self.masks, boxes=self.boxes, min_edge_agreement=least)


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How the cache stores images.

    Args:
        encoding: raw, png, webp (without losses), or jpeg:95 with any quality, which loses some
            detail. By default as the caches that there are; for new images raw up to 128 pixels,
            webp above.
    """

    encoding: str | None = defaults("_generate.run:generate").encoding


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """On a Ray cluster, with --engine ray.

    Args:
        ray_address: Address of a running cluster; by default RAY_ADDRESS, else one that runs on
            this machine, else a new one on this machine.
        actors: Number of actors; by default as many as there is room for.
        num_cpus: Processors of each actor; by default one.
        num_gpus: GPUs of each actor, such as 0.5; by default one if the cluster has GPUs.
    """

    ray_address: str | None = None
    actors: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None

    def engine(self, name: str, load: Callable[[], Any] | None = None) -> Any:
        """The engine of that name; `load` makes the synthesizer in an actor. Options of Ray with
        another engine are a ValueError."""
        from synthaug._cluster import RayEngine

        given = {option: value for option, value in vars(self).items() if value is not None}
        if name == "ray":
            address = given.pop("ray_address", None)
            return RayEngine(address=address, load=load, **given)
        if given:
            raise ValueError(f"`{next(iter(given))}` needs `engine='ray'`.")
        return name
