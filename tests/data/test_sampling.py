"""Random order: a permutation, or a uniform sample, the same everywhere."""

import datetime
import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from softh_probe.data.documents import read_documents
from softh_probe.data.sampling import permuted, sample

ROWS = [{"text": f"document {i}", "n": i, "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(2000)]


@pytest.fixture
def data(tmp_path) -> str:
    for name, rows in (("a", ROWS[:700]), ("b", ROWS[700:])):
        (tmp_path / "set" / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "set")


def texts(data: str, **options) -> list:
    return [document.content for document in read_documents(data, text_column="text", **options)]


def test_all_rows_in_another_order(data):
    found = texts(data, shuffle_seed=0)
    assert found != texts(data)
    assert sorted(found) == sorted(texts(data))
    assert found == texts(data, shuffle_seed=0)
    assert found != texts(data, shuffle_seed=1)
    assert found != texts(data, shuffle_seed=-1)
    assert texts(data, shuffle_seed=1) != texts(data, shuffle_seed=-1)


@pytest.mark.parametrize("most", [1, 300, 2000, 9999])
def test_a_sample_begins_the_order_of_all(data, most):
    assert texts(data, shuffle_seed=3, max_documents=most) == texts(data, shuffle_seed=3)[:most]


def test_a_sample_is_uniform():
    """Each row is as likely as any other, at each place; over 4,000 seeds."""
    first, drawn = Counter(), Counter()
    for seed in range(4000):
        found = sample(range(20), seed, most=5)
        assert len(set(found)) == 5
        drawn.update(found)
        first[found[0]] += 1
    assert chisquare([first[i] for i in range(20)]).pvalue > 1e-3
    assert chisquare([drawn[i] for i in range(20)]).pvalue > 1e-3
    orders = Counter(tuple(permuted(zip("abc", range(3), strict=True), seed)) for seed in range(3000))
    assert len(orders) == 6
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_other_processes_draw_the_same(data):
    program = (
        "import sys; from softh_probe.data.documents import read_documents\n"
        "print([d.content for d in read_documents(sys.argv[1], text_column='text', shuffle_seed=7, max_documents=9)])"
    )
    done = subprocess.run([sys.executable, "-c", program, data], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(texts(data, shuffle_seed=7, max_documents=9))


def test_pairs_stay_together_and_labels_with_their_rows(data):
    found = list(
        read_documents(data, text_column="chosen,rejected", label_columns=["n"], shuffle_seed=0, max_documents=10)
    )
    assert len(found) == 20
    for chosen, rejected in zip(found[::2], found[1::2], strict=True):
        n = chosen.columns["n"]
        assert (chosen.content, rejected.content, rejected.columns["n"]) == (f"c{n}", f"r{n}", n)


def test_conversations_and_dates_in_another_order(tmp_path):
    days = [datetime.date(2020, 1, i) for i in range(1, 29)]
    chats = [[{"role": "user", "content": f"é {i}", "x": [None, {"y": 1.5}]}] for i in range(28)]
    pq.write_table(pa.table({"messages": chats, "day": days}), tmp_path / "d.parquet")
    plain = list(read_documents(str(tmp_path / "d.parquet"), label_columns=["day"]))
    found = list(read_documents(str(tmp_path / "d.parquet"), label_columns=["day"], shuffle_seed=0))
    assert found != plain
    in_order = sorted(found, key=lambda document: document.columns["day"])
    assert [(d.content, d.columns) for d in in_order] == [(d.content, d.columns) for d in plain]
    assert [document.row for document in found] == list(range(28))
    first = list(read_documents(str(tmp_path / "d.parquet"), label_columns=["day"], shuffle_seed=0, max_documents=5))
    assert first == found[:5]


def test_what_a_sample_keeps_is_bounded():
    kept = 0

    class Row:
        def __init__(self):
            nonlocal kept
            kept += 1

        def __del__(self):
            nonlocal kept
            kept -= 1

    most = 0

    def rows():
        nonlocal most
        for _ in range(5000):
            yield Row()
            most = max(most, kept)

    assert len(sample(rows(), 0, most=10)) == 10
    assert most < 20
