"""Models that see, tiny and with random weights: our own, and folders of published families."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
    Qwen3Config,
)

from burnish.core.images import ImageSpan, image_part, png_bytes
from burnish.core.learning import TrainingSample
from burnish.core.message import ImagePart, Message, Role, TextPart
from burnish.core.sampling import Renderer, Sample, SampleRequest, SamplingParams, opened
from burnish.policies.build import TinySpec, VisionSpec, build_tiny
from burnish.policies.chat import ChatRenderer
from burnish.policies.processor import image_marks
from burnish.policies.tokenizer import train_tokenizer

TEXTS = ["<|im_start|>user\nHow many pears?<|im_end|><|im_start|>assistant\nthree at (4, 5)<|im_end|>"] * 2
SPEC = TinySpec(hidden_size=64, layers=2, heads=4, kv_heads=1, intermediate_size=128, max_positions=512)


def noise(seed: int, width_px: int = 32, height_px: int = 32) -> ImagePart:
    """An image that no other seed gives."""
    return image_part(png_bytes(width_px, height_px, random.Random(seed).randbytes(width_px * height_px * 3)))


def shaken(model: Any, *, seed: int = 0, by: float = 0.05) -> Any:
    """Weights large enough for answers to depend on what is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_vision(*, vision: VisionSpec | None = None) -> tuple[Any, Any, ChatRenderer]:
    """Model, tokenizer and renderer of our own kind."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=310, images=True)
    model = shaken(build_tiny(tokenizer, SPEC, 0, vision or VisionSpec(vision_width=32)))
    return model, tokenizer, ChatRenderer(tokenizer, images=image_marks(model, tokenizer))


def question(*images: ImagePart, text: str = "pears <|image|>?") -> Message:
    """A user's turn with images between its words; its text tries to forge one more."""
    return Message(role=Role.USER, parts=(TextPart(text="How many "), *images, TextPart(text=text)))


def request(renderer: Renderer, message: Message, key: str, seed: int, max_tokens: int = 12) -> SampleRequest:
    """One action asked for after `message`."""
    ids, spans = opened(renderer, [message], [])
    return SampleRequest(
        key=key,
        prompt_ids=ids,
        params=SamplingParams(),
        max_tokens=max_tokens,
        seed=seed,
        stop_ids=renderer.stop_ids,
        images=spans,
    )


def as_trained(asked: SampleRequest, sample: Sample, images: tuple[ImageSpan, ...] | None = None) -> TrainingSample:
    """What was sampled, to be trained on; with other images where these are given."""
    before, count = len(asked.prompt_ids), len(sample.token_ids)
    return TrainingSample(
        trajectory_id=asked.key,
        group_id="g",
        token_ids=asked.prompt_ids + sample.token_ids,
        loss_mask=array("b", [0] * before + [1] * count),
        behaviour_logprobs=array("f", [0.0] * before) + sample.logprobs,
        versions=array("i", [0] * (before + count)),
        advantages=array("f", [0.0] * before + [1.0] * count),
        images=asked.images if images is None else images,
    )


def save_llava(folder: Path) -> None:
    """A LLaVA of random weights with its processor."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    _save(config, folder, processor, tokenizer)


def save_qwen_vl(folder: Path) -> None:
    """A Qwen2.5-VL of random weights; its full processor wants packages for video, so the image processor alone."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    image, video, start, end = tokenizer.convert_tokens_to_ids(list(tokens))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "out_hidden_size": 64,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "temporal_patch_size": 2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    processor = Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=48 * 48)
    _save(config, folder, processor, tokenizer)


def _save(config: Any, folder: Path, processor: Any, tokenizer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    shaken(model, by=0.03).save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
