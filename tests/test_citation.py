"""How to cite: CITATION.cff and the entries in README.md name the same works."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entries():
    """The BibTeX entries of README.md, by key: fields by name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("```bibtex\n")[2].partition("```")[0]
    found = re.findall(r"@\w+\{(\w+),\n(.*?)\n\}", text, flags=re.DOTALL)
    return {key: dict(re.findall(r"(\w+) = \{(.*)\}", fields)) for key, fields in found}


def test_it_has_what_the_format_asks_for(citation):
    assert {"cff-version", "message", "title", "authors", "type", "version", "license"} <= citation.keys()
    assert citation["version"] == version("softh-probe")
    for work in (citation, *citation["references"]):
        assert work["authors"]
        assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in work["authors"])


def test_entries_for_bibtex_name_the_same_works(citation, entries):
    works = [citation, *citation["references"]]
    assert len(entries) == len(works)
    for work, fields in zip(works, entries.values(), strict=True):
        assert fields["title"].replace("{", "").replace("}", "") == work["title"]
        if "url" in work:
            assert fields["url"] == work["url"]
            assert fields["year"] == str(work["year"])
            names = [f"{author['family-names']}, {author['given-names']}" for author in work["authors"]]
            assert fields["author"] == " and ".join(names)
