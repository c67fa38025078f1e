"""A configuration of `transformers` made tiny by the names of its fields: what is called num_hidden_layers becomes 2.

Nobody can write six hundred configurations by hand. Some models want what the names do not tell, such as a width that
is a product of two others; so there are several ways to make one small, from thorough to mild, and the first that
builds and runs is taken (tracing_transformers.py).
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, SPECIAL = 64, 20  # ids below SPECIAL may be marks of some kind
IMAGE, MELS, FRAMES = 32, 16, 64

# Names of fields, and the most that their integers may be; the first pattern that matches the whole name holds.
SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size|type_vocab_size|.*vocabulary_size", VOCABULARY),
    (r".*(key_value|kv)_heads|num_key_value_groups|n_head_kv", 2),
    (r"qk_head_dim", 16),
    (r"mamba_n_heads|mamba_num_heads|mamba_d_head", 8),
    (r".*head_dim|.*head_size|d_kv|attention_key_size|.*channels_per_head", 8),
    (r"(.*_)?(heads?|n_head)", 4),
    (r"rotary_dim", 4),
    (r"(.*_)?window_size", 2),
    (r".*experts_per_tok(en)?|(.*_)?top_?k(_experts)?|num_selected_experts", 2),
    (r"(.*_)?num_(.*_)?experts|n_(.*_)?experts", 4),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"(.*_)?(lora_rank|low_rank_dim|rank)", 16),
    (r"(.*_)?(mel_bins|n_mels|num_mels|feature_size|input_feat_per_channel)", MELS),
    (r"moe_intermediate_size|.*expert.*(dim|size)", 24),
    (r"num_feat_extract_layers", 99),
    (r"(.*_)?(layers?|blocks|depth)|n_layers?", 2),
    (
        r"(.*_)?(intermediate|inner|ffn|mlp|ff|feedforward|feed_forward|filter)_?(embed_)?(dim|size|channels)|d_ff|n_inner",
        48,
    ),
    (r"max_source_positions", FRAMES // 2),
    (r"(.*_)?(max_.*position.*|n_positions|context_length|max_seq.*|seq_len.*|n_ctx|block_size|sliding_window)", 64),
    (r"(.*_)?(image|img|crop|input)_size|resolution", IMAGE),
    (r"(.*_)?patch_size", 8),
    (r"(.*_)?(state_size|d_state)|axial_.*|num_buckets", 8),
    (r"(.*_)?(hidden|embed|embedding|proj|projection|model|output|latent)_?(dims?|sizes?|channels)", 32),
    (r"d_model|n_embd|dim|width|hidden|channels|d_embed|num_features|d_latents|codebook_(size|dim)", 32),
    (r"num_queries|num_latents|num_query_tokens|query_length|num_register_tokens", 6),
)
# The same for lists of integers.
LISTS: tuple[tuple[str, int], ...] = (
    (r".*depths?|.*layers|layers_per.*|num_blocks|.*num_repeats", 1),
    (r".*heads.*", 2),
    (r".*(hidden|embed|conv_dim|channel|dim|filter|width).*", 16),
    (r"image_size", IMAGE),
)
# What the names do not tell, by the type of the model.
MORE: dict[str, dict[str, Any]] = {
    "levit": {"key_dim": [4, 4, 4]},
    "mamba2": {"num_heads": 8},
    "mobilevitv2": {"image_size": 64},
    "reformer": {"is_decoder": True},
    "swin": {"hidden_size": 32},
    "wav2vec2-bert": {"feature_projection_input_dim": MELS},
    "xlnet": {"d_head": 8},
}
MARKS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 2}

# What is left out of the ways to make a configuration small: patterns of fields that stay as they are.
WAYS = (
    "",
    "layer_types",
    "list",
    r"list|.*head_dim|.*window.*",
    r"list|layer_types|.*(layers?|blocks|depth)|n_layers?",
)


def tiny(config: PreTrainedConfig, way: str = "") -> PreTrainedConfig:
    """The same kind of configuration, as small as the names of its fields allow."""
    small = type(config)(**_changes(config, way))
    small._experts_implementation = "eager"  # the default has no float64
    return small


def _changes(config: PreTrainedConfig, way: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found[name] = _changes(value, way) | ({"model_type": value.model_type} if value.model_type else {})
        elif not re.fullmatch(way, name) and (small := _small(name, value, "list" not in way)) is not None:
            found[name] = small
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1 and "num_hidden_layers" in found and not re.fullmatch(way, "layer_types"):
        found |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}  # every kind of layer once
    if (heads := getattr(config, "num_attention_heads", 0)) and heads == getattr(config, "num_key_value_heads", 0):
        found |= {"num_key_value_heads": found.get("num_attention_heads", heads)}
    return found | MORE.get(config.model_type, {})


def _small(name: str, value: Any, lists: bool) -> Any:
    """A field's small value, or None: it stays as it is."""
    if name.endswith(("token_id", "token_index")) and isinstance(value, int):
        mark = name.rpartition("_token_")[0]
        return MARKS.get(mark, 3 + sum(map(ord, mark)) % (SPECIAL - 3))
    if type(value) is int:
        most = _most(SIZES, name)
        return most if most is not None and most < value else None
    if lists and isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        most = _most(LISTS, name)
        return None if most is None else type(value)(min(v, most) for v in value)
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 1, 1]}
    return None


def _most(table: tuple[tuple[str, int], ...], name: str) -> int | None:
    return next((most for pattern, most in table if re.fullmatch(pattern, name)), None)
