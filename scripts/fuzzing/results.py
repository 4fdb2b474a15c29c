"""Results of every format, and snapshots."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_campaign import write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fuzzing.damage import changed, damage_safetensors, damaged, encoded, to_json
from fuzzing.kinds import Kind, WrongError
from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.config import RunConfig, plain_config
from softh_probe.data.corpus import Corpus, length_batches, pad_batch
from softh_probe.labels import parse_label_sets
from softh_probe.planned.plan import Plan
from softh_probe.report.page import comparison_page, run_page
from softh_probe.report.page_data import check_info
from softh_probe.result_files import RESULT_JSON, SUMS, sealed
from softh_probe.run.snapshots import Progress, Snapshots


class Result(Kind):
    """result.json of results of every format; all that is accepted is shown as tables and as a page."""

    share = 1.5

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole = probed_result(folder / "model")
        self.whole.save(folder / "3")
        self.table = self.whole.to_pandas("nats")
        older_formats(folder)

    def write(self, case: Path, chance: random.Random) -> None:
        version = chance.choice(("3", "3", "2", "1"))
        shutil.copytree(self.folder / version, case, dirs_exist_ok=True)
        self.damage(case, chance)

    def damage(self, case: Path, chance: random.Random) -> None:
        file = case / RESULT_JSON
        if chance.random() < 0.3:
            file.write_bytes(damaged(file.read_bytes(), chance))
            return
        head = changed(json.loads(file.read_text()), chance)
        if chance.random() < 0.3 and isinstance(head, dict):  # as whoever writes such files by other means
            head = sealed({k: v for k, v in head.items() if k not in ("format", "sha256")})
        file.write_bytes(encoded(to_json(head, chance, indent=chance.choice((None, 2))), chance))

    def attempt(self, case: Path, chance: random.Random) -> None:
        result = ProbeResult.load(case)
        table = result.to_pandas("nats")
        written = json.loads((case / RESULT_JSON).read_text())
        seal = json.loads((self.folder / "3" / RESULT_JSON).read_text())["sha256"]
        if written["format"] >= 3 and written["sha256"] == seal and not table.equals(self.table):
            raise WrongError("a changed result was taken for what was written")
        if chance.random() < 0.15:
            check_info(result, str(case))
            run_page(result)
        if chance.random() < 0.05:
            check_info(result, str(case))
            comparison_page([self.whole, result], ["whole", "this"])


class Sums(Result):
    """sums.safetensors of results."""

    def damage(self, case: Path, chance: random.Random) -> None:
        damage_safetensors(case / SUMS, chance)


class SnapshotFiles(Kind):
    """Snapshots of an unfinished run: the newest that is whole is used, exactly as it was written."""

    share = 0.4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        model = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder / "model")).eval()
        tokens = np.random.default_rng(0).integers(1, 14, 60).astype(np.int32)
        counts = {"n_read": 6, "n_empty": 0, "n_truncated": 0}
        corpus = Corpus(tokens=tokens, offsets=np.arange(0, 61, 10), source=np.arange(6), columns={}, **counts)
        plan = Plan(corpus, parse_label_sets(["input_unigram"]), length_batches(corpus.lengths, 20))
        probe = SoftEntropyProbe(model, n_anchors=10, anchor_sets=1, plan=plan)
        snapshots, self.states = Snapshots(folder / "work"), {}
        for number in (0, 1):
            ids, mask = pad_batch(corpus, plan.batches[number])
            with probe, torch.no_grad(), probe.batch(plan.batch(number)):
                model(input_ids=ids, attention_mask=mask)
            snapshots.write(probe, Progress(run={"config": {}}, batches=number + 1, seconds=1.0, interruptions=0))
            self.states[number + 1] = _tensors(probe.state_dict())

    def write(self, case: Path, chance: random.Random) -> None:
        shutil.copytree(self.folder / "work", case, dirs_exist_ok=True)
        snapshots = sorted(Snapshots(case).folder.iterdir())
        for snapshot in snapshots if chance.random() < 0.3 else snapshots[-1:]:
            file = chance.choice(sorted(snapshot.iterdir()))
            if file.suffix == ".json":
                file.write_bytes(damaged(file.read_bytes(), chance))
            else:
                damage_safetensors(file, chance)

    def attempt(self, case: Path, chance: random.Random) -> None:
        found = Snapshots(case).newest()
        if found is None:
            return
        progress, state = found
        if _tensors({**state, "layers": dict(state["layers"])}) != self.states[progress.batches]:
            raise WrongError("a damaged snapshot was taken for a whole one")


def probed_result(folder: Path) -> ProbeResult:
    """A small result with labels one by one, and the facts of a run."""
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder)).eval()
    probe = SoftEntropyProbe(model, labels=["input_unigram", "output_unigram"], n_anchors=8, anchor_sets=2)
    with probe, torch.no_grad(), probe.labelled(topic=torch.arange(6) % 3):
        model(input_ids=torch.randint(0, 10, (6, 9), generator=torch.Generator().manual_seed(0)))
    result = probe.result()
    facts = {
        "config": plain_config(RunConfig(model="m", data="d", out="o")),
        "model": {"model": "a/b", "revision": None, "n_parameters": 1234, "devices": ["cpu"]},
        "corpus": {"data": "texts.jsonl", "sha256": "0" * 64, "documents": 6, "tokens": 54},
        "versions": {"softh-probe": "0.1.0"},
        "seconds": {"forward": 1.5},
        "peak_memory_gib": {"host": 0.5},
        "warnings": ["one"],
        "tokens_per_second": 36.0,
    }
    result.info.update(facts)
    return result


def older_formats(folder: Path) -> None:
    """Folders "2" and "1" beside "3", as versions before this one wrote them."""
    head = json.loads((folder / "3" / RESULT_JSON).read_text())
    tensors = load_file(folder / "3" / SUMS)
    for name in ("sha256", "files"):
        del head[name]
    for version in ("2", "1"):
        (folder / version).mkdir()
        if version == "1":
            head["kept"] = head.pop("labels")
            tensors["kept_positions"] = tensors.pop("label_positions")
            n_rows, n_labels, n_sets = tensors.pop("label_entropy").shape
            tensors["kept_mass"] = torch.ones(n_rows, n_labels, n_sets, tensors["mass"].shape[-1], dtype=torch.float64)
            for name in ("null_information", "corrected_information", "entropy_document_sd"):
                del tensors[name]
        (folder / version / RESULT_JSON).write_text(json.dumps({**head, "format": int(version)}))
        save_file(tensors, folder / version / SUMS)


def _tensors(state: dict[str, Any]) -> list[tuple[str, str, bytes]]:
    found = []
    for row, layer in state["layers"].items():
        found += [(row, name, t.numpy().tobytes()) for name, t in layer.items() if isinstance(t, torch.Tensor)]
    return sorted(found)
