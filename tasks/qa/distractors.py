"""Real text to get lost in: a set's other passages, Wikipedia passages, prose; each line once, without answers."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

from msa_base.errors import UserError
from tasks.base import CorpusRequest
from tasks.metrics import normalise
from tasks.parts import wording
from tasks.parts.prose import read_sentences
from tasks.parts.tail import UnavailableData
from tasks.qa.documents import Chunker, load_set
from tasks.qa.records import bare_key, bare_text

DOCUMENTATION = "documentation"  # folder of the data directory: unpacked documentation packages
PROSE = "prose"  # the evaluation half of the machine's documentation prose
TEXT_ENDINGS = (".txt", ".md", ".rst", ".html", ".htm", ".xhtml", ".info", ".dict.dz")
MIN_LETTERS = 4  # an answer of one word with fewer characters stands in too much text to be looked for
GET_MORE = (
    "put more prose there: apt-get download PACKAGE && dpkg -x PACKAGE_*.deb {place}/PACKAGE, for documentation "
    "packages such as anarchism, dict-gcide, linux-doc-6.1, rust-doc, ghc-doc, python3.11-doc"
)
BLOCK_CHARACTERS = 20_000  # of a long text that are cut at a time: a dictionary is one file
BATCH = 256  # texts held at a time: a page of documentation may be long
_TOO_COMMON = frozenset(["yes", "no", "none", "true", "false"])
_LINE = re.compile(r"\s*\n\s*")


class Leaks:
    """Finds answers in text, as whole tokens after SQuAD's normalisation, Chinese by character."""

    def __init__(self, answers: Iterable[str]) -> None:
        self.unchecked: set[str] = set()
        self._by_first: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for answer in answers:
            tokens = tuple(normalise(answer).split())
            if not tokens or (len(tokens) == 1 and (len(tokens[0]) < MIN_LETTERS or tokens[0] in _TOO_COMMON)):
                self.unchecked.add(answer)
            else:
                self._by_first[tokens[0]].add(tokens)

    @property
    def checked(self) -> int:
        return sum(map(len, self._by_first.values()))

    def holds(self, text: str) -> bool:
        tokens = tuple(normalise(text).split())
        return any(
            tokens[place : place + len(answer)] == answer
            for place, token in enumerate(tokens)
            for answer in self._by_first.get(token, ())
        )


class SeenLines:
    """Lets every line through once, whatever its case, punctuation and white space."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def is_new(self, line: str) -> bool:
        """Whether a line comes for the first time; one without letters or digits never does."""
        key = bare_key(line)
        new = bool(bare_text(line)) and key not in self._seen
        self._seen.add(key)
        return new

    def text(self, text: str) -> str:
        """The lines of a text that are new."""
        return "\n".join(line for line in _LINE.split(text.strip()) if self.is_new(line))


class _Text(HTMLParser):
    """The text of an HTML page, block by block."""

    BLOCKS = (
        *("p", "div", "li", "br", "tr", "pre", "dd", "dt", "table", "ul", "ol", "section", "title"),
        *("h1", "h2", "h3", "h4", "h5", "h6"),
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def _meet(self, tag: str, step: int) -> None:
        if tag in ("script", "style"):
            self._silent = max(0, self._silent + step)
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_starttag(self, tag, attrs) -> None:
        self._meet(tag, 1)

    def handle_endtag(self, tag) -> None:
        self._meet(tag, -1)

    def handle_data(self, data) -> None:
        if not self._silent:
            self.parts.append(data)


def read_page(path: Path) -> str:
    """The text of a documentation file: plain or HTML, gzipped or not. Raises UserError: broken gzip."""
    raw = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error}); unpack its package again") from None
    text = raw.decode("utf-8", errors="replace")
    if any(ending in path.name for ending in (".html", ".htm", ".xhtml")):
        page = _Text()
        page.feed(text)
        text = "".join(page.parts)
    return text


def documentation(place: Path) -> Iterator[str]:
    """The pages below a folder, in sorted order."""
    for path in sorted(place.rglob("*"), key=lambda item: item.as_posix()):
        if path.is_file() and not path.is_symlink() and path.name.removesuffix(".gz").endswith(TEXT_ENDINGS):
            yield read_page(path)


def blocks(text: str) -> Iterator[str]:
    """A text in parts of whole lines, none much longer than BLOCK_CHARACTERS but where a line is."""
    block: list[str] = []
    size = 0
    for line in text.split("\n"):
        if size > BLOCK_CHARACTERS:
            yield "\n".join(block)
            block, size = [], 0
        block.append(line)
        size += len(line) + 1
    yield "\n".join(block)


def source_texts(request: CorpusRequest, name: str) -> Iterator[str]:
    """The texts of PROSE, DOCUMENTATION or a set of the table. Raises UnavailableData: the machine lacks them."""
    if name == PROSE:
        yield from blocks("\n".join(read_sentences(request.prose, wording.EVALUATION)))
    elif name == DOCUMENTATION:
        place = (request.data or Path("data")) / DOCUMENTATION
        if not place.is_dir():
            raise UnavailableData(f"{place}: not there; {GET_MORE.format(place=place)}")
        for page in documentation(place):
            yield from blocks(page)
    else:
        yield from load_set(request, name, None)[1].passages.values()


def clean(texts: Iterable[str], chunker: Chunker, once: SeenLines, leaks: Leaks, dropped: Counter) -> Iterator[str]:
    """Documents of the lines that are new; one that holds an answer is left out. ``dropped`` counts both."""
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        kept = [text for text in map(once.text, batch) if text]
        dropped["said before"] += len(batch) - len(kept)
        for chunk in (chunk for chunks in chunker.chunks(kept) for chunk in chunks):
            if leaks.holds(chunk):
                dropped["holds an answer"] += 1
            else:
                yield chunk
