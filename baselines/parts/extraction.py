"""Open information extraction: the triples that a passage states, by a language model or by rule.

``ModelExtractor`` has the steps of HippoRAG 2: two calls a passage, entities first, then triples given the entities,
JSON both; docs/RIVALS.md has what differs from its release.
``RuleExtractor`` stands in where no strong model is at hand, as on the tiny profile; it is a configured choice, never a
silent one. Its entities are runs of capitalised words, hyphenated keys, numbers and UUIDs. A passage with a title
relates the title to every entity of its sentences; one without relates each entity of a sentence to the next. The
predicate is what stands around them, and the whole sentence, behind its title, is the statement by which the triple is
found.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from baselines.parts.models import ReadingModel
from msa_base.json_lines import unique_keys
from msa_base.replies import Losses, said
from msa_base.seal import value_digest

Triple = tuple[str, str, str]


@dataclass(frozen=True, order=True)
class StatedTriple:
    """A normalised triple, and the text that stands for it where it is compared with questions."""

    triple: Triple
    statement: str


EXTRACTION_TOKENS = 2048  # the release's bound on each of the two replies
MOST_OBJECTS = 1000  # in a reply, that are looked at
NO_LIST, LEFT_OUT = "no_json_list", "items_left_out"  # what is lost: of a reply its list, of a list what is no item
CLOSED = "brackets_closed"  # what is repaired of a reply that was cut
PAIRS = {"{": "}", "[": "]"}
TITLE_WORDS = 12
SHORT_SENTENCE_WORDS = 24  # up to here the predicate is all the rest of the sentence
PREDICATE_WORDS = 8
_FUNCTION_WORDS = """
a about after all also although an and another any are as at be because been before both but by can did do does during
each for from had has have he her here his how i if in into is it its itself let many may more most much no not now of
on one only or other our out over she since so some such than that the their them then there these they this those
through to under until up was we were what when where which while who whose why will with within would yes you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_SENTENCE_END = re.compile(
    r"(?<!Mr)(?<!Dr)(?<!St)(?<!Jr)(?<!vs)(?<!\b[A-Z])(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n+"
)
_UUID = r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
_CAPITAL = r"[^\W\d_a-z][\w’'.&-]*\w|[^\W\d_a-z]"
_RUN = rf"(?:{_CAPITAL})(?:\s+(?:(?:of|the|de|la|von|van|der|del|di|du|&)\s+){{0,2}}(?:{_CAPITAL}))*"
_ENTITY = re.compile(rf"{_UUID}|\b[a-z]+(?:-[a-z]+)+\b|(?<!\w)(?:{_RUN})|\d[\d.,:]*\d|\d")
_COPULA = re.compile(r"\b(is|was|are|were)\s+(?:an?\s+|the\s+)?([^,.;:()]+)")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")

ENTITIES_PROMPT = """List the named entities of a passage: people, places, organisations, works, events, dates and \
quantities.
Reply with JSON alone, in the form of this example.
Passage: Radio City
Radio City is India's first private FM radio station and was started on 3 July 2001. It plays Hindi, English and \
regional songs.
Reply: {{"entities": ["Radio City", "India", "3 July 2001", "Hindi", "English"]}}
Passage: {passage}
Reply: """
TRIPLES_PROMPT = """List what a passage states as triples of subject, predicate and object. Each triple names at \
least one of the given
entities, better two; write names out in place of pronouns. Reply with JSON alone, in the form of this example.
Passage: Radio City
Radio City is India's first private FM radio station and was started on 3 July 2001.
Entities: ["Radio City", "India", "3 July 2001"]
Reply: {{"triples": [["Radio City", "located in", "India"], ["Radio City", "is", "private FM radio station"], ["Radio \
City", "started on", "3 July 2001"]]}}
Passage: {passage}
Entities: {entities}
Reply: """


def normalised(phrase: str) -> str:
    """A phrase as graph nodes are named: lower-cased, what is no letter or digit of any script becomes one space."""
    return " ".join(re.sub(r"[\W_]+", " ", phrase.lower()).split())


def clean(triples: list) -> list[Triple]:
    """Normalised triples out of what a model listed: those of three texts that leave a subject and an object.

    A triple that is listed twice in one writing is taken once.
    """
    texts = dict.fromkeys(tuple(map(str, triple)) for triple in triples if is_triple(triple))
    return [tuple(map(normalised, parts)) for parts in texts]


def is_triple(value: object) -> bool:
    """Whether an item is three texts or numbers, with a subject and an object."""
    parts = value if isinstance(value, list | tuple) else ()
    if len(parts) != 3 or not all(isinstance(part, str | int | float) for part in parts):
        return False
    return all(normalised(str(part)) for part in (parts[0], parts[2]))


def find_list(text: str, key: str) -> list | None:
    """The list under ``key`` in the first JSON object of a reply that has the key; None where there is none.

    What a model says to itself is no part of its reply.
    """
    decoder, text = json.JSONDecoder(object_pairs_hook=unique_keys), said(text).text
    for match in itertools.islice(re.finditer(r"\{", text), MOST_OBJECTS):
        try:
            found, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and key in found:
            return found[key] if isinstance(found[key], list) else None
    return None


def closed(text: str) -> str:
    """A reply of JSON that was cut: without what stands behind its last comma, its open brackets closed.

    As the release does it (``utils/llm_utils.py: fix_broken_generated_json``).
    """
    head, comma, _ = said(text).text.rpartition(",")
    open_brackets: list[str] = []
    text = head if comma else said(text).text
    for bracket in re.findall(r"[{}\[\]]", re.sub(r'"(?:[^"\\]|\\.)*(?:"|$)', "", text, flags=re.DOTALL)):
        if bracket in PAIRS:
            open_brackets.append(bracket)
        elif open_brackets and PAIRS[open_brackets[-1]] == bracket:
            open_brackets.pop()
    return text + "".join(PAIRS[bracket] for bracket in reversed(open_brackets))


def ask_for_lists(reader: ReadingModel, messages: list[str], key: str, max_new_tokens: int) -> list[list | None]:
    """What :func:`find_list` finds in the reply to each message."""
    return [find_list(reply.text, key) for reply in reader.generate(messages, max_new_tokens)]


@dataclass(frozen=True)
class Extracted:
    """What a model said of a passage: its triples, and how much of its replies was lost or repaired, by kind."""

    triples: list[Triple]
    lost: dict[str, int]
    repaired: dict[str, int]


class ModelExtractor:
    """Asks a model once for each passage that is not in ``cache``; a reply without JSON states nothing, and is counted.

    One that was cut at its limit is repaired as the release does it, and counted.

    The cache is a JSON-lines file, made where it is missing; None keeps nothing. A line answers for the model (its
    ``identity``, or what is given for one that says none), the wording, the budget and the passage. One that is not as
    it was written is asked for again.
    """

    def __init__(self, reader: ReadingModel, cache: Path | None, identity: Any = None) -> None:
        self.reader, self.cache = reader, cache
        self._identity = identity
        self._known: dict[str, Extracted] = dict(_read_cache(cache)) if cache and cache.exists() else {}

    def facts(self, passages: Sequence[str]) -> list[list[StatedTriple]]:
        """The facts of each passage, in the order of the reply; a statement is the triple as Python writes it."""
        keys = [self._key(passage) for passage in passages]
        unknown = {key: passage for key, passage in zip(keys, passages, strict=True) if key not in self._known}
        if unknown:
            self._known.update(zip(unknown, self._ask(list(unknown.values())), strict=True))
            self._keep(list(unknown))
        return [[StatedTriple(triple, str(triple)) for triple in self._known[key].triples] for key in keys]

    def count_losses(self, passages: Iterable[str], losses: Losses) -> None:
        """Add what was lost and repaired of some passages that :meth:`facts` has met."""
        for passage in dict.fromkeys(passages):
            known = self._known[self._key(passage)]
            losses.lost.update(known.lost)
            losses.repaired.update(known.repaired)

    def _key(self, passage: str) -> str:
        asked = [ENTITIES_PROMPT, TRIPLES_PROMPT, EXTRACTION_TOKENS, CLOSED, passage]
        return value_digest([getattr(self.reader, "identity", self._identity), *asked])

    def _ask(self, passages: list[str]) -> list[Extracted]:
        messages = [ENTITIES_PROMPT.format(passage=passage) for passage in passages]
        entities = self._lists(messages, "entities")
        messages = [
            TRIPLES_PROMPT.format(passage=passage, entities=json.dumps(found or [], ensure_ascii=False))
            for passage, (found, _) in zip(passages, entities, strict=True)
        ]
        triples = self._lists(messages, "triples")
        return [_extracted(*found) for found in zip(entities, triples, strict=True)]

    def _lists(self, messages: list[str], key: str) -> list[tuple[list | None, bool]]:
        """The list in the reply to each message, and whether the reply was cut and had to be repaired for it."""
        found = []
        for reply in self.reader.generate(messages, EXTRACTION_TOKENS):
            items, repaired = find_list(reply.text, key), False
            if items is None and reply.truncated:
                items = find_list(closed(reply.text), key)
                repaired = items is not None
            found.append((items, repaired))
        return found

    def _keep(self, keys: list[str]) -> None:
        if self.cache is None:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"passage": key, **asdict(self._known[key])} for key in keys]
        text = "".join(json.dumps({**row, "digest": value_digest(row)}) + "\n" for row in rows)
        with open(self.cache, "ab") as lines:  # the line break before it ends a line that was cut short
            lines.write(f"\n{text}".encode())


def _extracted(entities: tuple[list | None, bool], triples: tuple[list | None, bool]) -> Extracted:
    """Each a list and whether its reply was repaired."""
    replies, listed = (entities, triples), triples[0] or []
    lost = {NO_LIST: sum(found is None for found, _ in replies), LEFT_OUT: sum(not is_triple(one) for one in listed)}
    repaired = {CLOSED: sum(was_cut for _, was_cut in replies)}
    return Extracted(clean(listed), *({kind: n for kind, n in of.items() if n} for of in (lost, repaired)))


def _read_cache(path: Path) -> Iterator[tuple[str, Extracted]]:
    """Its lines that are as they were written."""
    damaged = 0
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            try:
                row = json.loads(line)
                if row.pop("digest") != value_digest(row):
                    raise ValueError
                triples = [tuple(triple) for triple in row["triples"]]
                yield row["passage"], Extracted(triples, row["lost"], row["repaired"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                damaged += 1
    if damaged:
        print(f"{path}: {damaged} lines are not as they were written; their passages are asked for again", flush=True)


class RuleExtractor:
    """Finds facts by how words are written; see the module's docstring."""

    def facts(self, passages: Sequence[str]) -> list[list[StatedTriple]]:
        """The facts of each passage, each once a statement."""
        return [list(dict.fromkeys(_stated(passage))) for passage in passages]


def _stated(passage: str) -> Iterator[StatedTriple]:
    title, body = split_title(passage)
    inner = _inner_names(body)
    for sentence in sentences(body):
        spans = entity_spans(sentence, inner)
        statement = f"{title}: {sentence}".strip() if title else sentence.strip()
        for triple in _of_title(title, sentence, spans) if title else _of_neighbours(sentence, spans):
            for cleaned in clean([triple]):
                yield StatedTriple(cleaned, statement)


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

    A function word that a sentence begins with is no part of a name. One capitalised word alone at its beginning is a
    name only where ``inner``, the entities seen within sentences, has it too.
    """
    spans = []
    begin = len(sentence) - len(sentence.lstrip(" \"'(["))
    for match in _ENTITY.finditer(sentence):
        start, end = match.span()
        if match.group().endswith(("'s", "’s")):
            end -= 2
        while (word := _WORD.match(sentence, start, end)) and word.group().lower() in FUNCTION_WORDS:
            if not word.group()[0].isupper():
                break
            start = end - len(sentence[word.end() : end].lstrip())
        found = sentence[start:end]
        alone = start == begin and found[:1].isupper() and " " not in found and "-" not in found
        if found and not (alone and found not in inner):
            spans.append((start, end))
    return spans
