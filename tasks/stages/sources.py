"""Real prose that every machine has: the documentation inside the standard library and the installed, pinned packages.

Docstrings and block comments are cleaned to sentences, each sentence is kept once, and every
source file goes wholly to training or wholly to evaluation::

    python -m tasks.stages.sources --profile tiny
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.paths import SEAL
from msa_base.seal import Seal, file_digest, write_seal
from msa_base.stages import Stages
from msa_base.tables import write_json, write_table
from tasks.parts.splitting import split_sentences

STANDARD_LIBRARY = "python"
PACKAGES = (  # of site-packages; an absent one is left out and recorded as such
    *("numpy", "scipy", "pandas", "torch", "transformers", "matplotlib", "sympy", "networkx", "mpmath", "sqlalchemy"),
    *("setuptools", "fontTools", "datasets", "huggingface_hub", "wandb", "docutils", "pydantic", "rich", "pyarrow"),
)
SPLITS = ("train", "evaluation")
TRAIN_PERCENT = 55  # evaluation must fill a context of 1M tokens without repeating itself
MIN_WORDS, MAX_WORDS = 5, 56
MIN_LETTERS = 0.85  # share of letters among the characters of a sentence that are not spaces
MIN_PLAIN_WORDS = 0.75  # share of words made of letters alone

_TESTS = re.compile(r"(^|/)(_?tests?|testing|idlelib|site-packages|__pycache__)(/|\.py$)|(^|/)test_|_test\.py$")
_TRIPLE_QUOTED = re.compile(r"(\"\"\"|''')(.*?)\1", re.DOTALL)
_COMMENTS = re.compile(r"(?:^[ \t]*#(?![!#:]|-\*-).*\n){2,}", re.MULTILINE)
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)(?:<[^`]*>)?`")
_MARKUP = re.compile(r"`+|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)")
_FIELD = re.compile(r"^:\w+[^:]*:\s*|^[-*+•]\s+|^\(?\d+[.)]\s+|^\[\d+\]\s+|^\.\. \w+:: ?\S* ?|^@\w+\s.*?:\s")
_ENTRY = re.compile(r"^[\w.*, ()/]{1,60}\s?(\([^)]*\))?\s*:($|\s)")
_NOT_PROSE = re.compile(r"[{}\[\]<>=\\|@$~^*#&+_\t]|::|\.\.|//|--|>>>|[^\x20-\x7e]")
_PLAIN_WORD = re.compile(r"^[\"'(]?[A-Za-z]+('[a-z]+|-[A-Za-z]+)?[\"')]?[,;:.!?)\"']*$")


def _paragraphs(text: str) -> Iterator[str]:
    """Split documentation at blank lines, changes of indentation, list items and table-like lines."""
    lines: list[str] = []
    indent = 0
    for line in text.expandtabs().splitlines():
        bare = line.strip()
        here = len(line) - len(line.lstrip())
        starts_item = bool(_FIELD.match(bare))
        if not bare or here != indent or starts_item or _ENTRY.match(bare):
            if lines:
                yield " ".join(lines)
            lines = []
        indent = here
        bare = _FIELD.sub("", bare)
        if starts_item:
            indent = here + len(line.strip()) - len(bare)  # the item's text continues under its first word
        if bare:
            lines.append(bare)
    if lines:
        yield " ".join(lines)


def is_prose(sentence: str) -> bool:
    """Whether a sentence reads as English: letters mostly, plain words mostly, a capital first, an end mark last."""
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or sentence[-1] not in ".!?" or not sentence[0].isupper():
        return False
    if _NOT_PROSE.search(sentence) or max(map(len, words)) > 24:
        return False
    characters = sentence.replace(" ", "")
    if sum(map(str.isalpha, characters)) < MIN_LETTERS * len(characters):
        return False
    return sum(bool(_PLAIN_WORD.match(word)) for word in words) >= MIN_PLAIN_WORDS * len(words)


def sentences(text: str) -> Iterator[str]:
    """The prose sentences of a docstring or comment block, markup removed and whitespace collapsed."""
    for paragraph in _paragraphs(text):
        paragraph = _MARKUP.sub("", _ROLE.sub(r"\1", paragraph))
        yield from filter(is_prose, split_sentences(" ".join(paragraph.split())))


def documentation(source: str) -> Iterator[str]:
    """Triple-quoted strings and block comments of a Python source, unindented.

    Found by pattern, not by parsing: many packages attach documentation elsewhere than in docstrings, and a pattern
    reads 190 MB of sources in seconds. What is no documentation falls to :func:`is_prose`.
    """
    for match in _TRIPLE_QUOTED.finditer(source):
        yield inspect.cleandoc(match[2])
    for block in _COMMENTS.findall(source):
        yield "\n".join(line.strip().lstrip("#").removeprefix(" ") for line in block.splitlines())


def source_files() -> Iterator[tuple[str, Path]]:
    """(name relative to the package's parent, path) of every Python source considered, in sorted order."""
    roots = [(STANDARD_LIBRARY, Path(sysconfig.get_paths()["stdlib"]))]
    libraries = Path(sysconfig.get_paths()["purelib"])
    roots += [(name, libraries / name) for name in sorted(PACKAGES, key=str.lower)]
    for name, root in roots:
        for path in sorted(root.rglob("*.py"), key=lambda item: item.as_posix()):
            relative = path.relative_to(root).as_posix()
            if not _TESTS.search(relative):
                yield f"{name}/{relative}", path


def split_of(source: str) -> str:
    """The split of a source file, from a hash of its relative name alone."""
    digest = hashlib.sha256(source.encode()).digest()
    return SPLITS[0] if int.from_bytes(digest[:4], "big") % 100 < TRAIN_PERCENT else SPLITS[1]


def collect(files: Iterable[tuple[str, Path]], progress: bool = False) -> dict[str, list[dict]]:
    """Sentences of all files by split, each sentence once over both splits (the first file in order keeps it)."""
    seen: set[str] = set()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    files = list(files)
    for name, path in tqdm(files, desc="prose", unit="file", mininterval=1, disable=not progress, file=sys.stderr):
        kept = []
        for text in documentation(path.read_text(encoding="utf-8", errors="replace")):
            for sentence in sentences(text):
                key = sentence.casefold()
                if key not in seen:
                    seen.add(key)
                    kept.append(sentence)
        if kept:
            rows[split_of(name)].append({"source": name, "sentences": kept})
    return rows


def versions() -> dict[str, str | None]:
    """Version of each distribution read, None where it is not installed."""
    found: dict[str, str | None] = {STANDARD_LIBRARY: sys.version.split()[0], **dict.fromkeys(PACKAGES)}
    for distribution in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    return found


def main() -> None:
    arguments = experiment_parser(__doc__).parse_args()
    experiment, paths = open_experiment(arguments)
    directory = paths.prose
    made_from = Stages(experiment).prose().of(paths.root, versions=versions())
    if Seal.current(directory / SEAL, made_from):
        return
    rows = collect(source_files(), progress=True)
    summary: dict = {"versions": versions(), "splits": {}}
    for split in SPLITS:
        path = directory / f"{split}.parquet"
        write_table("prose", rows[split], path)
        texts = [sentence for row in rows[split] for sentence in row["sentences"]]
        words = sum(len(text.split()) for text in texts)
        summary["splits"][split] = {
            "sha256": file_digest(path),
            "sentences": len(texts),
            "words": words,
            "sources": [row["source"] for row in rows[split]],
        }
        print(f"{path}: {len(rows[split]):,} sources, {len(texts):,} sentences, {words:,} words")
    write_json(summary, directory / "sources.json")
    write_seal(directory / SEAL, made_from, ["train.parquet", "evaluation.parquet", "sources.json"])


if __name__ == "__main__":
    run_command(main)
