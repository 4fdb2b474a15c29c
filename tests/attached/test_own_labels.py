"""Labels of one's own as strings: the values of integers, under the strings' names, in every part of a measurement."""

import io

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.distributed import gather
from softh_probe.errors import InputError
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import documents
from tests.helpers.probes import batches, reference, value

NAMES = ["de", "en", "fr", "de", "de", "cs", "fr", "en", "de", "en", "fr", "de"]
M = 20


def measure(model, docs, labels, probe=None, size=4) -> SoftEntropyProbe:
    """Feed documents in batches, with one label each."""
    probe = probe or SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=2)
    with probe, torch.no_grad():
        for i, batch in enumerate(batches(docs, size)):
            with probe.labelled(language=labels[size * i : size * (i + 1)]):
                model(**batch)
    return probe


def shown(result: ProbeResult) -> dict[str, list[float]]:
    """Count, and entropy in layer.2, of each label."""
    table = result.conditional_entropy("language", "nats").query("name == 'layer.2'").set_index("label")
    return {label: [row["count"], pytest.approx(row.value, abs=1e-6)] for label, row in table.iterrows()}


def test_strings_have_the_values_of_the_slow_way_and_show_their_names(model, tmp_path):
    docs = documents(12)
    expected = reference(model, docs, [], {"language": NAMES})
    one_set = SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1)
    single = measure(model, docs, NAMES, one_set).result()
    names, q = np.array(expected.labels["language"]), expected.q["layer.2"]
    assert single.tensors["labelled_positions"][0].tolist() == [len(names)]
    information = references.mutual_information(q, names.tolist())
    assert value(single, "layer.2", "mutual_information", "language") == pytest.approx(information, abs=1e-6)
    assert shown(single) == {
        name: [(names == name).sum(), references.entropy(q[names == name].mean(0))] for name in ("de", "en", "fr", "cs")
    }
    single.save(tmp_path)
    assert shown(ProbeResult.load(tmp_path)) == shown(single)


@pytest.mark.parametrize("form", ["tuple", "array", "objects", "series", "category", "index", "numbers"])
def test_columns_of_tables_and_arrays_are_read_as_lists_are(model, form):
    docs, labels = documents(4), ["de", None, "en", "de"]
    rows = pd.Series(labels, index=[7, 5, 3, 1])
    given, names = {
        "tuple": (tuple(labels), "de en"),
        "array": (np.array(["de", "x", "en", "de"]), "de x en"),
        "objects": (np.array(labels, dtype=object), "de en"),
        "series": (rows, "de en"),
        "category": (rows.astype("category"), "de en"),
        "index": (rows.astype("string"), "de en"),
        "numbers": ([3, None, 4, 3], "3 4"),
    }[form]
    result = measure(model, docs, given).result()
    assert [label for _, label in result.labels] == names.split()
    lengths = [len(d) for d in docs]
    assert result.tensors["label_positions"][0, 0] == lengths[0] + lengths[3]
    assert result.tensors["labelled_positions"][0, 0] == sum(lengths) - (form != "array") * lengths[1]


def test_nested_lists_label_tokens(model):
    (batch,) = batches(documents(3), 3)
    numbers = torch.arange(batch["input_ids"].numel()).view(batch["input_ids"].shape) % 4 - 1
    words = [[None if n < 0 else "abc"[n] for n in row] for row in numbers.tolist()]
    results = []
    for labels in (numbers, words, np.array(words, dtype=object)):
        probe = SoftEntropyProbe(model, labels=["input_unigram"], n_anchors=M, anchor_sets=1)
        with probe, torch.no_grad(), probe.labelled(part=labels):
            model(**batch)
        results.append(probe.result())
    assert sorted(label for _, label in results[1].labels) == ["a", "b", "c"]
    for result in results[1:]:
        assert_same_values(result.to_pandas(), results[0].to_pandas())
        assert "p_value" not in result.to_pandas()  # labels of positions


def test_parts_merge_and_states_continue_by_name(model):
    """The second part meets its labels in another order, and one that the first has not."""
    docs = documents(12)
    whole = measure(model, docs, NAMES)
    first, second = measure(model, docs[:5], NAMES[:5]), measure(model, docs[5:], NAMES[5:])
    saved = io.BytesIO()
    torch.save(second.state_dict(), saved)
    saved.seek(0)
    loaded = first.new_like()
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    merged = gather(first)
    merged.merge(loaded)
    continued = measure(model, docs[5:], NAMES[5:], gather(first))
    expected = whole.result()
    for probe in (merged, continued):
        result = probe.result()
        assert shown(result) == shown(expected)
        assert_same_values(result.to_pandas(), expected.to_pandas())
        assert result.info["document_labels"] == expected.info["document_labels"]
        assert result.to_pandas().p_value.dropna().tolist() == pytest.approx(
            expected.to_pandas().p_value.dropna().tolist(), abs=0.1
        )
    assert shown(second.result()).keys() == {"de", "en", "fr", "cs"}  # a part stays as it is


def test_integers_and_strings_are_not_one_set(model):
    docs = documents(4)
    numbers = measure(model, docs, torch.tensor([0, 1, 0, 1]))
    strings = measure(model, docs, ["0", "1", "0", "1"])
    before = numbers.sums
    with pytest.raises(InputError, match="merge: language has integers here and strings in the other; label both"):
        numbers.merge(strings)
    torch.testing.assert_close(numbers.sums, before)
    with pytest.raises(InputError, match="language: expected integers, as before, got strings; give"):
        measure(model, docs, NAMES, numbers)
    with pytest.raises(InputError, match="language: expected strings, as before, got integers"):
        measure(model, docs, [1, 2, 3, 4], gather(strings))
    measure(model, docs, [None] * 4, strings)  # no label is no other kind
    assert shown(strings.result()).keys() == {"0", "1"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 3], "expected strings alone or integers alone, got 'a' and 3; write all of them as strings"),
        ("de", r"expected strings or integers, \[B\] or \[B, T\], .*, got 'de'$"),
        ([["a", "b"], ["c"]], "expected as many labels for each sequence, got 2, 1; give one for each token"),
        ([0.5, 1.0], r"got 0.5 \(float\) among them"),
        (np.array([0.5, np.nan]), r"got 0.5 \(float\) among them"),
        (torch.zeros(2), r"got torch.float32 \[2\]"),
        ([b"a", b"b"], r"got b'a' \(bytes\) among them"),
        ([2**70, 1], "expected integers of 64 bits, got 1180591620717411303424; write them as strings"),
        ({"a": 1}, "got dict"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_label_is_told_where_the_block_begins(model, labels, message):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.raises(InputError, match=f"language: .*{message}") as error, probe, probe.labelled(language=labels):
        raise AssertionError
    assert "\n" not in str(error.value)


def test_strings_follow_the_rows_that_generate_makes(model):
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": True, "num_return_sequences": 3}
    probe = SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1)
    with probe, probe.labelled(kind=["question", "order"]):
        model.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, **options)
    counts = probe.result().conditional_entropy("kind").query("name == 'layer.1'").set_index("label")["count"]
    assert counts.to_dict() == {"question": 3 * 5, "order": 3 * 5}
