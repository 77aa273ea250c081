"""Open information extraction: the triples that a passage states, by a language model or by rule.

``ModelExtractor`` follows HippoRAG 2: two calls a passage, entities first, then triples given the entities, JSON both.
``RuleExtractor`` stands in where no strong model is at hand, as on the tiny profile; it is a configured choice, never a silent
one. Its entities are runs of capitalised words, hyphenated keys, numbers and UUIDs. A passage with a title relates the title to every
entity of its sentences; one without relates each entity of a sentence to the next. The predicate is what stands around them, and
the whole sentence, behind its title, is the statement by which the triple is found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from baselines.models import Reader

Triple = tuple[str, str, str]


@dataclass(frozen=True, order=True)
class Fact:
    """A normalised triple, and the text that stands for it where it is compared with questions."""

    triple: Triple
    statement: str


EXTRACTION_TOKENS = 2048  # the published bound on each of the two replies
TITLE_WORDS = 12
SHORT_SENTENCE_WORDS = 24  # up to here the predicate is all the rest of the sentence
PREDICATE_WORDS = 8
FUNCTION_WORDS = frozenset(
    ["a", "about", "after", "all", "also", "although", "an", "and", "another", "any", "are", "as", "at", "be", "because", "been", "before", "both", "but", "by", "can", "did", "do", "does", "during", "each", "for", "from", "had", "has", "have", "he", "her", "here", "his", "how", "i", "if", "in", "into", "is", "it", "its", "itself", "let", "many", "may", "more", "most", "much", "no", "not", "now", "of", "on", "one", "only", "or", "other", "our", "out", "over", "she", "since", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "through", "to", "under", "until", "up", "was", "we", "were", "what", "when", "where", "which", "while", "who", "whose", "why", "will", "with", "within", "would", "yes", "you", "your"]
)
_SENTENCE_END = re.compile(r"(?<!Mr)(?<!Dr)(?<!St)(?<!Jr)(?<!vs)(?<!\b[A-Z])(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n+")
_UUID = r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
_CAPITAL = r"[^\W\d_a-z][\w’'.&-]*\w|[^\W\d_a-z]"
_RUN = rf"(?:{_CAPITAL})(?:\s+(?:(?:of|the|de|la|von|van|der|del|di|du|&)\s+){{0,2}}(?:{_CAPITAL}))*"
_ENTITY = re.compile(rf"{_UUID}|\b[a-z]+(?:-[a-z]+)+\b|(?<!\w)(?:{_RUN})|\d[\d.,:]*\d|\d")
_COPULA = re.compile(r"\b(is|was|are|were)\s+(?:an?\s+|the\s+)?([^,.;:()]+)")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")

ENTITIES_PROMPT = """List the named entities of a passage: people, places, organisations, works, events, dates and quantities.
Reply with JSON alone, in the form of this example.
Passage: Radio City
Radio City is India's first private FM radio station and was started on 3 July 2001. It plays Hindi, English and regional songs.
Reply: {{"entities": ["Radio City", "India", "3 July 2001", "Hindi", "English"]}}
Passage: {passage}
Reply: """
TRIPLES_PROMPT = """List what a passage states as triples of subject, predicate and object. Each triple names at least one of the given
entities, better two; write names out in place of pronouns. Reply with JSON alone, in the form of this example.
Passage: Radio City
Radio City is India's first private FM radio station and was started on 3 July 2001.
Entities: ["Radio City", "India", "3 July 2001"]
Reply: {{"triples": [["Radio City", "located in", "India"], ["Radio City", "is", "private FM radio station"], ["Radio City", "started on", "3 July 2001"]]}}
Passage: {passage}
Entities: {entities}
Reply: """


class Extractor(Protocol):
    """What finds the facts of passages."""

    def facts(self, passages: Sequence[str]) -> list[list[Fact]]:
        """The facts of each passage, in the order of the text, repeats included."""


def normalised(phrase: str) -> str:
    """A phrase as graph nodes are named: lower-cased, everything but letters and digits a space (as published)."""
    return " ".join(re.sub(r"[\W_]+", " ", phrase.lower()).split())


def clean(triples: Any) -> list[Triple]:
    """Normalised triples out of whatever a model returned: those of three texts that leave a subject and an object."""
    result = []
    for triple in triples if isinstance(triples, list) else []:
        if isinstance(triple, list | tuple) and len(triple) == 3 and all(isinstance(part, str | int | float) for part in triple):
            subject, predicate, thing = (normalised(str(part)) for part in triple)
            if subject and thing:
                result.append((subject, predicate, thing))
    return result


def read_reply(text: str, key: str) -> Any:
    """The value of ``key`` in the first JSON object of a reply that has it; None where there is none."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            found, _ = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        if isinstance(found, dict) and key in found:
            return found[key]
    return None


class ModelExtractor:
    """Asks a model, once for each passage that the cache does not know.

    Args:
        cache: a JSON-lines file of passage hashes and triples, made where it is missing; None keeps nothing.
    """

    def __init__(self, reader: Reader, cache: Path | None) -> None:
        self.reader, self.cache = reader, cache
        self.calls = self.failures = 0  # replies without the JSON asked for count as failures: such a passage has no triples
        self._known: dict[str, list[Triple]] = dict(_read_cache(cache)) if cache and cache.exists() else {}

    def facts(self, passages: Sequence[str]) -> list[list[Fact]]:
        """As :class:`Extractor`; the statement of a triple is its three parts."""
        return [[Fact(triple, ", ".join(triple)) for triple in triples] for triples in self._triples(passages)]

    def _triples(self, passages: Sequence[str]) -> list[list[Triple]]:
        keys = [passage_hash(passage) for passage in passages]
        unknown = {key: passage for key, passage in zip(keys, passages, strict=True) if key not in self._known}
        if unknown:
            self._known.update(zip(unknown, self._ask(list(unknown.values())), strict=True))
            self._keep(list(unknown))
        return [self._known[key] for key in keys]

    def _ask(self, passages: list[str]) -> list[list[Triple]]:
        messages = [ENTITIES_PROMPT.format(passage=passage) for passage in passages]
        entities = [self._value(reply.text, "entities") for reply in self.reader.generate(messages, EXTRACTION_TOKENS)]
        messages = [
            TRIPLES_PROMPT.format(passage=passage, entities=json.dumps(found if isinstance(found, list) else [], ensure_ascii=False))
            for passage, found in zip(passages, entities, strict=True)
        ]
        replies = self.reader.generate(messages, EXTRACTION_TOKENS)
        self.calls += 2 * len(passages)
        return [clean(self._value(reply.text, "triples")) for reply in replies]

    def _value(self, text: str, key: str) -> Any:
        found = read_reply(text, key)
        self.failures += found is None
        return found

    def _keep(self, keys: list[str]) -> None:
        if self.cache is None:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with open(self.cache, "a") as lines:
            for key in keys:
                lines.write(json.dumps({"passage": key, "triples": self._known[key]}) + "\n")


def passage_hash(passage: str) -> str:
    """What the cache knows a passage by; another wording of the prompts is another extraction."""
    return hashlib.sha256("\x00".join([ENTITIES_PROMPT, TRIPLES_PROMPT, passage]).encode()).hexdigest()


def _read_cache(path: Path) -> Iterator[tuple[str, list[Triple]]]:
    """Its whole lines; a line that an interrupted run cut short is asked for again."""
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            yield row["passage"], [tuple(triple) for triple in row["triples"]]
        except (ValueError, KeyError, TypeError):
            continue


class RuleExtractor:
    """Finds facts by how words are written; see the module's docstring."""

    def facts(self, passages: Sequence[str]) -> list[list[Fact]]:
        """As :class:`Extractor`."""
        return [list(_stated(passage)) for passage in passages]


def _stated(passage: str) -> Iterator[Fact]:
    title, body = split_title(passage)
    inner = _inner_names(body)
    for sentence in sentences(body):
        spans = entity_spans(sentence, inner)
        statement = f"{title}: {sentence}" if title else sentence
        for triple in _of_title(title, sentence, spans) if title else _of_neighbours(sentence, spans):
            for cleaned in clean([triple]):
                yield Fact(cleaned, statement)


def _of_title(title: str, sentence: str, spans: list[tuple[int, int]]) -> Iterator[Triple]:
    own = f" {normalised(title)} "
    named = [span for span in spans if f" {normalised(sentence[slice(*span)])} " not in own]
    for start, end in named:
        yield title, " ".join(_WORD.findall(sentence[:start])[-PREDICATE_WORDS:]) or "is", sentence[start:end]
    # what a title is said to be links a passage without names to its title
    if not named and (said := _COPULA.search(sentence)):
        yield title, said.group(1), " ".join(_WORD.findall(said.group(2))[:PREDICATE_WORDS])


def _of_neighbours(sentence: str, spans: list[tuple[int, int]]) -> Iterator[Triple]:
    short = len(_WORD.findall(sentence)) <= SHORT_SENTENCE_WORDS
    for (start, end), (next_start, next_end) in pairwise(spans):
        between = sentence[end:next_start]
        rest = " ".join([sentence[:start], between, sentence[next_end:]]) if short else between
        yield sentence[start:end], " ".join(_WORD.findall(rest)), sentence[next_start:next_end]


def _inner_names(text: str) -> set[str]:
    """Entities that a text has within its sentences, where a capital is no accident of place."""
    return {match.group() for match in _ENTITY.finditer(text) if text[: match.start()].rstrip()[-1:].isalnum()}


def sentences(text: str) -> list[str]:
    """The sentences of a text, without what separates them."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def split_title(passage: str) -> tuple[str, str]:
    """Title and text of a passage whose first line is a title; an empty title where it is not."""
    first, newline, rest = passage.partition("\n")
    first = first.strip()
    if newline and first and first[-1] not in ".!?:;," and len(first.split()) <= TITLE_WORDS and rest.strip():
        return first, rest
    return "", passage


def entity_spans(sentence: str, inner: set[str]) -> list[tuple[int, int]]:
    """Where the entities of a sentence stand.

    A function word that a sentence begins with is no part of a name, and one capitalised word alone at its beginning is a
    name only where ``inner``, the entities seen within sentences, has it too.
    """
    spans = []
    begin = len(sentence) - len(sentence.lstrip(" \"'(["))
    for match in _ENTITY.finditer(sentence):
        start, end = match.span()
        if match.group().endswith(("'s", "’s")):
            end -= 2
        while (word := _WORD.match(sentence, start, end)) and word.group().lower() in FUNCTION_WORDS and word.group()[0].isupper():
            start = word.end() + len(sentence[word.end() : end]) - len(sentence[word.end() : end].lstrip())
        if start >= end:
            continue
        found = sentence[start:end]
        if start == begin and found[0].isupper() and " " not in found and "-" not in found and found not in inner:
            continue
        spans.append((start, end))
    return spans
