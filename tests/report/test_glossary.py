"""The glossary: README and pages have the same words, and every metric and column is explained."""

import re
from pathlib import Path

import pandas as pd
import pytest

from softh_probe.analysis.paired import compare_results
from softh_probe.layer_means import MEANS_OF_RATIOS
from softh_probe.metrics import METRICS
from softh_probe.report import glossary
from softh_probe.report.glossary import GLOSSARIES, markdown_of
from softh_probe.report.page import comparison_page, run_page, sweep_page
from softh_probe.report.spreads import html_of
from softh_probe.report.sweep_files import read_sweep
from softh_probe.sweep import collection
from tests.helpers.corpora import corpus_of
from tests.helpers.models import tiny_llama
from tests.helpers.position_bins import planned_in_bins, tokens_of_lengths
from tests.helpers.probes import NAMES, run_planned
from tests.helpers.report_data import result_of, sampled, save, sweep_folder, with_chance

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def result():
    return result_of(tiny_llama(), labels=NAMES[:2], anchor_sets=1)


def names_in(of: glossary.Glossary) -> list[str]:
    return [name for entry in of.entries for name in re.findall(r"`([^`]+)`", entry.names)]


def test_readme_has_its_words():
    text = README.read_text(encoding="utf-8")
    for of in GLOSSARIES:
        assert markdown_of(of) in text, of.heading


def test_pages_have_its_words(result, tmp_path):
    sweep = sweep_page(read_sweep(sweep_folder(tmp_path / "sweep", n_checkpoints=2)))
    for page in (run_page(result), comparison_page([result, result], ["a", "b"]), sweep):
        assert 'href="#glossary"' in page
        section = page.split('<section id="glossary">')[1].split("</section>")[0]
        for of in GLOSSARIES:
            assert f"<summary>{of.heading}</summary>" in section
            for entry in of.entries:
                row = f'<th scope="row">{html_of(entry.names)}</th><td class="text">{html_of(entry.says)}</td>'
                assert row in section


def test_every_metric_is_explained_once():
    assert sorted(names_in(glossary.METRICS)) == sorted(
        [*(metric.name for metric in METRICS), *MEANS_OF_RATIOS.values()]
    )


def test_every_column_is_explained(result):
    explained = names_in(glossary.COLUMNS)
    assert len(explained) == len({*explained})
    of_sites = result_of(tiny_llama(), labels=NAMES[:1], sites=("residual", "mlp"), anchor_sets=1)
    names = ["input_unigram"]
    corpus = corpus_of(tokens_of_lengths([9] * 8))
    bins = run_planned(tiny_llama(), corpus, names, 64, plan=planned_in_bins(corpus, names, 64), anchor_sets=1).result()
    tables = [
        sampled(with_chance(result), "input_unigram").to_pandas(),
        of_sites.to_pandas(),
        bins.by_position(),
        compare_results(result, result),
    ]
    columns = {column for table in tables for column in table}
    columns |= {*collection.SCHEMA.names, *(column.name for column in collection.OPTIONAL)}
    assert columns == {*explained}


def test_the_label_set_of_entropy_is_empty_and_read_as_it_says(result, tmp_path):
    assert {*result.to_pandas().query("metric == 'entropy'").label_set} == {""}
    folder = save(result, tmp_path)
    parquet, csv = pd.read_parquet(folder / "layers.parquet"), pd.read_csv(folder / "layers.csv")
    assert csv.label_set.isna().sum() == (parquet.label_set == "").sum() > 0
    assert csv.fillna({"label_set": ""}).label_set.equals(parquet.label_set)
