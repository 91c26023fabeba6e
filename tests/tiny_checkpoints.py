"""The generators that people use, tiny and with random weights, in their real diffusers layout.

`FAMILIES` names them; the fixture `tiny_checkpoint` writes each once per session, when a test asks
for it. Nothing is downloaded: tokenizers know single letters.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import (
    saved,
    stable_diffusion_scheduler,
    tiny_autoencoder,
    tiny_clip,
    tiny_dit,
    tiny_text_unet,
    tiny_unet,
    write_stable_diffusion,
    write_stable_diffusion_upscaler,
    write_tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPE = (3, 8, 8)
"""Of the images of nearly all families."""
DIT_LABELS = {i: f"thing {i}" for i in range(1000)} | {
    0: "tench, Tinca tinca",
    11: "goldfinch, Carduelis carduelis",
    12: "house finch, linnet, Carpodacus mexicanus",
}
"""A thousand, since the pipeline's null class has the number 1,000."""


@dataclass(frozen=True, kw_only=True)
class TinyCheckpoint:
    """A directory, and the diffusers pipeline that wrote it."""

    path: Path
    pipeline: Any
    arguments: Mapping[str, Any]
    """What every call of the pipeline needs to make small images in few steps."""


# -- parts -----------------------------------------------------------------------------------------


def clip_tokenizer(path: Path) -> Any:
    """One for `tiny_clip`, eight tokens long."""
    from transformers import CLIPTokenizer

    write_tokenizer(path)
    return CLIPTokenizer.from_pretrained(path)


def t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -2.5) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=16)


def word_tokenizer() -> Any:
    """Words of single letters, padded on the left, as those of decoders are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(("<pad>", "<unk>", "<s>", *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        padding_side="left",
    )


def tiny_t5(width: int = 16) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def flow_scheduler(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


def flow_autoencoder(**changes: Any) -> Any:
    """An autoencoder with a shift of its latents, as those of SD3 and FLUX."""
    arguments = {"scaling_factor": 1.5, "shift_factor": 0.06, "use_quant_conv": False}
    return tiny_autoencoder(**{**arguments, "use_post_quant_conv": False, **changes})


def text_parts(path: Path, **unet: Any) -> dict[str, Any]:
    """Tokenizer, encoder, network, autoencoder and scheduler of Stable Diffusion."""
    return {
        "tokenizer": clip_tokenizer(path / "tokenizer"),
        "text_encoder": tiny_clip(),
        "unet": tiny_text_unet(**unet),
        "vae": tiny_autoencoder(),
        "scheduler": stable_diffusion_scheduler(),
    }


UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
ONE_LAYER: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
"""Of every transformer."""
LATENTS: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "sample_size": 4}
"""Of transformers for `tiny_autoencoder` and `flow_autoencoder`."""


def unchecked(kind: str, path: Path, scheduler: Any = None, **unet: Any) -> Any:
    """Writes a pipeline of diffusers with the parts of Stable Diffusion, some of them others."""
    import diffusers

    parts = text_parts(path, **unet)
    if scheduler is not None:
        parts["scheduler"] = scheduler
    return saved(getattr(diffusers, kind)(**parts, **UNCHECKED), path)


# -- networks that predict noise or velocity -------------------------------------------------------


def stable_diffusion(path: Path) -> Any:
    return write_stable_diffusion(path)


def stable_diffusion_2(path: Path) -> Any:
    return write_stable_diffusion(path, prediction_type="v_prediction")


def sd_turbo(path: Path) -> Any:
    from diffusers import EulerDiscreteScheduler

    config = stable_diffusion_scheduler().config
    scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    return unchecked("StableDiffusionPipeline", path, scheduler)


def zero_terminal_snr(path: Path) -> Any:
    scheduler = stable_diffusion_scheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    return unchecked("StableDiffusionPipeline", path, scheduler)


def sdxl(path: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    parts = text_parts(
        path,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    second = {
        "tokenizer_2": clip_tokenizer(path / "tokenizer_2"),
        "text_encoder_2": tiny_clip(projection_dim=16),
    }
    return saved(StableDiffusionXLPipeline(**parts, **second), path)


def inpainting(path: Path) -> Any:
    return unchecked("StableDiffusionInpaintPipeline", path, in_channels=9)


def upscaler(path: Path) -> Any:
    return write_stable_diffusion_upscaler(path)


def deepfloyd(path: Path) -> Any:
    from diffusers import DDPMScheduler, IFPipeline

    unet = tiny_text_unet(
        in_channels=3,
        out_channels=6,
        sample_size=8,
        encoder_hid_dim=16,
        resnet_time_scale_shift="scale_shift",
    )
    pipeline = IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=tiny_t5(),
        unet=unet,
        scheduler=DDPMScheduler(variance_type="learned_range"),
        watermarker=None,
        **UNCHECKED,
    )
    return saved(pipeline, path)


def pixart(path: Path) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtTransformer2DModel,
    )

    transformer = PixArtTransformer2DModel(
        **ONE_LAYER,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
        use_additional_conditions=False,
    )
    pipeline = PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=tiny_t5(),
        transformer=transformer.eval(),
        vae=tiny_autoencoder(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    return saved(pipeline, path)


def dit(path: Path) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    transformer = tiny_dit(
        in_channels=4,
        out_channels=8,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=len(DIT_LABELS),
        norm_num_groups=4,
    )
    pipeline = DiTPipeline(
        transformer, tiny_autoencoder(), DDIMScheduler(clip_sample=False), id2label=DIT_LABELS
    )
    saved(pipeline, path)
    index = path / "model_index.json"  # where the hub has the names, which diffusers does not save
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": DIT_LABELS}))
    return pipeline


def ddpm(path: Path) -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return saved(DDPMPipeline(tiny_unet(num_classes=None, channels=3), DDPMScheduler()), path)


def ddpm_at_the_root(path: Path) -> Any:
    """As the hub's oldest models lie there: weights and both configs beside `model_index.json`."""
    pipeline = ddpm(path)
    for folder in ("unet", "scheduler"):
        for file in (path / folder).iterdir():
            file.rename(path / file.name)
        (path / folder).rmdir()
    return pipeline


def latent_diffusion(path: Path) -> Any:
    from diffusers import DDIMScheduler, LDMPipeline, VQModel

    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=8,
        norm_num_groups=4,
    )
    unet = tiny_unet(num_classes=None, channels=3, size=4)
    return saved(LDMPipeline(vqvae.eval(), unet, DDIMScheduler(clip_sample=False)), path)


def superresolution(path: Path) -> Any:
    from diffusers import LDMSuperResolutionPipeline

    parts = latent_diffusion(path / "plain").components
    unet = type(parts["unet"]).from_config(
        {k: v for k, v in parts["unet"].config.items() if k[0] != "_"} | {"in_channels": 6}
    )
    pipeline = LDMSuperResolutionPipeline(parts["vqvae"], unet.eval(), parts["scheduler"])
    return saved(pipeline, path)


# -- networks of few steps -------------------------------------------------------------------------


def latent_consistency(path: Path) -> Any:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler.from_config(stable_diffusion_scheduler().config)
    return unchecked("LatentConsistencyModelPipeline", path, scheduler, time_cond_proj_dim=8)


def consistency(path: Path) -> Any:
    """Class-conditional, of four classes and no null class."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    unet = tiny_unet(num_classes=3, channels=3)
    return saved(ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()), path)


# -- networks that predict the flow ----------------------------------------------------------------


def stable_diffusion_3(path: Path) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        **ONE_LAYER,
        **LATENTS,
        patch_size=1,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=flow_scheduler(shift=3.0),
        vae=flow_autoencoder(),
        text_encoder=tiny_clip(projection_dim=16),
        tokenizer=clip_tokenizer(path / "tokenizer"),
        text_encoder_2=tiny_clip(projection_dim=16),
        tokenizer_2=clip_tokenizer(path / "tokenizer_2"),
        text_encoder_3=tiny_t5(32),
        tokenizer_3=t5_tokenizer(),
    )
    return saved(pipeline, path)


def flux(path: Path) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        **ONE_LAYER,
        patch_size=1,
        in_channels=16,
        num_single_layers=1,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    pipeline = FluxPipeline(
        transformer=transformer.eval(),
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=flow_autoencoder(),
        text_encoder=tiny_clip(),
        tokenizer=clip_tokenizer(path / "tokenizer"),
        text_encoder_2=tiny_t5(),
        tokenizer_2=t5_tokenizer(),
    )
    return saved(pipeline, path)


def sana(path: Path) -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = SanaTransformer2DModel(
        **ONE_LAYER,
        **LATENTS,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.4,
    )
    text = Gemma2Config(**DECODER, query_pre_attn_scalar=8)
    pipeline = SanaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=Gemma2Model(text).eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=flow_scheduler(shift=3.0),
    )
    return saved(pipeline, path)


def cogview4(path: Path) -> Any:
    """Pads the prompts of a batch to the longest of them, on the left and without a mask."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    transformer = CogView4Transformer2DModel(
        **ONE_LAYER,
        **LATENTS,
        patch_size=1,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        rope_axes_dim=(4, 4),
    )
    pipeline = CogView4Pipeline(
        tokenizer=word_tokenizer(),
        text_encoder=GlmModel(GlmConfig(**DECODER, pad_token_id=0)).eval(),
        transformer=transformer.eval(),
        vae=flow_autoencoder(),
        scheduler=flow_scheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )
    return saved(pipeline, path)


DECODER = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
"""Config of a language model whose hidden states condition an image."""

FAMILIES: dict[str, Callable[[Path], Any]] = {
    builder.__name__: builder
    for builder in (
        stable_diffusion,
        stable_diffusion_2,
        sd_turbo,
        zero_terminal_snr,
        sdxl,
        inpainting,
        upscaler,
        deepfloyd,
        pixart,
        dit,
        ddpm,
        ddpm_at_the_root,
        latent_diffusion,
        superresolution,
        latent_consistency,
        consistency,
        stable_diffusion_3,
        flux,
        sana,
        cogview4,
    )
}

STEPS = {"num_inference_steps": 2}
SMALL = {**STEPS, "height": 8, "width": 8}
ARGUMENTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("dit", "ddpm", "ddpm_at_the_root", "latent_diffusion", "consistency"), STEPS),
    **dict.fromkeys(("upscaler", "superresolution"), STEPS),
    "pixart": {**SMALL, "use_resolution_binning": False},
    "sana": {**STEPS, "height": 32, "width": 32, "use_resolution_binning": False},
    "cogview4": {**STEPS, "height": 16, "width": 16},
}
"""Of the families that `SMALL` does not fit."""


class TinyCheckpoints:
    """Writes each family once, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, TinyCheckpoint] = {}

    def __call__(self, family: str) -> TinyCheckpoint:
        """The checkpoint of a family of `FAMILIES`; tests that change one copy its directory."""
        if family not in self._written:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                pipeline = FAMILIES[family](self.folder / family)
            self._written[family] = TinyCheckpoint(
                path=self.folder / family,
                pipeline=pipeline,
                arguments=ARGUMENTS.get(family, SMALL),
            )
        return self._written[family]
