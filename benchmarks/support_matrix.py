"""Shows what can be done with every generator that people use, by tiny checkpoints.

    python benchmarks/support_matrix.py && python benchmarks/results_page.py

Tries each of `tests/tiny_checkpoints.py`, which have random weights and a few thousand parameters:
loading and drawing by our own loop or by the checkpoint's pipeline, variants of real images,
fine-tuning, inversion, drawing while training goes on, and the command line. Writes
`support_matrix.json`, with the reason of every refusal, from which docs/generators.md has its
table. Families that the file holds already are not tried again.

An answer is the name of what did it, or a refusal: an error of ours. Any other error ends the run.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _machine
import numpy as np
import torch

import synthaug
from synthaug.errors import SynthaugError
from synthaug.images import LabeledImages
from synthaug.synthesizers import FineTuningConfig, FromPipeline, InversionConfig
from synthaug.synthesizers._kinds import kind_of

WAYS = {
    "loaded": "load",
    "draw": "draw",
    "variants": "variants of real images",
    "tune": "fine-tune",
    "invert": "invert",
    "live": "on the fly",
    "command": "command line",
}
WITHOUT_CLASSES = ("ddpm", "ddpm_at_the_root", "latent_diffusion", "superresolution")
NAMES: dict[str, list[str]] = {
    "dit": ["tench", "goldfinch"],
    "consistency": ["a", "b", "c", "d"],
    **{family: ["a"] for family in WITHOUT_CLASSES},
}
"""Classes of the families that do not know any two letters."""
REFUSALS = (SynthaugError, TypeError, ValueError)
OURS = {"ClassConditional": "our loop", "FromPipeline": "pipeline"}


def real_images(classes: list[str], size: int = 8) -> LabeledImages:
    """Makes two images of noise for each class."""
    labels = np.repeat(np.arange(len(classes)), 2)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, size, size), np.uint8)
    return LabeledImages(torch.from_numpy(pixels), labels, tuple(classes))


class Trial:
    """One family: its checkpoint, and all that is tried with it."""

    def __init__(self, family: str, checkpoint: Any, folder: Path) -> None:
        self.path, self.arguments, self.folder = checkpoint.path, dict(checkpoint.arguments), folder
        self.classes = NAMES.get(family, ["a", "b"])
        self.size = self.arguments.get("height")
        self.real = real_images(self.classes, self.size or 8)

    def load(self) -> Any:
        """By our own loop where there is one, else by the pipeline."""
        steps = {"num_inference_steps": 2}
        try:
            return synthaug.ClassConditional.from_pretrained(
                self.path,
                classes=self.classes,
                image_size=self.size,
                device="cpu",
                sampler=steps,
            )
        except REFUSALS as refusal:
            try:
                return FromPipeline.from_pretrained(
                    self.path, classes=self.classes, device="cpu", **self.arguments
                )
            except REFUSALS as error:
                raise error from refusal

    def loaded(self) -> str:
        """Loads it."""
        return name_of(self.load())

    def draw(self) -> str:
        """An image of each class."""
        synthesizer = self.load()
        return self._drawn(synthesizer, synthesizer.plan(per_class=1, seed=0))

    def variants(self) -> str:
        """A variant of each real image, half-way."""
        synthesizer = self.load().with_sources(self.real)
        return self._drawn(synthesizer, synthesizer.plan(ratio=1, strength=0.5, seed=0))

    def tune(self) -> str:
        """One step, of adapters where prompts are attended to, and an image by what came of it."""
        config = synthaug.TrainingConfig(steps=1, batch_size=2, warmup_steps=0, device="cpu")
        rank = None if self.size is None else 2
        tuned, _ = synthaug.ClassConditional.fine_tune(
            self.path,
            self.real,
            self.folder / "tuned",
            adaptation=FineTuningConfig(lora_rank=rank, image_size=self.size),
            config=config,
            progress=False,
        )
        tuned = tuned.with_settings(num_inference_steps=2)
        return self._drawn(tuned, tuned.plan(per_class=1, seed=0))

    def invert(self) -> str:
        """One update for each image, and a variant of each."""
        loaded = synthaug.DiffusionInversion.from_pretrained(
            self.path, classes=self.classes, image_size=self.size, device="cpu"
        )
        config = InversionConfig(updates=1, batch_size=2)
        learned, _ = loaded.fit(self.real, self.folder / "learned", config=config, progress=False)
        learned = learned.with_settings(num_inference_steps=2)
        return self._drawn(learned, learned.plan(ratio=1, seed=0))

    def live(self) -> str:
        """Images drawn in the background."""
        synthesizer = self.load()
        plan = synthesizer.plan(per_class=1, seed=0)
        with contextlib.closing(synthaug.OnTheFlyDataset(synthesizer, plan)) as live:
            assert live.read([0]).dtype == torch.uint8
        return name_of(synthesizer)

    def command(self) -> str:
        """`synthaug generate`, as a user would type it."""
        from synthaug._cli import main

        arguments = {k: v for k, v in self.arguments.items() if k != "num_inference_steps"}
        line = ["generate", str(self.path), str(self.folder / "c.h5"), "--per-class", "1"]
        line += ["--classes", ",".join(self.classes), "--num-inference-steps", "2", "--quiet"]
        if arguments and kind_of(self.path) == "FromPipeline":
            line += ["--arguments", json.dumps(arguments)]
        printed, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            try:
                main([*line, "--device", "cpu"])
            except SystemExit as end:
                if end.code:
                    said = errors.getvalue().rpartition("synthaug: error: ")[2]
                    raise ValueError(said.splitlines()[0]) from None
        return "our loop" if "Drawn by ClassConditional" in printed.getvalue() else "pipeline"

    def _drawn(self, synthesizer: Any, plan: Any) -> str:
        images = synthesizer.draw(plan)
        assert torch.isfinite(images).all()
        return name_of(synthesizer)


def name_of(synthesizer: Any) -> str:
    """Names the drawing part: our own loop, or the pipeline."""
    return OURS.get(type(synthesizer).__name__, "our loop")


def answer(attempt: Callable[[], str], path: Path) -> dict[str, str]:
    """Tells the means that worked, or the reason of a refusal, without `path`."""
    try:
        return {"by": attempt()}
    except REFUSALS as error:
        reason = str(error).splitlines()[0].replace(str(path), path.name)
        return {"refused": f"{type(error).__name__}: {reason}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=_machine.RESULTS)
    parser.add_argument("--families", nargs="*", help="some of them")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny_checkpoints import FAMILIES, TinyCheckpoints

    _machine.RESULTS = given.out
    path = given.out / "support_matrix.json"
    tried = json.loads(path.read_text())["families"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = TinyCheckpoints(Path(folder) / "checkpoints")
        for family in given.families or FAMILIES:
            if family in tried:
                continue
            place = Path(folder) / family
            place.mkdir()
            trial = Trial(family, checkpoints(family), place)
            tried[family] = {
                name: answer(getattr(trial, way), trial.path) for way, name in WAYS.items()
            }
            ordered = {name: tried[name] for name in FAMILIES if name in tried}
            _machine.write("support_matrix", {"families": ordered})
            print(family, tried[family], flush=True)


if __name__ == "__main__":
    main()
