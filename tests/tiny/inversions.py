"""A network of embeddings, and what a short inversion makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug.synthesizers import DiffusionInversion, DiffusionModel, InversionConfig
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable
from synthaug.synthesizers.inversion._tokens import build_token_unet
from tests.checkpoints import cosine_config, sampled

NAMES = ("ant", "bee")
SHAPE = (3, 8, 8)
K, D = 3, 6


class Real:
    """Random images of 8x8 pixels, in turn of two classes."""

    classes = NAMES
    image_shape = SHAPE

    def __init__(self, n: int = 5, rows: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
        rows = np.arange(n) if rows is None else np.asarray(rows)
        self.pixels, self.targets = pixels[rows], (rows % 2).tolist()
        self.fingerprint = f"{n} {rows.tolist()}"

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.as_tensor(np.asarray(indices))]


def tiny_network() -> Any:
    torch.manual_seed(0)
    network = build_token_unet(SHAPE, token_width=D, channels=8, num_layers=1)
    with torch.no_grad():  # a fresh network barely listens to its tokens
        for name, weight in network.named_parameters():
            if "attn2" in name or "conv_out" in name:
                weight.mul_(8)
    return network.eval().requires_grad_(False)


def generator(network: Any = None, **settings: Any) -> DiffusionInversion:
    """A generator that nobody inverted yet."""
    model = DiffusionModel(
        network=tiny_network() if network is None else network,
        scheduler_config={**cosine_config(), "skip_prk_steps": True},  # as Stable Diffusion's
        classes=(),
        image_shape=SHAPE,
        class_embeddings=torch.zeros(1, K, D),
    )
    return DiffusionInversion(model=model, **sampled(**{"num_inference_steps": 3, **settings}))


def table_of(embeddings: Tensor, labels: Any = None, **snapshots: Tensor) -> EmbeddingTable:
    n = len(embeddings)
    return EmbeddingTable(
        classes=NAMES,
        labels=np.arange(n) % 2 if labels is None else np.asarray(labels),
        keys=np.arange(n, dtype=np.uint64) + np.uint64(2**63),
        snapshots={10: embeddings, **{int(k[1:]): v for k, v in snapshots.items()}},
    )


def learned(n: int = 6, network: Any = None, **settings: Any) -> DiffusionInversion:
    """A synthesizer with random embeddings, at two snapshots."""
    first, second = torch.randn(2, n, K, D, generator=torch.Generator().manual_seed(1))
    return replace(generator(network, **settings), table=table_of(first, _20=second))


def config(**changes: Any) -> InversionConfig:
    usual = {"updates": 4, "num_tokens": K, "batch_size": 2, "learning_rate": 0.1}
    return InversionConfig(**{**usual, **changes})


def fitted(tmp_path: Path, real: Any, **changes: Any) -> EmbeddingTable:
    synthesizer, _ = generator().fit(real, tmp_path, config=config(**changes), progress=False)
    assert synthesizer.table is not None
    return synthesizer.table
