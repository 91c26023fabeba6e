"""What only a new process can show, all of it in one: to import torch and diffusers takes seconds.

The process has other seeds for hashes than ours, and no vector instructions. It imports the package
before all else, and ends while a thread of ours is at work.
"""

import json
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "PYTHONHASHSEED": "12345",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def imported() -> dict[str, Any]:
    """What is loaded by `import synthaug`, by asking for each public name, and by the commands."""

    def loaded() -> list[str]:
        return sorted({name.partition(".")[0] for name in sys.modules})

    before = set(sys.modules)
    import synthaug

    root = sorted(set(sys.modules) - before)
    dir(synthaug)
    names = {}
    for name in synthaug.__all__:
        if name != "albumentations":  # whose classes are albumentations' own
            getattr(synthaug, name)
            names[name] = loaded()
    import synthaug._cli

    return {"root": root, "names": names, "cli": loaded()}


def planned() -> dict[str, Any]:
    """The seeds and the digest of a plan."""
    from synthaug import Plan

    rows = Plan.build(
        (3, 0, 2),
        classes=("cat", "dog", "emu"),
        settings={"scheduler": "DDIM", "eta": 0.5, "size": [8, 8], "guidance": {"scale": 2.0}},
        seed=0,
        parameters={"strength": [0.25, 0.5]},
    )
    return {"seeds": rows["seed"].tolist(), "digest": rows.digest}


def model() -> Any:
    """A tiny network that draws."""
    from tests.tiny.class_conditional import tiny

    return tiny(num_inference_steps=3)


def identity(synthesizer: Any) -> dict[str, Any]:
    """Recipe, digest of a plan and one of its rows, as JSON."""
    plan = synthesizer.plan(per_class=2, guidance_scale=[1.0, 2.0])
    made = {"recipe": synthesizer.recipe(), "digest": plan.digest, "row": plan.row(3)}
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def images(synthesizer: Any) -> Any:
    """What it draws, and noise, both float (n, 1, 8, 8)."""
    from synthaug.synthesizers import streams
    from tests.images import randn

    drawn = synthesizer.draw(synthesizer.plan(per_class=4, guidance_scale=2.0))
    return drawn, randn(streams(range(8)), (1, 8, 8))


def thread_at_work() -> bool:
    """Leaves a thread that draws; whether it still does."""
    import torch

    from synthaug import OnTheFlyDataset
    from synthaug.synthesizers import Constant

    constant = Constant(torch.zeros((1, 3, 4, 4), dtype=torch.uint8), [0])
    live = OnTheFlyDataset(constant, constant.plan(per_class=500), batch_size=1)
    live.read([0])
    globals()["live"] = live  # until the end
    return live.num_drawn < 500


def main(folder: Path) -> None:
    found = {"imported": imported(), "plan": planned()}
    import torch

    from synthaug.synthesizers import ClassConditional

    loaded = ClassConditional.from_pretrained(folder / "model", device="cpu")
    found["drawn"] = identity(loaded)
    (folder / "found.json").write_text(json.dumps(found))
    torch.save(images(loaded), folder / "images.pt")
    print(thread_at_work())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
