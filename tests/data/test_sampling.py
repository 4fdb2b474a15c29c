"""Random order: a permutation, or a uniform sample, the same everywhere."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from scipy.stats import chisquare

from softh_probe.data.documents import read_documents
from softh_probe.data.sampling import shuffled

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
        sample = list(shuffled(range(20), seed, most=5))
        assert len(set(sample)) == 5
        drawn.update(sample)
        first[sample[0]] += 1
    assert chisquare([first[i] for i in range(20)]).pvalue > 1e-3
    assert chisquare([drawn[i] for i in range(20)]).pvalue > 1e-3
    assert chisquare(list(Counter(tuple(shuffled("abc", seed)) for seed in range(3000)).values())).pvalue > 1e-3


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

    assert len(list(shuffled(rows(), 0, most=10))) == 10
    assert most < 20
