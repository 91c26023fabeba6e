import pytest
import torch
from torch.utils.data import Subset

import synthaug
from synthaug.images import LabeledImages
from tests.checkpoints import write_stable_diffusion
from tests.images import to_images, to_pixels


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    path = tmp_path_factory.mktemp("reconstructions") / "sd"
    return path, write_stable_diffusion(path).vae


def images(n=5, channels=3, size=8):
    pixels = torch.randint(256, (n, channels, size, size), generator=torch.manual_seed(0))
    return LabeledImages(pixels.to(torch.uint8), [i % 2 for i in range(n)], ["cat", "dog"])


def decoded(real, path, **settings):
    return synthaug.evaluation.reconstructions(real, path, device="cpu", progress=False, **settings)


def test_an_image_is_the_decoded_mean_of_its_posterior(stable_diffusion):
    path, vae = stable_diffusion
    real = images()
    with torch.inference_mode():
        mean = vae.encode(to_images(real.read(range(5)))).latent_dist.mode()
        expected = to_pixels(vae.decode(mean).sample)
    made = decoded(real, path, batch_size=2)
    assert (made.read(range(5)).int() - expected.int()).abs().max() <= 1
    assert made.targets == real.targets
    assert made.classes == real.classes


def test_the_autoencoder_alone_gives_the_same_images_as_the_whole_checkpoint(stable_diffusion):
    path, _ = stable_diffusion
    real = images()
    whole, alone = decoded(real, path), decoded(real, path / "vae")
    assert torch.equal(whole.read(range(5)), alone.read(range(5)))


def test_a_subset_gives_its_own_images(stable_diffusion):
    path, _ = stable_diffusion
    real = images()
    part, whole = decoded(Subset(real, [3, 1]), path), decoded(real, path)
    assert part.targets == [1, 1]
    # Two images go through the network together, and not five: other kernels may round otherwise.
    assert (part.read([1]).int() - whole.read([1])).abs().max() <= 1


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 8), "channels"), ((3, 7), "multiple of 2")], ids=["gray", "odd"]
)
def test_images_that_do_not_fit_are_refused(stable_diffusion, shape, message):
    path, _ = stable_diffusion
    with pytest.raises(synthaug.errors.MismatchError, match=message):
        decoded(images(2, *shape), path)


def test_a_model_of_pixels_has_no_ceiling(tmp_path):
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(synthaug.errors.CheckpointError, match="nothing is lost"):
        decoded(images(), tmp_path)
    with pytest.raises(ValueError, match="`batch_size`"):
        decoded(images(), tmp_path, batch_size=0)
