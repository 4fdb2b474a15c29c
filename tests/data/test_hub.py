"""Data sets on the hub, from a stand-in of it: streamed, of one commit, only asked-for columns."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.dataset_hub import serving_datasets

COMMIT = "c0ffee" + "0" * 34
PROGRAM = """
import json, sys
from softh_probe.config import RunConfig
from softh_probe.data.documents import read_documents
from softh_probe.data.prepared import read_corpus
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

def rows(data, **options):
    try:
        return [[d.content, *d.columns.values()] for d in read_documents(data, **options)]
    except ValueError as error:
        return str(error)

words = Tokenizer(models.WordLevel({"?": 0, "cat": 1}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
config = RunConfig(model="m", data="own/lines", out="o", data_revision="v1", cache=sys.argv[1])
corpora = [read_corpus(config, PreTrainedTokenizerFast(tokenizer_object=words), progress=False) for _ in range(2)]
print(json.dumps({
    "lines": rows("own/lines", revision="v1", label_columns=["y"]),
    "columns": rows("own/columns", label_columns=["y"]),
    "lost": rows("own/lines", revision="v2"),
    "commits": [corpus.data_commit for corpus in corpora],
}))
"""


@pytest.mark.slow
def test_data_sets_on_the_hub(tmp_path):
    """In a process of its own, as the hub's address is read on import."""
    lines, columns = tmp_path / "hub" / "own" / "lines", tmp_path / "hub" / "own" / "columns"
    for folder in (lines, columns):
        folder.mkdir(parents=True)
    one = [{"text": f"cat {i}", "meta": None, "y": 1} for i in range(3)]
    two = [{"text": f"dog {i}", "meta": {"x": i}, "y": "s"} for i in range(3)]
    (lines / "train-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one))
    (lines / "train-1.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in two).encode()))
    pq.write_table(pa.table({"text": ["a"], "meta": pa.nulls(1), "y": [1]}), columns / "train-0.parquet")
    pq.write_table(pa.table({"text": ["b"], "meta": ["x"], "y": ["s"]}), columns / "train-1.parquet")
    with serving_datasets(tmp_path / "hub", COMMIT, ("main", "v1")) as address:
        environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lines"] == [*([f"cat {i}", 1] for i in range(3)), *([f"dog {i}", "s"] for i in range(3))]
    assert found["columns"] == [["a", 1], ["b", "s"]]
    assert found["lost"].startswith("data: 'own/lines'")
    assert found["commits"] == [COMMIT, COMMIT]
