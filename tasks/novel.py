"""Long novels (real text, generated questions): a name left out of a sentence, to be recalled from the novel itself.

The memory is whole novels, one after the other, cut at sentences. A question quotes a sentence of the smallest
context with one name left out; the document that holds the sentence is gold. Texts come from the profile's data
directory: plain text files in a folder of it (``novels``), and the Project Gutenberg books among the stories of
NarrativeQA. (Questions that people asked about those stories are the task ``qa_narrativeqa``.)
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msa_base.errors import UserError
from msa_base.json_lines import parse_json
from msa_base.records import Document, Question
from msa_base.validate import Count, Seed, Text
from tasks.base import DOCUMENT_TOKENS, OWN_MEMORY, CorpusRequest, PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.chunking import chunks, text_budget
from tasks.parts.splitting import split_sentences
from tasks.parts.tail import UnavailableData

STORIES = Path("narrativeqa") / "story_chunks_4111.json"
FETCH = (
    "mkdir -p {novels} && curl -L https://www.gutenberg.org/cache/epub/1342/pg1342.txt -o "
    "{novels}/pride_and_prejudice.txt"
)
GUTENBERG = "Project Gutenberg"
BLANK = "____"
ASK = "Which name is left out of this sentence of the novel: {sentence}"
MIN_WORDS, MAX_WORDS = 8, 40
MIN_TIMES = 3  # a name is a capitalised word that comes so often inside sentences, and never in lower case
_START = re.compile(r"\*\*\* ?START OF.*?\*\*\*", re.DOTALL)
_END = re.compile(r"\*\*\* ?END OF|End of (?:the )?Project Gutenberg")
_SPACED = re.compile(r"\s+(?=[,.;:!?)])|(?<=\()\s+|\s+(?='[a-z]\b)")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class CorpusParams:
    """Parameters of the memory: the folder of the data directory that holds novels, and the size of a document."""

    novels: Text = "novels"
    document_tokens: Count = DOCUMENT_TOKENS


@dataclass(frozen=True)
class Params:
    """Parameters of the questions."""

    max_new_tokens: Count = 16
    seed: Seed = 42


def clean(text: str) -> str:
    """A text on one line, without Project Gutenberg's own words and without spaces before punctuation."""
    text = _END.split(_START.split(text, maxsplit=1)[-1], maxsplit=1)[0]
    return _SPACED.sub("", " ".join(text.replace("\ufeff", "").split()))


def read_novels(data: Path | None, folder: str, where: str) -> dict[str, str]:
    """Novels by name, in the order of their names. Raises UnavailableData: there are none; how to fetch one."""
    if data is None:
        fetch = FETCH.format(novels=f"DATA/{folder}")
        raise UnavailableData(f"{where}: no data directory is named; give --data DATA (make: DATA=DATA), then {fetch}")
    paths = sorted((data / folder).glob("*.txt"))
    novels = {path.stem: clean(path.read_text(encoding="utf-8", errors="replace")) for path in paths}
    if (data / STORIES).exists():
        novels |= read_stories(data / STORIES)
    novels = {name: text for name, text in novels.items() if text}
    if not novels:
        fetch = FETCH.format(novels=data / folder)
        raise UnavailableData(f"neither {data / folder}/*.txt nor {data / STORIES} is there; fetch a novel: {fetch}")
    return novels


def read_stories(path: Path) -> dict[str, str]:
    """The books among the stories: their chunks, whose ``idx`` is a story and a place, joined in order."""
    parts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    try:
        for row in parse_json(path.read_bytes()):
            story, _, place = row["idx"].rpartition("_")
            if GUTENBERG in row["title"]:
                parts[f"{story}: {row['title']}"].append((int(place), row["text"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of story chunks ({error!r}); fetch it again") from None
    return {story: clean(" ".join(text for _, text in sorted(chunks))) for story, chunks in sorted(parts.items())}


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream the novels' documents until the tokens asked for, or the novels, are at an end."""
    params = request.read(CorpusParams)
    novels = read_novels(request.data, params.novels, request.where)
    expected = sum(map(len, novels.values())) // params.document_tokens  # a token has more characters than one
    budget = text_budget(request.tokenizer, params.document_tokens, expected, request.where)
    texts = (
        " ".join(sentence for sentence, _ in chunk)
        for novel in novels.values()
        for chunk in chunks(request.tokenizer, split_sentences(novel), budget)
    )
    return request.documents(texts, expected)


def names_of(documents: Sequence[Document]) -> set[str]:
    """Words that are names by their spelling: capitalised inside sentences, never in lower case."""
    inside: Counter[str] = Counter()
    lower: set[str] = set()
    for document in documents:
        for sentence in split_sentences(document.text):
            words = _WORD.findall(sentence)
            lower.update(word for word in words if word.islower())
            inside.update(word for word in words[1:] if word.istitle() and len(word) > 2)
    return {word for word, times in inside.items() if times >= MIN_TIMES and word.lower() not in lower}


def clozes(documents: Sequence[Document], names: set[str]) -> list[tuple[str, str, int]]:
    """(sentence with a blank, name, document id) of sentences that come once and hold one name, not at the start."""
    sentences = [(sentence, document.doc_id) for document in documents for sentence in split_sentences(document.text)]
    times = Counter(sentence for sentence, _ in sentences)
    found = []
    for sentence, doc_id in sentences:
        words = _WORD.findall(sentence)
        here = [word for word in words if word in names]
        if times[sentence] == 1 and MIN_WORDS <= len(words) <= MAX_WORDS and len(here) == 1 and words[0] not in names:
            found.append((re.sub(rf"\b{here[0]}\b", BLANK, sentence), here[0], doc_id))
    return found


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    """All contexts; one beyond the novels at hand is unavailable. Raises UserError: too few sentences to ask about."""
    params = request.read(Params)
    smallest = request.tail.prefix(min(request.contexts.values()))
    documents = [document for _, document in sorted(request.tail.take(set(range(smallest))).items())]
    askable = clozes(documents, names_of(documents))
    texts = [ASK.format(sentence=sentence) for sentence, _, _ in askable]
    reserved = request.prompt_tokens(texts, wording.ANSWER_PREFIX) + params.max_new_tokens
    # the smallest context loses its last documents to the prompt
    inside = set(request.tail.doc_ids[: request.tail.prefix(min(request.contexts.values()) - reserved)].tolist())
    askable = [ask for ask in askable if ask[2] in inside]
    if len(askable) < request.questions:
        wrong = f"{request.questions} questions, but the smallest context has {len(askable)} sentences with one name"
        raise UserError(f"{request.where}: {wrong}; ask fewer, or name a larger context")
    chosen = random.Random(f"{params.seed}/{request.name}").sample(askable, request.questions)
    total = request.tail.tokens()
    name, times = Counter(name for _, name, _ in chosen).most_common(1)[0]
    for context, size in request.contexts.items():
        if size > total and context != OWN_MEMORY:
            folder = (request.data or Path("DATA")) / request.corpus_params.get("novels", CorpusParams.novels)
            reason = f"the novels at hand have {total:,} tokens; put more there: {FETCH.format(novels=folder)}"
            yield PreparedCell(context, 0, unavailable=reason)
            continue
        base = request.base_documents(context, reserved)
        cell = PreparedCell(context, base, floor=times / len(chosen), floor_of=f"always answering {name!r}")
        for number, (sentence, answer, doc_id) in enumerate(chosen):
            question_id = f"{request.name}-{number:04d}"
            text = ASK.format(sentence=sentence)
            cell.ask(Question(question_id, text, wording.ANSWER_PREFIX, params.max_new_tokens), [answer], [doc_id])
        yield cell
