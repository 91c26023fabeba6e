"""Which files of a model of the hub are fetched; nothing here reaches a network."""

import pytest

from synthaug._training import checkpoints, hub
from synthaug.errors import CheckpointError

STABLE = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
}
SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
PLAIN = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
HALF = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]
OTHERS = [
    "README.md",
    "image_encoder/model.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/flax_model.msgpack",
    "unet/openvino_model.xml",
    "v1-5-pruned-emaonly.safetensors",
]
CHECKER = ["safety_checker/config.json", "safety_checker/model.safetensors"]


def needed(files, index=STABLE, **choice):
    return hub.needed_files(sorted(files), index, **choice)


@pytest.mark.parametrize(
    ("variant", "there", "weights"),
    [
        (None, [*PLAIN, *HALF], PLAIN),
        ("fp16", [*PLAIN, *HALF], HALF),
        ("fp16", [*PLAIN, HALF[1]], [PLAIN[0], HALF[1], PLAIN[2]]),
        ("bf16", [*PLAIN, *HALF], PLAIN),
        (None, HALF, []),  # the error that follows names the variant
    ],
)
def test_weights_of_one_variant_are_fetched_and_nothing_beside_the_parts(variant, there, weights):
    files = [*SMALL, *there, *OTHERS]
    found = needed(files, variant=variant, parts=hub.OUR_PARTS)
    assert found == sorted([*SMALL, *weights])
    assert needed(files, variant=variant) == sorted([*SMALL, *weights, *CHECKER])


def test_shards_and_their_index_are_fetched():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    indices = [f"unet/diffusion_pytorch_model.safetensors.index{v}.json" for v in ("", ".fp16")]
    index = {"unet": STABLE["unet"]}
    files = [*shards, *half, *indices]
    assert needed(files, index) == sorted([*shards, *indices])
    assert needed(files, index, variant="fp16") == sorted([*half, *indices])


def test_the_network_of_the_oldest_models_lies_beside_the_index():
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    files = ["config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"]
    found = needed(["model_index.json", *files, "samples/0.png", "events.bin"], index)
    assert found == sorted(["model_index.json", *files])


def test_of_our_own_models_all_is_fetched_that_is_safe_to_read():
    ours = ["synthaug.json", "class_embeddings.safetensors", "stage_1/unet/config.json"]
    assert needed([*ours, "training.pt"]) == sorted(ours)


def test_a_model_is_fetched_in_two_steps(monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    files = ["model_index.json", "unet/config.json", "unet/model.bin"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: files)
    assert checkpoints.resolve("hub:some/one") == tmp_path
    assert asked == [
        ("some/one", [*hub.RECORDS]),
        ("some/one", ["model_index.json", "unet/config.json"]),
    ]

    def offline(self, name):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    assert checkpoints.resolve("hub:some/one") == tmp_path
    assert "*.safetensors" in asked[-1][1]


def test_a_model_that_cannot_be_reached_is_one_error(monkeypatch):
    import huggingface_hub

    def offline(name, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="some/one could not be loaded from the hub"):
        checkpoints.resolve("hub:some/one")
