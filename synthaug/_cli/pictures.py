"""Pictures of what a generator does, for people to look at first."""

from pathlib import Path
from typing import Any

from synthaug._support.files import write_picture


def samples(model: Any, seed: int, path: Path, **row: Any) -> None:
    """Eight images of each of the first ten classes, with row parameters if they are not ours."""
    from synthaug._pixels import grid

    counts = dict.fromkeys(model.classes[:10], 8)
    row = row or {"guidance_scale": 1.5 if model.can_be_guided else 1.0}
    pixels = _drawn(model, model.plan(counts=counts, seed=seed, **row))
    zoom = max(1, 32 // pixels.shape[-1])
    write_picture(path, grid(pixels, columns=8, scale=zoom))


def _drawn(model: Any, plan: Any) -> Any:
    """The images of a plan, uint8 (n, C, H, W), with a bar, since they may take minutes."""
    import torch

    from synthaug._pixels import to_pixels
    from synthaug._support.progress import bar

    parts = []
    with bar(len(plan), "draw samples", "image", delay=2) as shown:
        for start in range(0, len(plan), 16):
            parts.append(to_pixels(model.draw(plan[start : start + 16])).cpu())
            shown.update(len(parts[-1]))
    return torch.cat(parts)


def enlarged(stage: Any, real: Any, path: Path, images: int = 8) -> None:
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
        torch.zeros(len(chosen), dtype=torch.int64, device="cpu"),
        torch.tensor(np.asarray(real.targets)[chosen], dtype=torch.int64, device="cpu"),
        torch.ones(len(chosen), dtype=torch.float32, device="cpu"),
        streams(chosen.tolist()),
    )
    blocks = F.interpolate(to_pixels(low).float(), pixels.shape[2:], mode="nearest-exact")
    sheet = torch.cat([pixels, blocks.to(torch.uint8), to_pixels(drawn).cpu()])
    write_picture(path, grid(sheet, columns=len(chosen), scale=max(1, 32 // pixels.shape[-1])))


def restored(cold: Any, real: Any, path: Path, images: int = 8) -> None:
    """A row of real images, one of what the last level leaves, one of what is restored."""
    import numpy as np
    import torch

    from synthaug._noise import streams
    from synthaug._pixels import grid, to_images, to_pixels

    chosen = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    pixels = real.read(chosen)
    drawn = cold.degradation.realize(streams(chosen.tolist()), cold.image_shape)
    realization = {name: value.to(cold.device) for name, value in drawn.items()}
    T = cold.degradation.num_levels
    x_T = cold.degradation(to_images(pixels.to(cold.device)), T, realization)
    restored = cold.restore(x_T, T, realization).x0
    sheet = torch.cat([pixels, to_pixels(x_T).cpu(), to_pixels(restored).cpu()])
    write_picture(path, grid(sheet, columns=len(chosen), scale=max(1, 32 // pixels.shape[-1])))


def variants(inverted: Any, real: Any, path: Path, images: int = 8, columns: int = 7) -> None:
    """A row per image: the real one, then variants of it."""
    import numpy as np
    import torch

    from synthaug._pixels import grid

    plan = inverted.plan(ratio=columns, interpolation=0)
    shown = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    rows = np.concatenate([np.flatnonzero(plan["source"] == i)[:columns] for i in shown])
    drawn = _drawn(inverted, plan[rows]).unflatten(0, (len(shown), -1))
    sheet = torch.cat([real.read(shown)[:, None], drawn], 1).flatten(0, 1)
    write_picture(
        path, grid(sheet, columns=drawn.shape[1] + 1, scale=max(1, 32 // real.image_shape[-1]))
    )
