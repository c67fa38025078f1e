"""The zoo's language, vision and audio models: every type that `transformers` knows, at a tiny random configuration.

What no way of making it tiny brings to run on an example is skipped, and counted. Nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from benchmark.tracing_tiny import FRAMES, IMAGE, MELS, SPECIAL, VOCABULARY, WAYS, tiny
from benchmark.tracing_worker import Specimen, serve

# What a model is taken for: the first of these that it can do, or nothing but its hidden states.
HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "CAUSAL_LM",
    "MASKED_LM",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "CTC",
    "VIDEO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
)
TOKENS, WAVE = 12, 2000
MOST = 5_000_000  # parameters: what is larger was not made small
OUTPUTS = ("logits", "last_hidden_state", "logits_per_image", "predicted_depth", "prediction_outputs")


def names() -> Iterator[tuple[str, str]]:
    """(type, class) of every model."""
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    for kind, base in modeling_auto.MODEL_MAPPING_NAMES.items():
        chosen = next((mapping[kind] for mapping in mappings if kind in mapping), base)
        yield kind, chosen if isinstance(chosen, str) else chosen[0]


def build(kind: str, name: str) -> Specimen:
    """A tiny model with an example for it; raises what the first way to make it raises, if none runs."""
    transformers.logging.set_verbosity_error()
    first: Exception | None = None
    for way in WAYS:
        try:
            config = tiny(CONFIG_MAPPING[kind](), way)
            with torch.device("meta"):
                size = sum(p.numel() for p in getattr(transformers, name)(config).parameters())
            if size > MOST:
                raise ValueError(f"{size:,} parameters are left")
            torch.manual_seed(0)
            model = getattr(transformers, name)(config).eval()
        except Exception as error:
            first = first or error
            continue
        for layout in (0, 1):
            kwargs = example(model, layout)
            try:
                with torch.no_grad():
                    model(**kwargs)
            except Exception as error:
                first = first or error
                continue
            return Specimen(model, (), kwargs, what_matters)
    assert first is not None
    raise first


def example(model: Any, layout: int) -> dict[str, Any]:
    """Inputs by their usual names, in one of two layouts: (time, features) and no channel axis for waves, or not."""
    arguments: Mapping[str, inspect.Parameter] = inspect.signature(model.forward).parameters
    generator, config = torch.Generator().manual_seed(0), model.config

    def ids(length: int) -> Tensor:
        return torch.randint(SPECIAL, VOCABULARY, (2, length), generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator)

    side = _field(config, ("image_size", "img_size"), IMAGE)
    height, width = (side, side) if isinstance(side, int) else side
    image = (_field(config, ("num_channels", "in_channels", "in_chans"), 3), height, width)
    mels = _field(config, ("num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels"), MELS)
    frames = _field(config, ("num_frames", "frames_per_clip"), 0)
    known = {
        "decoder_input_ids": ids(TOKENS - 2),
        "pixel_values": noise(*([frames] if frames else []), *image),
        "pixel_values_videos": noise(frames or 4, *image),
        "input_values": noise(1, WAVE) if layout else noise(WAVE),
        "input_features": noise(mels, FRAMES) if layout else noise(FRAMES, mels),
    }
    found: dict[str, Any] = {name: value for name, value in known.items() if name in arguments}
    main = getattr(model, "main_input_name", "input_ids")
    if "input_ids" in arguments and (main not in found or not hasattr(config, "is_encoder_decoder")):
        found["input_ids"] = ids(TOKENS)
    if "input_ids" in found and hasattr(config, "image_token_id"):
        raise ValueError("its images need marks in the text; its text model is a type of its own")
    if "use_cache" in arguments:
        found["use_cache"] = False
    return found


def _field(config: PreTrainedConfig, names: Sequence[str], otherwise: Any) -> Any:
    """The first of these fields that the configuration, or one inside it, has."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    found = (getattr(one, name, None) for one in (config, *inner) for name in names)
    return next((value for value in found if value is not None), otherwise)


def what_matters(out: Any) -> Any:
    """The logits, or the last hidden states; caches and inner states would fix heads that nobody looks at."""
    found = (getattr(out, name, None) for name in OUTPUTS)
    return next((value for value in found if isinstance(value, Tensor)), out)


if __name__ == "__main__":
    serve(names, build)
