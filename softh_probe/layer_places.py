"""Names of layers, and where each stands in its model: 0 the embeddings, i the i-th block call, L + 1 the final norm.

Tables and figures of a result place its rows by these indices, so that the same index is the same layer whichever
layers were measured. Modules that a user names have no such index: theirs is the number of the row, in the
order in which they were named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from softh_probe.errors import InputError, short_repr

EMBEDDINGS, FINAL_NORM = "embeddings", "final_norm"
RESIDUAL, CENTERED = "residual", "centered"
#: Sites that are asked for by name.
ASKED_SITES = ("attention", "attention_heads", "router", "mlp", RESIDUAL)
#: The sites of a layer, in the order of their rows. The residual stream, which is what a block gives, comes last, and
#: before it its states minus their mean, where these are measured, too.
SITES = (*ASKED_SITES[:-1], CENTERED, RESIDUAL)
_SITE_ROWS = re.compile(r"layer\.[1-9]\d{0,8}\.(?:(attention|router|mlp)|head\.\d{1,8})")
#: What null stands for.
_NONE = {"layers": "measures all", "mean_over": "averages the blocks"}
_BLOCK = re.compile(r"layer\.([1-9]\d{0,8})(?:\..+)?", re.DOTALL)


def block_name(index: int) -> str:
    """Name the layer of the i-th block call, counted from 1.

    >>> block_name(1)
    'layer.1'
    """
    return f"layer.{index}"


def site_name(block: str, site: str) -> str:
    """Name the row of a site of a block.

    >>> site_name("layer.3", "mlp")
    'layer.3.mlp'
    """
    return f"{block}.{site}"


def head_name(block: str, head: int) -> str:
    """Name the row of an attention head, counted from 0 as models do.

    >>> head_name("layer.3", 0)
    'layer.3.head.0'
    """
    return f"{block}.head.{head}"


def centered_name(row: str) -> str:
    """Name the row of the states of another row minus their mean.

    >>> centered_name("final_norm")
    'final_norm.centered'
    """
    return f"{row}.{CENTERED}"


def layer_of(row: str) -> str:
    """Name the row whose states a row of centered states is of; other rows are their own.

    >>> layer_of("final_norm.centered"), layer_of("layer.1")
    ('final_norm', 'layer.1')
    """
    return row.removesuffix(f".{CENTERED}")


def with_centered(row: str, *, centers: bool) -> list[str]:
    """Name the rows that the states of a row are added to, where states minus their mean are measured, too, or not.

    >>> [with_centered(row, centers=True) for row in ("layer.1", "layer.1.mlp")]
    [['layer.1.centered', 'layer.1'], ['layer.1.mlp']]
    """
    return [centered_name(row), row] if centers and site_of(row) == RESIDUAL else [row]


def require_residual(sites: Sequence[str]) -> None:
    """Refuse centered states where the residual stream, whose states they are, is not measured.

    Raises:
        InputError: it is not among the sites.
    """
    if RESIDUAL not in sites:
        raise InputError(f"center: it is of the residual stream, and sites are {', '.join(sites)}; add residual")


def is_centered(name: str) -> bool:
    """Tell whether a row is one of states minus their mean."""
    return name.endswith(f".{CENTERED}")


def refuse_centered(argument: str, names: Iterable[str]) -> None:
    """Refuse names that rows of centered states have, which are made of other rows.

    Raises:
        InputError: one of the names is such a one.
    """
    if taken := next(filter(is_centered, names), None):
        raise InputError(
            f"{argument}: {short_repr(taken)} is a name of the states of {short_repr(layer_of(taken))} minus their "
            "mean, which center=True measures; give another name"
        )


def site_of(name: str) -> str:
    """Find the site of a row by its name; that of rows with other names is the residual stream.

    >>> [site_of(name) for name in ("layer.3.mlp", "layer.3.head.5", "layer.3", "final_norm.centered")]
    ['mlp', 'attention_heads', 'residual', 'centered']
    """
    if is_centered(name):
        return CENTERED
    found = _SITE_ROWS.fullmatch(name)
    return RESIDUAL if found is None else found[1] or "attention_heads"


def part_of(name: str) -> str:
    """Say what of its layer a row is.

    >>> part_of("layer.3.head.5"), part_of("layer.3")
    ('head.5', '')
    """
    site = site_of(name)
    return "" if site == RESIDUAL else site if site == CENTERED else name.split(".", 2)[2]


def parse_sites(sites: object) -> tuple[str, ...]:
    """Read names of sites: a sequence, or a text with commas; in the order of rows.

    >>> parse_sites("residual,mlp")
    ('mlp', 'residual')

    Raises:
        InputError: one of them is no site's, or there is none.
    """
    names = sites.split(",") if isinstance(sites, str) else sites
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"sites: expected any of {', '.join(ASKED_SITES)}, got {short_repr(sites)}")
    asked = [name.strip() for name in names]
    if unknown := [name for name in asked if name not in ASKED_SITES]:
        raise InputError(f"sites: no site {unknown[0]!r}; expected any of {', '.join(ASKED_SITES)}")
    return tuple(site for site in ASKED_SITES if site in asked)


def parse_layers(field: str, layers: object) -> tuple[str | int, ...]:
    """Read names and indices of layers: a sequence, or a text with commas.

    >>> parse_layers("layers", "layer.1, -1")
    ('layer.1', -1)

    Args:
        field: "layers" or "mean_over", as which they are given.
        layers: the names and indices.

    Raises:
        InputError: there is none, or they are no names and indices.
    """
    given = layers.split(",") if isinstance(layers, str) else layers
    if not isinstance(given, Sequence) or not all(isinstance(one, str | int) for one in given):
        raise InputError(f"{field}: expected names and indices of layers, got {short_repr(layers)}")
    found = [text for one in given if (text := str(one).strip())]
    if not found:
        raise InputError(f"{field}: expected at least one, got none; null {_NONE[field]}")
    return tuple(int(text) if re.fullmatch(r"-?\d{1,9}", text) else text for text in found)


def block_index(name: str) -> int | None:
    """Find the number of the block call in a layer's name; None for other names.

    >>> block_index("layer.12"), block_index("embeddings")
    (12, None)
    """
    found = _BLOCK.fullmatch(name)
    return int(found[1]) if found else None


def is_of_a_model(name: str) -> bool:
    """Tell whether a row has a name that rows of transformer models have.

    >>> [is_of_a_model(name) for name in ("embeddings", "layer.3.mlp", "final_norm", "layer_3", "logits")]
    [True, True, True, False, False]
    """
    return layer_index(name, 0) is not None


@dataclass(frozen=True, kw_only=True)
class LayerPlaces:
    """Where the rows of a result stand in the model.

    Attributes:
        names: of the rows.
        indices: of the layers in the model, one for each row.
        n_blocks: block calls L of a forward pass; 0 where modules are named.
        parts: what of its layer each row is, "" for the layer itself: "attention", "head.5".
        is_certain: False where `n_blocks` is that of the last measured block, because an older result that measured
            some layers does not record L. Then the place of the final norm, and relative depths, are least values.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    n_blocks: int
    is_certain: bool = True
    parts: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = tuple(part_of(name) if self.n_blocks else "" for name in self.names)
        object.__setattr__(self, "parts", parts)

    @property
    def sites(self) -> list[str]:
        """Site of each row; that of modules that a user names is the residual stream."""
        return [site_of(name) if part else RESIDUAL for name, part in zip(self.names, self.parts, strict=True)]

    def of_part(self, part: str) -> tuple[LayerPlaces, list[int]]:
        """Give the rows that are one part of their layers, and their numbers."""
        rows = [row for row, other in enumerate(self.parts) if other == part]
        found = replace(self, names=tuple(self.names[r] for r in rows), indices=tuple(self.indices[r] for r in rows))
        return found, rows

    @property
    def last(self) -> int:
        """Index of the final norm, measured or not; of the last row where modules are named."""
        return self.n_blocks + 1 if self.n_blocks else max(self.indices, default=0)

    @property
    def note(self) -> str | None:
        """What to tell readers of a result whose places are not certain."""
        if self.is_certain:
            return None
        return (
            "This result of an earlier version does not record how many blocks its model has: it is placed as if "
            f"block {self.n_blocks}, the last one measured, were the last of the model, so final_norm may lie deeper; "
            "measure again to place it."
        )

    @property
    def depths(self) -> list[float]:
        """Relative depths of the rows: index / (L + 1), from 0 to 1."""
        return [index / max(1, self.last) for index in self.indices]


def place_layers(names: Sequence[str], info: Mapping[str, Any]) -> LayerPlaces:
    """Place the rows of a result in the model.

    >>> place_layers(["embeddings", "layer.10", "final_norm"], {"n_blocks": 30}).indices
    (0, 10, 31)
    >>> place_layers(["fc1", "fc2"], {"n_blocks": None}).indices
    (0, 1)

    Args:
        names: of the rows, in the model's order.
        info: of the result: its `n_blocks` (None where modules are named). Results of earlier versions lack it. Where
            these measured all layers (`settings`), their rows show it.
    """
    rows = tuple(range(len(names)))
    highest = max((block_index(name) or 0 for name in names), default=0)
    settings = info.get("settings")
    asked = settings.get("layers") if isinstance(settings, Mapping) else None
    is_whole = _is_all(names, highest)
    if "n_blocks" in info:
        n_blocks = info["n_blocks"]
        whole = isinstance(n_blocks, int) and not isinstance(n_blocks, bool)
        if n_blocks is None or (whole and n_blocks < 1):
            return LayerPlaces(names=tuple(names), indices=rows, n_blocks=0)
        if whole and n_blocks >= highest:
            return _placed(names, n_blocks, rows, is_certain=True)
    elif asked is None and settings and not is_whole:
        return LayerPlaces(names=tuple(names), indices=rows, n_blocks=0)  # all were measured: these are modules
    return _placed(names, highest, rows, is_certain=is_whole and asked is None)


def in_model_order(names: Sequence[str]) -> tuple[list[str], int | None]:
    """Order rows as a probe does, and find the highest block among them; None, in the order given, if these are others.

    >>> in_model_order(["final_norm", "layer.2", "layer.1", "layer.2.mlp"])
    (['layer.1', 'layer.2.mlp', 'layer.2', 'final_norm'], 2)
    >>> in_model_order(["fc2", "fc1"])
    (['fc2', 'fc1'], None)
    """
    highest = max((block_index(name) or 0 for name in names), default=0)
    if not highest or not all(map(is_of_a_model, names)):
        return list(names), None

    def place(name: str) -> tuple[int, int, int]:
        head = name.rpartition(".head.")[2]
        of_head = int(head) if site_of(name) == "attention_heads" else 0
        return layer_index(name, highest) or 0, SITES.index(site_of(name)), of_head

    return sorted(names, key=place), highest


def _placed(names: Sequence[str], n_blocks: int, rows: tuple[int, ...], *, is_certain: bool) -> LayerPlaces:
    """Place layers by name; names that are no layers' are those of modules."""
    found = [layer_index(name, n_blocks) for name in names]
    indices = tuple(index for index in found if index is not None)
    if len(indices) < len(names) or not names:
        return LayerPlaces(names=tuple(names), indices=rows, n_blocks=0)
    return LayerPlaces(names=tuple(names), indices=indices, n_blocks=n_blocks, is_certain=is_certain)


def layer_index(name: str, n_blocks: int) -> int | None:
    """Find a layer's index in a model of `n_blocks` block calls; None for a name that no layer has.

    >>> layer_index("final_norm", 12)
    13
    """
    name = layer_of(name)
    return {EMBEDDINGS: 0, FINAL_NORM: n_blocks + 1}.get(name, block_index(name))


def _is_all(names: Sequence[str], n_blocks: int) -> bool:
    """Test whether names are those of all layers of a model, with or without a final norm."""
    if len(names) <= n_blocks:
        return False
    layers = [EMBEDDINGS, *map(block_name, range(1, n_blocks + 1))]
    return list(names) in (layers, [*layers, FINAL_NORM])
