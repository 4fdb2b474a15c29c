"""The values of a whole model: means over its layers, and ratios of them.

The row `mean` is over layer.1 … layer.L, or over the layers that `mean_over` names. What has a unit (entropies and
informations) is averaged over the layers, for each set of anchors by itself: H of the row is the mean of the layers' H,
not the entropy of their mean assignment. Ratios are formed of the means, by the formulas of `softh_probe.metrics`; the
means of the layers' own ratios have names of their own (`MEANS_OF_RATIOS`). What one layer lacks, the mean lacks too.

All layers follow the same sample of labels and see the same documents. So errors by the sampling of labels are not
independent: the mean has the mean of the layers' errors, its upper bound. Influences of documents are averaged before
their squares are summed; see `softh_probe.influence`.

Shape suffixes: R rows (layers) of a result, L layers that are averaged, X label sets, S anchor sets, D documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from softh_probe.errors import InputError, abbreviated, short_repr
from softh_probe.influence import DocumentInfluence, Name
from softh_probe.labels import DIRECTIONS
from softh_probe.layer_places import RESIDUAL, SITES, block_index, place_layers, site_name
from softh_probe.metrics import ENTROPIES, Computed, compute_metrics

#: Name of the row.
MEAN = "mean"
#: Entry of a result's information: the layers that were chosen for the mean.
MEAN_OVER = "mean_over"
#: Ratios whose layers are averaged too, and the name of that mean; the ratio itself is of means.
MEANS_OF_RATIOS = {name: f"{name}_mean_of_layers" for name in ("regularity", "optimality", "optimality_corrected")}
#: A slice of indices, as "1:-1".
_SLICE = re.compile(r"(-?\d{0,9}):(-?\d{0,9})")
#: Spreads of a layer, of which the mean over layers has another meaning.
_NOT_AVERAGED = ("entropy_document_sd", "mutual_information_null_sd")


def mean_rows(names: Sequence[str], info: Mapping[str, Any]) -> dict[str, list[str]]:
    """List the layers of each row of means.

    >>> mean_rows(["embeddings", "layer.1", "layer.2.mlp", "layer.2", "final_norm"], {"n_blocks": 2})
    {'mean': ['layer.1', 'layer.2'], 'mean.mlp': ['layer.2.mlp']}
    >>> mean_rows(["fc1", "fc2"], {"n_blocks": None, "mean_over": ["fc2"]})
    {'mean': ['fc2']}

    Args:
        names: of the rows of a result.
        info: of the result; without `mean_over`, the layers are those of the blocks that were measured: none of
            modules that a user names.

    Returns:
        Names of layers by that of the row: "mean" of the residual stream, "mean.attention" and the like of sites.

    Raises:
        InputError: `mean_over` is no list of names, as where a result was changed.
    """
    places = place_layers(names, info)
    chosen = info.get(MEAN_OVER)
    if chosen is None:
        taken = {name for name in names if places.n_blocks and block_index(name) is not None}
    elif isinstance(chosen, list) and all(isinstance(name, str) for name in chosen):
        taken = {*chosen}
    else:
        raise InputError(f"mean_over: expected a list of names of layers, got {short_repr(chosen)}")
    found: dict[str, list[str]] = {}
    for site in (RESIDUAL, *(site for site in SITES if site != RESIDUAL)):
        layers = [name for name, of in zip(names, places.sites, strict=True) if of == site and name in taken]
        if layers:
            found[MEAN if site == RESIDUAL else site_name(MEAN, site)] = layers
    return found


def select_mean_rows(mean_over: Sequence[str | int], names: Sequence[str], info: Mapping[str, Any]) -> list[str]:
    """Find the rows that names and indices of layers stand for, in the order of the rows.

    >>> select_mean_rows([1, -2, "embeddings"], ["embeddings", "layer.1", "layer.2", "final_norm"], {"n_blocks": 2})
    ['embeddings', 'layer.1', 'layer.2']
    >>> select_mean_rows(["1:-1"], ["embeddings", "layer.1", "layer.2", "final_norm"], {"n_blocks": 2})
    ['layer.1', 'layer.2']

    Args:
        mean_over: names of rows, or indices in the model, which stand for all sites of a layer; −1 is the last layer
            that was measured, and "1:-1" a slice of those that were, as Python takes it.
        names: of the rows that are or will be measured.
        info: of the result.

    Raises:
        InputError: one of them was not measured, or a module has the name of the row.
    """
    if MEAN in names:
        raise InputError(
            f"mean_over: a measured module is named {MEAN!r}, as the row of the mean would be; leave it out"
        )
    indices = place_layers(names, info).indices
    in_order = sorted({*indices})
    chosen: set[str] = set()
    for one in mean_over:
        if isinstance(one, str) and (ends := _SLICE.fullmatch(one)):
            begin, end = (int(text) if text else None for text in ends.groups())
            taken = {*in_order[begin:end]}
            found = {name for name, place in zip(names, indices, strict=True) if place in taken}
        elif isinstance(one, int):
            index = one if one >= 0 else in_order[one] if -one <= len(in_order) else None
            found = {name for name, place in zip(names, indices, strict=True) if place == index}
        else:
            found = {one} & {*names}
        if not found:
            listed = abbreviated(list(names), 16)
            raise InputError(f"mean_over: no layer {one!r} is measured; expected any of {listed}, or their indices")
        chosen |= found
    return [name for name in names if name in chosen]


def compute_means(tensors: Mapping[str, Tensor], label_sets: Sequence[str], rows: Sequence[int]) -> Iterator[Computed]:
    """Compute the values of the mean over layers, in the order of the table.

    Args:
        tensors: those of a `ProbeResult`.
        label_sets: names of the label sets, in the order of the tensors' dimension X.
        rows: numbers of the layers.

    Yields:
        Values [1, S], and errors by the sampling of labels [1], of each metric and label set.
    """
    of_layers = {name: tensor[list(rows)] for name, tensor in tensors.items()}
    averaged = {name: tensor.mean(dim=0, keepdim=True) for name, tensor in of_layers.items()}
    of_means = {(one.label_set, one.metric): one for one in compute_metrics(averaged, label_sets)}
    for one in compute_metrics(of_layers, label_sets):
        if one.metric in _NOT_AVERAGED:
            continue
        values_1S, error_1 = one.values_RS.mean(dim=0, keepdim=True), one.sampling_sd_R.mean(dim=0, keepdim=True)
        mean = one._replace(values_RS=values_1S, sampling_sd_R=error_1)
        if one.metric in ENTROPIES:
            yield mean
            continue
        yield of_means[one.label_set, one.metric]
        if one.metric in MEANS_OF_RATIOS:
            yield mean._replace(metric=MEANS_OF_RATIOS[one.metric])


def mean_standard_errors(
    influence: DocumentInfluence | None,
    tensors: Mapping[str, Tensor],
    label_sets: Sequence[str],
    rows: Sequence[int],
) -> dict[Name, float]:
    """Compute the standard errors over documents of the values of the mean, in nats where these have a unit.

    With r = a/b the ratio of a layer and w its share of the sum of b over layers, the influence of a document on the
    ratio of means is Σ w ψ(r) + Σ (r − ratio of means) ψ(b) / Σ b: the delta method, exact with one set of anchors.
    With several, weights and influences are averaged over the sets apart from each other.

    Args:
        influence: that of the documents on the layers; None gives nothing.
        tensors, label_sets: those of the result.
        rows: numbers of the layers.

    Returns:
        By label set and metric. That of `regularity` is unknown for a label set that some positions have no label of.
    """
    if influence is None or influence.n_units < 2:
        return {}
    at = list(rows)
    psi_LD = {name: values_RD[at] for name, values_RD in influence.values.items()}
    found = {
        (label_set, MEANS_OF_RATIOS.get(metric, metric)): values_LD.mean(axis=0)
        for (label_set, metric), values_LD in psi_LD.items()
    }
    entropy_XLS = tensors["labelled_entropy"][at].transpose(0, 1).numpy()
    information_XLS = entropy_XLS - tensors["conditional_entropy"][at].transpose(0, 1).numpy()
    is_whole_X = (tensors["labelled_positions"][at] == tensors["positions"][at].unsqueeze(1)).all(dim=0).tolist()
    for (label_set, metric), ratio_LD in psi_LD.items():
        if metric == "regularity" and is_whole_X[x := label_sets.index(label_set)]:
            of = (information_XLS[x], entropy_XLS[x], ratio_LD, psi_LD["", "entropy"])
            found[label_set, metric] = _on_ratio_of_means(*of)
        elif metric == "optimality":
            given, output = (f"{direction}_{label_set}" for direction in DIRECTIONS)
            if (on_given := (given, "mutual_information")) in psi_LD:
                a_LS, b_LS = (information_XLS[label_sets.index(name)] for name in (output, given))
                found[label_set, metric] = _on_ratio_of_means(a_LS, b_LS, ratio_LD, psi_LD[on_given])
    return {name: influence.error_of(psi_D) for name, psi_D in found.items()}


def _on_ratio_of_means(a_LS: np.ndarray, b_LS: np.ndarray, ratio_LD: np.ndarray, on_b_LD: np.ndarray) -> np.ndarray:
    """Compute the influence on Σ a / Σ b [D] from those on a / b and on b of each layer, averaged over anchor sets."""
    total_S = b_LS.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_L = (b_LS / total_S).mean(axis=1)
        excess_L = ((a_LS / b_LS - a_LS.sum(axis=0) / total_S) / total_S).mean(axis=1)
    psi_D: np.ndarray = share_L @ ratio_LD + excess_L @ on_b_LD
    return psi_D
