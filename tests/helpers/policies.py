"""Positions that count, one by one, against float64 references of each text alone."""

import numpy as np
import torch

from softh_probe import sample_anchors, temperature
from softh_probe.labels import parse_label_sets
from tests.helpers import references


def assert_counts(probe, model, texts, counted):
    """Compare positions, sums and information with those of some positions of texts.

    Args:
        probe: what was measured, of one anchor set.
        model: the model.
        texts: the texts.
        counted: for each text, its positions that count, from 0; those without labels are left out here.
    """
    settings = probe.state_dict()["settings"]
    sets = [(s.name, s.direction, s.order) for s in parse_label_sets(settings["labels"])]
    dim = model.config.hidden_size
    anchors = sample_anchors(settings["n_anchors"], dim, settings["seed"]).numpy()
    before = max((n for _, direction, n in sets if direction == "input"), default=0)
    after = max((n for _, direction, n in sets if direction == "output"), default=0)
    rows, labels = {}, {name: [] for name, _, _ in sets}
    for text, positions in zip(texts, counted, strict=True):
        text = torch.as_tensor(text).tolist()
        defined = references.ngram_positions(len(text), before, after)
        positions = [t for t in positions if t in defined]
        if not positions:
            continue
        for row, states in references.hidden_states(model, text).items():
            q = references.assignments(states[positions], anchors, temperature(settings["n_anchors"], dim))
            rows.setdefault(row, []).append(q)
        for name, direction, order in sets:
            labels[name] += [references.ngram_label(text, t, direction, order) for t in positions]
    assert probe.positions == sum(map(len, rows["layer.1"]))
    expected = np.stack([np.concatenate(rows[row]).sum(axis=0) for row in probe.layers])
    torch.testing.assert_close(probe.sums[:, 0], torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    table = probe.result().to_pandas(unit="nats").query("metric == 'mutual_information'")
    for name, of_set in labels.items():
        values = table[table.label_set == name].set_index("name").value
        for row in probe.layers:
            information = references.mutual_information(np.concatenate(rows[row]), of_set)
            assert abs(values[row] - information) < 1e-4
