"""What a run reads and how it was chosen: in the result, its warnings, the page and the configuration."""

import dataclasses
import json

import pytest
import yaml

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.report.facts import facts
from softh_probe.run import run
from softh_probe.run.pipeline import CONFIG_YAML
from tests.helpers.corpora import LANGUAGES, TEXTS


def test_choices_of_reading_are_in_the_result_and_on_the_page(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"content": "the mat", "text": text, "meta": {"lang": lang}}
        for text, lang in zip(TEXTS, LANGUAGES, strict=True)
    ]
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode("utf-16"))
    result = run(config(data=str(path), labels=["input_unigram", "column:meta.lang"]), progress=False)
    stored = ProbeResult.load(config().out)
    for info in (result.info, stored.info):
        found = {choice["about"]: (choice["chosen"], choice["certain"]) for choice in info["choices"]}
        assert found["text_column"] == ("text", False)
        assert found["encoding"] == ("utf-16", True)
        assert any("text_column: text (by its name, though content" in warning for warning in info["warnings"])
    assert dict(facts(stored)["Choices made"])["encoding"] == "utf-16 (by its byte order mark)"
    plain = run(config(labels=["input_unigram", "column:language"], out=str(tmp_path / "plain")), progress=False)
    assert result.info["corpus"]["sha256"] == plain.info["corpus"]["sha256"]


def test_a_random_order_is_part_of_what_was_measured(config, tmp_path):
    results = [
        run(config(shuffle_seed=seed, max_documents=3, out=str(tmp_path / f"{seed}{again}")), progress=False)
        for seed, again in ((0, ""), (0, "again"), (1, ""), (None, ""))
    ]
    digests = [result.info["corpus"]["sha256"] for result in results]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert yaml.safe_load((tmp_path / "0" / CONFIG_YAML).read_text())["shuffle_seed"] == 0
    assert dict(facts(results[0])["Settings"])["shuffle_seed"] == "0"


def test_revision_and_commit_of_the_data_are_facts(config):
    result = run(config(), progress=False)
    assert result.info["corpus"]["data_commit"] is None
    result.info["corpus"] |= {"data_revision": "v1", "data_commit": "c0ffee"}
    assert dict(facts(result)["Corpus"])["data revision"] == "v1"
    assert dict(facts(result)["Corpus"])["data commit"] == "c0ffee"


def test_flags(config, tmp_path, capsys):
    given = config()
    words = ["run", f"--model={given.model}", f"--data={given.data}", "--n-anchors=20", "--no-report"]
    assert main([*words, f"--out={tmp_path / 'a'}", "--shuffle-seed=4", "--max-documents=3"]) == 0
    assert ProbeResult.load(tmp_path / "a").info["config"]["shuffle_seed"] == 4
    assert main([*words, f"--out={tmp_path / 'b'}", "--data-revision=main"]) == 2
    assert "data_revision: 'main', but" in capsys.readouterr().err
    with pytest.raises(InputError, match="shuffle_seed"):
        dataclasses.replace(given, shuffle_seed=2**63)
