"""Names of the layers in files: a number k is the output of block k, and 0 the embeddings.

This is vLLM's numbering (`eagle_aux_hidden_state_layer_ids`): its models note the residual stream before the first
block as 0 and after block k, counted from 1, as k, the last of which is not normed
(`EagleModelMixin._maybe_add_hidden_state`, vllm/model_executor/models/interfaces.py; the note in
docs/features/speculative_decoding/extract_hidden_states.md). It is that of transformers' `hidden_states`, too, but for
the last of these, which is after the final norm and so has to be named `final_norm`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from softh_probe.errors import InputError, abbreviated
from softh_probe.layer_places import EMBEDDINGS, block_name, in_model_order, parse_layers

_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})")


def row_names(layers: str | Sequence[str | int]) -> tuple[str, ...]:
    """Name rows by numbers and names of layers, as `parse_layers` reads them; `0:3` stands for 0,1,2.

    >>> row_names("0, 2, final_norm"), row_names("1:4")
    (('embeddings', 'layer.2', 'final_norm'), ('layer.1', 'layer.2', 'layer.3'))

    Raises:
        InputError: there is none, one is below 0 or stands twice.
    """
    found: list[str] = []
    for one in parse_layers("layers", layers):
        if isinstance(one, str) and (ends := _RANGE.fullmatch(one)):
            found += [_name(k) for k in range(int(ends[1]), int(ends[2]))]
        else:
            found.append(_name(one) if isinstance(one, int) else one)
    if twice := [name for name in found if found.count(name) > 1]:
        raise InputError(f"layers: {twice[0]} stands twice; name each layer that files hold once, in their order")
    if not found:
        raise InputError("layers: expected at least one, got none; 0:3 stands for 0,1,2")
    return tuple(found)


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
