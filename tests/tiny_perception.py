"""Small networks that look, listen and write, with random weights and the real classes, saved as users' are."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from syncflow.clock import Span
from syncflow.media import Clip
from syncflow.preprocess.config import BucketSize
from syncflow.preprocess.plan import ClipPlan, Source
from syncflow.preprocess.work import Work

RATE = 16000  # Hz
WORDS = "a the dog barks man hits drum rain falls on roof water bird sings what is seen heard describe"


def _tokenizer(special: list[str], **options: Any) -> Any:
    """Words, bytes for everything else, and special tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special,
        **options,
    )


CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}PLACE{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_llava(folder: Path, seed: int = 0) -> Path:
    """LLaVA: CLIP's picture tower, a projector, Llama."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer(["<image>"])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(seed)
    _spread(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("PLACE", "<image>"),
    ).save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen2-VL: pictures of any size, rotary positions in space and time."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "pad_token_id": ids("<|pad|>"),
            "bos_token_id": None,
            "eos_token_id": ids("<|end|>"),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "mlp_ratio": 2,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    _spread(Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    pixels: Any = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT.replace("PLACE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(folder)
    return folder


def save_qwen2_audio(folder: Path, seed: int = 0) -> Path:
    """Qwen2-Audio: Whisper's encoder, Qwen2."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = _tokenizer(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16,
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": 200,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    torch.manual_seed(seed)
    _spread(Qwen2AudioForConditionalGeneration(config)).save_pretrained(folder)
    Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=4),
        tokenizer,
        chat_template=CHAT.replace("PLACE", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    ).save_pretrained(folder)
    return folder


def _spread(network: Any) -> Any:
    """Larger random weights: at their usual start all inputs are answered alike."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return network.eval()


TINY_CLIP = "syncflow-test-tiny"
"""open_clip's name of the network that `save_clip` saves, once it has been called."""


def save_clip(folder: Path, seed: int = 0) -> Path:
    """CLIP of open_clip, 8 dimensions."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{TINY_CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{TINY_CLIP}.json")
    torch.manual_seed(seed)
    torch.save(open_clip.create_model(TINY_CLIP).state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


def save_clap(folder: Path, seed: int = 0) -> Path:
    """CLAP of transformers, 8 dimensions."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    torch.manual_seed(seed)
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 400,
        "pad_token_id": 0,
    }
    sound = {
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
    }
    ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=8)).save_pretrained(folder)
    tokenizer = _tokenizer([], model_max_length=77)
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


def a_clip(seed: int, num_frames: int = 4) -> np.ndarray:
    """(T, 64, 64, 3): a colour of its own with a little noise."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 30, (num_frames, 64, 64, 3))
    return (rng.integers(0, 220, 3) + noise).astype(np.uint8)


def a_sound(seed: int, seconds: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t) + 0.1 * rng.normal(size=len(t))).astype(np.float32)


def make_work(seed: int, **said: str) -> Work:
    span = Span(Fraction(0), Fraction(2))
    plan = ClipPlan(f"{seed}-0000000", Source(str(seed), f"/dog-barks_{seed}.mp4", **said), span, "64x64x8")  # type: ignore[arg-type]
    clip = Clip(span, Fraction(4), a_clip(seed, 8), 8, RATE, a_sound(seed), (0, 2 * RATE), ())
    return Work(plan, BucketSize(64, 64, 8), clip)
