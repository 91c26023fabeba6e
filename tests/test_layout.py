"""A network has one memory layout, so in memory and from disk it draws bit-equal images."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthaug import TrainingConfig
from synthaug._support.layout import settle_layout, settled
from synthaug.degradations import Inpainting
from synthaug.denoisers import Denoiser
from synthaug.evaluation import reconstructions
from synthaug.images import LabeledImages
from synthaug.synthesizers import (
    Cascade,
    CascadeStage,
    ClassConditional,
    ColdDiffusion,
    DiffusionInversion,
    DiffusionModel,
    FineTuningConfig,
    LowDensity,
    StageConfig,
    TokenConfig,
)
from synthaug.synthesizers.inversion._tokens import build_token_unet
from synthaug.synthesizers.low_density._hardness import OnEstimate
from tests.checkpoints import (
    cosine_config,
    sampled,
    tiny_dit,
    tiny_unet,
    write_stable_diffusion,
)
from tests.images import to_pixels
from tests.new_process import images, model
from tests.tiny.cascades import tiny_cascade
from tests.tiny.class_conditional import NAMES, Real

QUICK: dict[str, Any] = {
    "config": TrainingConfig(steps=1, batch_size=4, device="cpu"),
    "progress": False,
}


def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, sample_size=8
    ).eval()


def tokens_network() -> Any:
    torch.manual_seed(0)
    return build_token_unet((1, 8, 8), token_width=6, channels=8, num_layers=1).eval()


def model_of(network: nn.Module, vae: Any = None) -> DiffusionModel:
    takes_tokens = Denoiser(network).kind == "UNet2DConditionModel"
    return DiffusionModel(
        network=network,
        vae=vae,
        scheduler_config=cosine_config(),
        classes=NAMES,
        image_shape=(1, 8, 8),
        class_embeddings=torch.randn(5, 3, 6, generator=torch.manual_seed(1))
        if takes_tokens
        else None,
    )


def strides(*modules: nn.Module) -> list[dict[str, tuple[int, ...]]]:
    return [
        {
            name: tensor.stride()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        for module in modules
    ]


def modules_of(synthesizer: Any) -> list[nn.Module]:
    """All the networks of a synthesizer, those of the synthesizers that it is made of too."""
    found = [synthesizer] if isinstance(synthesizer, nn.Module) else []
    for value in vars(synthesizer).values() if hasattr(synthesizer, "__dataclass_fields__") else ():
        for part in value if isinstance(value, tuple) else (value,):
            found += modules_of(part)
    return found


# One tensor


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 1, 4, 4), (8, 3, 1, 1), (1, 8, 1, 1), (0, 3, 2, 2)]
)
def test_a_tensor_gets_the_strides_of_a_new_one_whatever_it_had(shape):
    new = torch.empty(shape, memory_format=torch.channels_last)
    values = torch.randn(shape)
    # Strides of dimensions of size 1 say nothing about where values lie, and can be anything.
    free = [7 if n == 1 else stride for n, stride in zip(shape, values.stride(), strict=True)]
    for given in (values, new.clone().copy_(values), values.as_strided(shape, free)):
        found = settled(given)
        assert found.stride() == new.stride()
        assert torch.equal(found, values)
        assert settled(found) is found


def test_one_channel_is_laid_out_anew_where_torch_sees_nothing_to_do():
    images = torch.randn(2, 1, 4, 4)
    assert images.contiguous(memory_format=torch.channels_last).stride() == images.stride()
    assert settled(images).stride() != images.stride()


def test_what_has_no_channels_is_row_major():
    for given in (torch.randn(3, 4).T, torch.randn(2).expand(3, 2), torch.tensor(1.0)):
        assert (
            settled(given).stride() == given.clone(memory_format=torch.contiguous_format).stride()
        )


def test_gradients_flow_through_a_change_of_layout():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    settled(images).square().sum().backward()
    torch.testing.assert_close(images.grad, 2 * images.detach())


# One network


def test_parameters_stay_the_same_objects_and_tied_weights_stay_tied():
    module: Any = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3))
    module[1].weight = module[0].weight
    before = list(module.parameters())
    assert settle_layout(module) is module
    assert all(old is new for old, new in zip(before, module.parameters(), strict=True))
    assert module[0].weight.stride() == (9, 1, 3, 1)


@pytest.mark.parametrize("make", [tiny_unet, tokens_network, tiny_dit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_in_memory_and_from_disk_have_equal_strides_and_draw_equal_images(
    make, dtype, tmp_path
):
    network = make().to(memory_format=torch.channels_last)  # as others may have trained it
    in_memory = ClassConditional(model=model_of(network), **sampled(num_inference_steps=2))
    plan = in_memory.plan(per_class=1, guidance_scale=2.0)
    images = in_memory.draw(plan)
    for generation in ("first", "second"):
        in_memory.save_pretrained(tmp_path / generation)
        loaded = ClassConditional.from_pretrained(tmp_path / generation, dtype=dtype, device="cpu")
        assert strides(*modules_of(loaded)) == strides(*modules_of(in_memory))
        drawn = loaded.draw(plan)
        # The first loading in another dtype casts, and what it casts draws other images.
        assert torch.equal(drawn, images) == (dtype == torch.float32 or generation == "second")
        in_memory, images = loaded, drawn


@pytest.mark.parametrize("make", [tiny_unet, tokens_network, tiny_dit, tiny_autoencoder])
def test_every_way_to_a_network_ends_in_one_layout(make, tmp_path):
    network = settle_layout(make())
    network.save_pretrained(tmp_path)
    ways: list[Callable[[], nn.Module]] = [
        make,
        lambda: type(network).from_pretrained(tmp_path),
        lambda: make().to(memory_format=torch.channels_last),
        lambda: make().to(torch.bfloat16).float(),
        lambda: deepcopy(make()),
    ]
    for way in ways:
        assert strides(settle_layout(way())) == strides(network)
    # And it stays, so that it need not be settled again.
    network.load_state_dict(make().state_dict())
    for kept in (network, deepcopy(network), deepcopy(network).to(torch.bfloat16)):
        assert strides(settle_layout(deepcopy(kept))) == strides(kept)


def test_an_autoencoder_is_laid_out_like_a_network(tmp_path, monkeypatch):
    vae = write_stable_diffusion(tmp_path).vae
    row_major = strides(vae)
    loaded = ClassConditional.from_pretrained(tmp_path, classes=["a", "b"], device="cpu")
    assert strides(loaded.model.vae) == strides(settle_layout(vae)) != row_major
    seen: list[Any] = []
    encode = type(vae).encode

    def spy(self: Any, x: Tensor) -> Any:
        seen.append(strides(self))
        return encode(self, x)

    monkeypatch.setattr(type(vae), "encode", spy)
    images = LabeledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1], ["a", "b"])
    reconstructions(images, tmp_path, device="cpu", progress=False)
    assert seen == [strides(vae)]


# One synthesizer of every kind


def class_conditional(path: Path) -> Any:
    return ClassConditional.fit(Real(), path, channels=8, **QUICK)[0]


def fine_tuned(path: Path, rank: int | None = None) -> Any:
    ClassConditional(model=model_of(tiny_dit())).save_pretrained(path / "base")
    adapted = FineTuningConfig(lora_rank=rank)
    return ClassConditional.fine_tune(path / "base", Real(), path, adaptation=adapted, **QUICK)[0]


def with_adapters(path: Path) -> Any:
    return fine_tuned(path, rank=2)


def cascade_stage(path: Path) -> Any:
    return Cascade.fit_stage(Real(), path, StageConfig(low_size=4), channels=8, **QUICK)[0]


def cascade(path: Path) -> Any:
    made = tiny_cascade()
    made.save_pretrained(path)
    return made


def cold_diffusion(path: Path) -> Any:
    degradation = Inpainting(num_levels=5, std_step=0.5)
    return ColdDiffusion.fit(Real(), path, degradation=degradation, channels=8, **QUICK)[0]


def token_generator(path: Path) -> Any:
    tokens = TokenConfig(num_tokens=2)
    return DiffusionInversion.fit_generator(Real(), path, tokens=tokens, channels=8, **QUICK)[0]


def low_density(path: Path) -> Any:
    base = ClassConditional(model=model_of(tiny_unet()), **sampled(num_inference_steps=2))
    settings: dict[str, Any] = {"num_synthetic": 4, "embedding_dim": 2, "noise_levels": 1}
    return LowDensity.fit(Real(), base, path, **settings, **QUICK)[0]


@pytest.mark.parametrize(
    ("fit", "kind", "count"),
    [
        (class_conditional, ClassConditional, 1),
        (fine_tuned, ClassConditional, 1),
        (with_adapters, ClassConditional, 1),
        (cascade_stage, CascadeStage, 2),
        (cascade, Cascade, 3),
        (cold_diffusion, ColdDiffusion, 1),
        (token_generator, DiffusionInversion, 2),
        (low_density, LowDensity, 3),
    ],
)
def test_a_synthesizer_in_memory_and_from_disk_have_equal_strides(fit, kind, count, tmp_path):
    in_memory = fit(tmp_path)
    loaded = kind.from_pretrained(tmp_path, device="cpu")
    assert len(modules_of(loaded)) == count
    assert strides(*modules_of(loaded)) == strides(*modules_of(in_memory))
    for module in modules_of(loaded):
        assert strides(settle_layout(deepcopy(module))) == strides(module)


def test_features_of_the_denoised_estimate_are_laid_out_like_a_network():
    features: Any = nn.Conv2d(1, 4, 3)
    gaussians: Any = None
    OnEstimate(model=model_of(tiny_unet()), features=features, gaussians=gaussians)
    assert features.weight.stride() == (9, 1, 3, 1)


def test_images_reach_the_network_in_one_layout():
    given: list[tuple[int, ...]] = []
    network = tiny_unet()
    network.conv_in.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].stride()))
    denoiser, labels = Denoiser(network), torch.zeros(2, dtype=torch.int64)
    values: Tensor = torch.randn(2, 1, 8, 8)
    for x in (values, values.to(memory_format=torch.channels_last), values.expand(2, 1, 8, 8)):
        denoiser(x, torch.tensor(5), labels)
    assert set(given) == {(64, 1, 8, 1)}


# Another processor


@pytest.mark.xdist_group("new process")
def test_a_processor_without_vector_instructions_draws_the_same_images_within_a_gray_level(
    new_process,
):
    drawn, noise = images(model())
    theirs, their_noise = torch.load(new_process[1] / "images.pt")
    assert (to_pixels(drawn).int() - to_pixels(theirs)).abs().max() <= 1
    torch.testing.assert_close(noise, their_noise, rtol=0, atol=2e-6)
