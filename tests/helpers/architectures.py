"""Shrunk, random-weight models of every text architecture that transformers lists, built from the configs alone.

Rules go by the names of fields, not by architectures; the few that are left under REPAIRS have default configs with
which no model can be built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

N_LAYERS, HIDDEN, HEADS, HEAD_DIM, VOCAB = 4, 64, 4, 16, 128
N_SEQUENCES, N_TOKENS = 3, 12

LISTS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}

_LAYERS = (
    r"(^|_)(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_blocks|depth|"
    r"num_layers_per_stack|num_self_attends_per_block)$"
)
_HEADS = (
    r"(^|_)(num_((self|cross|encoder|decoder)_)?attention_heads|n_heads?|num_heads|attention_heads|"
    r"linear_num_\w*heads)$"
)
_KV_HEADS = r"(^|_)(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)$"
_FEED_FORWARD = r"(intermediate|ffn|feed_forward|mlp)_?(hidden_)?(size|dim)|^(d_ff|dff|dim_ff|n_inner|d_inner)$"
_WIDTHS = (
    r"(hidden_size|d_model|n_embd|^dim|embed_dim|embedding_size|bottleneck_size|emb_dim|hidden_dim|d_latents|lru_width|"
    r"size_global|embedding_dim|word_embed_proj_dim|output_dim)$"
)

# What a field's name says its value becomes; the first rule that fits counts.
RULES: list[tuple[str, Callable[[int], int]]] = [
    (_LAYERS, lambda v: min(v, N_LAYERS)),
    (r"vocab_size|group_vocab|codebook_size", lambda v: min(v, VOCAB)),
    (r"_token_id$|_token_index$|vocab_offset|mask_index|unk_index", lambda v: v % (VOCAB - 28)),
    (r"max_.*position|n_positions|max_seq_len|max_length|context_length|n_ctx|max_pos_emb", lambda v: min(v, 512)),
    (r"mamba_n_heads$|mamba_num_heads$|n_mamba_heads$", lambda _: 2 * HIDDEN // HEAD_DIM),
    (r"index_n_heads$|indexer_n_heads$", lambda v: min(v, HEADS)),
    (_HEADS, lambda v: min(v, HEADS)),
    (r"experts_per_tok|top_?k$|moe_k$", lambda v: min(v, 2)),
    (r"experts$|expert_num$", lambda v: min(v, 4)),
    (r"^(n_group|topk_group|num_expert_group|num_codebooks)$", lambda _: 1),
    (r"n_groups$", lambda v: min(v, 2)),
    (r"attention_hidden_size$", lambda _: 2 * HIDDEN),
    (r"(qk|swa|attention)_head_dim$", lambda _: 2 * HEAD_DIM),
    (r"(head_dim|headdim|d_head|d_kv|dim_head|kv_channels|head_size)$", lambda _: HEAD_DIM),
    (r"rotary_dim$", lambda _: HEAD_DIM // 2),
    (r"d_ssm$", lambda _: 2 * HIDDEN),
    (_FEED_FORWARD, lambda v: 2 * HIDDEN if v else v),
    (_WIDTHS, lambda v: HIDDEN if v >= 16 else v),
    (r"num_filters$", lambda _: 4),
    (r"rank$", lambda v: min(v, 16)),
    (r"attn_layer_(period|offset)$", lambda v: v // 4),
    (r"num_kv_shared_layers$", lambda _: 0),
]

# Fields that are None by default and have to be numbers.
MISSING = {
    "head_dim": HEAD_DIM,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCAB,
    "pad_token_id": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "default_language": "en_XX",
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}

# Default configs with which no model can be built.
REPAIRS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cohere_compass_text": lambda d: d.update(
        rope_parameters={kind: {"rope_theta": 1e4, "rope_type": "default"} for kind in set(d["layer_types"])}
    ),
    "dbrx": lambda d: d["attn_config"].update(rope_theta=1e4, clip_qkv=8.0),
    "zamba2": lambda d: d.update(hybrid_layer_ids=[i for i, k in enumerate(d["layers_block_type"]) if k == "hybrid"]),
    # Its sliding layers' queries are wider than the others'.
    "dots3_note_text": lambda d: d.update(head_dim=2 * HEAD_DIM),
    "dots3_note": lambda d: d["text_config"].update(head_dim=2 * HEAD_DIM),
    "lfm2_moe": lambda d: d.update(layer_types=["conv", "full_attention"] * (N_LAYERS // 2)),
}


def listed() -> list[tuple[str, str, str]]:
    """(list, model type, class name) of every architecture in the library's own lists."""
    return [(kind, model_type, name) for kind, names in LISTS.items() for model_type, name in names.items()]


def build(kind: str, model_type: str, class_name: str) -> PreTrainedModel:
    """A tiny model of that type in evaluation mode, with the same random weights every time."""
    torch.manual_seed(0)
    config_class = CONFIG_MAPPING[model_type]
    fields = shrink(config_class().to_dict())
    REPAIRS.get(model_type, lambda _: None)(fields)
    for name in ("dtype", "transformers_version", "architectures"):
        fields.pop(name, None)
    config = config_class.from_dict(fields)
    if kind == "causal" and hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    model_class = getattr(transformers, class_name)
    if not isinstance(config, model_class.config_class):
        config = config.get_text_config(decoder=True)
    model = model_class._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    # Initial weights are so small that layers would hardly differ, and norms' so even that they keep directions.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4).add_(0.01 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def padded_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Three sequences: one padded on the right, one on the left, one whole; a decoder's text is another one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (N_SEQUENCES, N_TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    mask[1, :3] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(5, 60, (N_SEQUENCES, N_TOKENS - 2), generator=generator)
        batch["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
        batch["decoder_attention_mask"][0, 8:] = 0
    return batch


def shrink(fields: Any) -> Any:
    """A config's fields, and those of the configs inside it, made small."""
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        return fields
    depths = [v for name, v in fields.items() if isinstance(v, int) and re.search(_LAYERS, name)]
    n_layers = fields.get("num_hidden_layers", max(depths, default=0))
    heads = next((fields[n] for n in ("num_attention_heads", "num_heads", "n_heads", "n_head") if n in fields), None)
    return {name: _shrunk(name, value, fields, n_layers, heads) for name, value in fields.items()}


def _shrunk(name: str, value: Any, fields: dict[str, Any], n_layers: int, heads: int | None) -> Any:
    if value is None:
        return MISSING.get(name)
    if name == "per_layer_config":
        return {layer: shrink(changes) for layer, changes in value.items() if int(layer) < N_LAYERS}
    if name == "axial_pos_embds_dim":
        return [HIDDEN // 2, HIDDEN // 2]
    if isinstance(value, dict):
        return shrink(value)
    if isinstance(value, (list, tuple)):
        return _fewer(value) if N_LAYERS < len(value) == n_layers else value
    if name == "use_cache":
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if re.search(_KV_HEADS, name):
        return 1 if value == 1 else HEADS if value == heads else 2
    if name == "num_heads" and "expand" in fields:
        return 2 * HIDDEN // HEAD_DIM
    return next((new(value) for pattern, new in RULES if re.search(pattern, name)), value)


def _fewer(values: Any) -> Any:
    """An entry for each layer that is left: of every kind the first, then of every kind the second, in their order."""
    nth = [sum(other == value for other in values[:i]) for i, value in enumerate(values)]
    chosen = sorted(sorted(range(len(values)), key=lambda i: (nth[i], i))[:N_LAYERS])
    return type(values)(values[i] for i in chosen)
