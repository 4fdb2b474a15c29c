"""Names of the layers in files: a number k is the output of block k, and 0 the embeddings.

This is vLLM's numbering (`eagle_aux_hidden_state_layer_ids`): its models note the residual stream before the first
block as 0 and after block k, counted from 1, as k, the last of which is not normed
(`EagleModelMixin._maybe_add_hidden_state`, vllm/model_executor/models/interfaces.py; the note in
docs/features/speculative_decoding/extract_hidden_states.md). It is that of transformers' `hidden_states`, too, but for
the last of these, which is after the final norm and so has to be named `final_norm`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from softh_probe.errors import InputError, abbreviated, short_repr
from softh_probe.layer_places import EMBEDDINGS, block_name, in_model_order, is_of_a_model, parse_layers

_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")


def row_names(layers: str | Sequence[str | int]) -> tuple[str, ...]:
    """Name rows by numbers and names of layers, as `parse_layers` reads them; `1-3` stands for 1,2,3.

    >>> row_names("0, 2, final_norm"), row_names("1-3")
    (('embeddings', 'layer.2', 'final_norm'), ('layer.1', 'layer.2', 'layer.3'))

    Raises:
        InputError: there is none, or one is below 0, no name of a model's rows, or stands twice.
    """
    found: list[str] = []
    for one in parse_layers("layers", layers):
        if isinstance(one, str) and (ends := _RANGE.fullmatch(one)):
            found += [_name(k) for k in range(int(ends[1]), int(ends[2]) + 1)]
        else:
            found.append(_name(one) if isinstance(one, int) else one)
    if unknown := [name for name in found if not is_of_a_model(name)]:
        raise InputError(
            f"layers: expected numbers, ranges as 1-3, embeddings, layer.1, …, or final_norm, got "
            f"{short_repr(unknown[0])}; arrays of other names are those of --layout rows"
        )
    if twice := [name for name in found if found.count(name) > 1]:
        raise InputError(f"layers: {twice[0]} stands twice; name each layer that files hold once, in their order")
    if not found:
        raise InputError("layers: expected at least one, got none; 1-3 stands for 1,2,3")
    return tuple(found)


def rows_said(text: str) -> tuple[str, ...]:
    """Name rows by what a file or a manifest says: as `row_names` reads it, or a list in JSON.

    >>> rows_said("1,2"), rows_said('[0, "final_norm"]')
    (('layer.1', 'layer.2'), ('embeddings', 'final_norm'))

    Raises:
        InputError: as `row_names` raises it.
    """
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return row_names(text)
    return row_names(listed if isinstance(listed, list) else text)


def require_order_of_vllm(rows: Sequence[str]) -> None:
    """Refuse rows in another order than that of the model, in which vLLM stores them, whatever order it was asked for.

    Raises:
        InputError: they are in another order.
    """
    in_order, _ = in_model_order(rows)
    if list(rows) != in_order:
        raise InputError(
            f"layers: vLLM stores layers in the order of the model, whatever the order of its layer ids; expected "
            f"{abbreviated(in_order, 8)}, got {abbreviated(list(rows), 8)}"
        )


def _name(k: int) -> str:
    if k < 0:
        raise InputError(f"layers: expected 0 (embeddings) or the number of a block from 1 on, got {k}")
    return block_name(k) if k else EMBEDDINGS
