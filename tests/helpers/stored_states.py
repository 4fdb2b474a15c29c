"""Files of hidden states, as engines and people write them, and meters that are fed the same."""

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from softh_probe import ProbeResult, SoftEntropyMeter

ROWS = ("layer.1", "layer.2")
LABELS = ("input_unigram", "output_bigram")
FEW = {"n_anchors": 12, "anchor_sets": 2}
#: Axis of `hidden_states` on which layers are stacked.
LAYER_AXIS = {"vllm": 1, "plain": 0}


def store(path: Path, states: dict[str, torch.Tensor], ids, layout: str = "vllm", **facts: str) -> Path:
    """Write one sequence: states [T, D] by row, its tokens, and what the file says of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"token_ids": torch.as_tensor(ids)}
    if layout == "rows":
        arrays |= {name: state.contiguous() for name, state in states.items()}
    else:
        arrays["hidden_states"] = torch.stack(list(states.values()), dim=LAYER_AXIS[layout])
    if path.suffix == ".safetensors":
        save_file(arrays, path, metadata=facts or None)
    else:
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()}, **facts)
    return path


def store_all(folder: Path, docs, states, suffix: str = ".safetensors", **options) -> list[Path]:
    """Write sequences as vLLM names them, a file a request; the order of the names is that of the sequences."""
    return [
        store(folder / f"req-{i:02d}{suffix}", of_doc, ids, **options)
        for i, (ids, of_doc) in enumerate(zip(docs, states, strict=True))
    ]


def metered(docs, states, labels=LABELS, piece=None, **settings):
    """A meter that is fed whole sequences, or pieces of those that are longer than `piece`."""
    meter = SoftEntropyMeter(labels=labels, **FEW, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for d, (ids, of_doc) in enumerate(zip(docs, states, strict=True)):
            if piece is None or len(ids) <= piece:
                meter.update(of_doc, input_ids=ids)
                continue
            for begin in range(0, len(ids), piece):
                part = {row: state[begin : begin + piece] for row, state in of_doc.items()}
                meter.update(part, input_ids=ids[begin : begin + piece], sequence=d, position=begin)
            meter.end(d)
    return meter


def assert_same(result: ProbeResult, meter: SoftEntropyMeter) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = meter.result()
    assert result.info["positions"] == expected.info["positions"] > 0
    assert torch.equal(result.tensors["mass"], expected.tensors["mass"])
    assert result.to_pandas().equals(expected.to_pandas())
    digests = ("sequences_sha256", "sequence_set_sha256")
    assert [result.info["corpus"][d] for d in digests] == [expected.info["corpus"][d] for d in digests]
