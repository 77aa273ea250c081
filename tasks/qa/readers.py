"""One function a form: it reads the files of a set and adds their passages and questions to what is found.

A passage is "title", newline, text where there is a title, as HippoRAG 2 and the paper's benchmark files have it.
"""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msa_base.errors import UserError
from msa_base.json_lines import parse_json
from tasks.metrics import contains
from tasks.qa import plain_pickle
from tasks.qa.records import SetData
from tasks.qa.rows import read_json_rows, read_parquet_rows, read_rows, rows_of

Files = Mapping[str, Sequence[Path]]
NO_ANSWER = "No Answer Present."  # what MS MARCO writes where nobody answered
# what the readers raise over a file that is cut, or not of their form
BROKEN = (ValueError, LookupError, TypeError, AttributeError)
BROKEN += (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile)
RELEVANT = 2  # TREC Deep Learning counts a passage as relevant from this grade on


def titled(title: str | None, text: str) -> str:
    """A passage with its title before it."""
    return f"{title}\n{text}" if title else text


def released(found: SetData, files: Files) -> None:
    """The authors' benchmark files: questions with an answer and reference passages, and a list of passages."""
    for text in plain_pickle.load(files["memory"][0]):
        found.add_passages([text])
    for number, row in enumerate(plain_pickle.load(files["questions"][0])):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        gold = found.add_passages(row["reference_list"])
        found.add_question(str(number), row["query"], answers, gold)


def _title_facts(facts: list[tuple]) -> dict[str, list[int]]:
    """Supporting titles in order, each with its sentence numbers."""
    titles: dict[str, list[int]] = {}
    for title, sentence, *_ in facts:
        titles.setdefault(title, []).extend(sentence if isinstance(sentence, list) else [sentence])
    return titles


def _hipporag_answers(row: dict[str, Any]) -> list[str]:
    """Every reference that HippoRAG 2 scores against."""
    if "obj" in row:  # PopQA keeps lists as JSON text
        lists = [row["possible_answers"], row["o_aliases"]]
        first, second = (parse_json(items) if isinstance(items, str) else items for items in lists)
        return [row["obj"], *first, *second, row["o_wiki_title"]]
    answer = row["answer"] if "answer" in row else row["reference"]
    return [*(answer if isinstance(answer, list) else [answer]), *(row.get("answer_aliases") or [])]


def _supporting(
    found: SetData, row: dict[str, Any], by_title: Mapping[str, list[str]]
) -> tuple[list[str], list[str], list[str], bool]:
    """(gold, evidence, own, whole) of a row with titles and sentence numbers; not whole: a title has no text."""
    facts = rows_of(row["supporting_facts"], "title", "sent_id")
    titles = _title_facts(facts)
    texts = rows_of(row.get("context") or [], "title", "sentences")
    # some editions give the supporting paragraphs beside the facts
    texts += [(fact[0], fact[2]) for fact in facts if len(fact) > 2 and isinstance(fact[2], list)]
    own: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)  # paragraphs of one title may differ
    for title, sentences in texts:
        own[title].append((found.add_passage(titled(title, " ".join(map(str.strip, sentences)))), sentences))
    gold, evidence = [], []
    for title, numbers in titles.items():
        gold += [key for key, _ in own[title]] if title in own else by_title.get(title, [])
        marked = [sentences for _, sentences in own.get(title, ())]
        evidence += [part[number] for part in marked for number in numbers if number < len(part)]
    keys = [key for paragraphs in own.values() for key, _ in paragraphs]
    return gold, evidence, keys, all(title in own or by_title.get(title) for title in titles)


def _marked(found: SetData, paragraphs: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str], bool]:
    """(gold, evidence, own, whole) of paragraphs that say of themselves whether they support."""
    keys = [found.add_passage(titled(item["title"], item.get("text") or item["paragraph_text"])) for item in paragraphs]
    gold = [key for key, item in zip(keys, paragraphs, strict=True) if item.get("is_supporting", True)]
    return gold, [], keys, bool(gold)


def _paragraphs(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The paragraphs of a row, in a list or in columns."""
    found = row["contexts"] if "contexts" in row else row["paragraphs"]
    if not isinstance(found, Mapping):
        return found
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _question_id(row: dict[str, Any], path: Path, number: int) -> str:
    """What the row calls itself, or where it stands."""
    named = (row[key] for key in ("_id", "id", "question_id") if row.get(key) not in (None, ""))
    return str(next(named, f"{path.stem}-{number}"))


def hipporag(found: SetData, files: Files) -> None:
    """The layouts of HotpotQA, 2WikiMultiHopQA, MuSiQue, PopQA and NQ, as HippoRAG 2 and the hub have them, with or
    without a corpus.

    A question one of whose supporting titles has no text is left out and counted.
    """
    by_title: dict[str, list[str]] = defaultdict(list)
    for path in files.get("corpus", ()):
        for row in read_rows(path):
            by_title[row["title"]].append(found.add_passage(titled(row["title"], row["text"])))
    for path in [path for role in ("questions", "more_questions") for path in files.get(role, ())]:
        for number, row in enumerate(read_rows(path)):
            if "supporting_facts" in row:
                gold, evidence, own, whole = _supporting(found, row, by_title)
            else:
                gold, evidence, own, whole = _marked(found, _paragraphs(row))
            if not whole:
                found.left_out["supporting passages without text"] += 1
                continue
            question_id = _question_id(row, path, number)
            found.add_question(question_id, row["question"], _hipporag_answers(row), gold, evidence, own=own)


def gold_contexts(found: SetData, files: Files) -> None:
    """NQ with the annotated passage of each question (the layout of "lost in the middle")."""
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        own = {found.add_passage(titled(item["title"], item["text"])): item["isgold"] for item in row["ctxs"]}
        gold = [key for key, is_gold in own.items() if is_gold]
        found.add_question(str(number), row["question"], row["answers"], gold, own=own)


def _add_marked(
    found: SetData, question_id: Any, text: str, answers: list[str], shown: Iterable[tuple[str, Any]], what: str
) -> None:
    """Add a question whose passages (text, marked) were shown with it; one without answer or mark is left out."""
    own, gold = [], []
    for passage, marked in shown:
        for key in found.add_passages([passage]):
            own.append(key)
            gold += [key] if marked else []
    if answers and gold:
        found.add_question(str(question_id), text, answers, gold, own=own)
    else:
        found.left_out["no answer" if not answers else f"no marked {what}"] += 1


def ms_marco(found: SetData, files: Files) -> None:
    """MS MARCO question answering: the passages shown with a query, those an answer was written from marked."""
    for row in read_parquet_rows(files["rows"]):
        passages = row["passages"]
        shown = zip(passages["passage_text"], passages["is_selected"], strict=True)
        answers = [answer for answer in row["answers"] if answer.strip() and answer != NO_ANSWER]
        _add_marked(found, row["query_id"], row["query"], answers, shown, "passage")


def triviaqa(found: SetData, files: Files) -> None:
    """TriviaQA: pages and search results of a question; those that hold an answer are gold (distant supervision)."""
    for row in read_parquet_rows(files["rows"]):
        answers = [row["answer"]["value"], *row["answer"]["aliases"]]
        pages, results = row["entity_pages"], row["search_results"]
        pairs = [*zip(pages["title"], pages["wiki_context"], strict=True)]
        pairs += zip(results["title"], results["search_context"], strict=True)
        texts = [titled(*pair) for pair in pairs if pair[1]]
        own = found.add_passages(texts)
        if gold := [key for key in own if contains(found.passages[key], answers)]:
            answers = [answer for answer in answers if answer.strip()]
            found.add_question(row["question_id"], row["question"], answers, gold, own=own)
        else:
            found.left_out["no document with an answer"] += 1


def narrative_stories(found: SetData, files: Files) -> None:
    """NarrativeQA as HippoRAG 2 has it: chunks of ten stories; gold are the story's chunks that hold an answer."""
    chunks: dict[str, list[str]] = defaultdict(list)
    for row in read_json_rows(files["corpus"][0]):
        chunks[row["idx"].rpartition("_")[0]] += found.add_passages([titled(row["title"], row["text"])])
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        text, story = [
            item[key] if isinstance(item, dict) else item
            for item, key in ((row["question"], "text"), (row["document"], "id"))
        ]
        answers = [answer["text"] if isinstance(answer, dict) else answer for answer in row["answer"]]
        gold = [key for key in chunks[story] if contains(found.passages[key], answers)]
        found.add_question(str(number), text, answers, gold)


def narrative_summaries(found: SetData, files: Files) -> None:
    """NarrativeQA on summaries: the summary is gold; chunks of stories are distractors."""
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        gold = found.add_passage(row["context"])
        for index, item in enumerate(row["qas"]):
            found.add_question(f"{number}-{index}", item["question"], [item["answer"]], [gold], own=[gold])
    for path in files.get("corpus", ()):
        found.add_passages(titled(row["title"], row["text"]) for row in read_json_rows(path))


def dureader(found: SetData, files: Files) -> None:
    """DuReader: the pages shown with a question, those an answer was written from marked."""
    for row in read_json_rows(files["questions"][0]):
        texts = [titled(page["title"], "\n\n".join(page["paragraphs"])) for page in row["documents"]]
        pages = zip(texts, (page["is_selected"] for page in row["documents"]), strict=True)
        _add_marked(found, row["question_id"], row["question"], row["answers"], pages, "page")


def trec_dl(found: SetData, files: Files) -> None:
    """TREC Deep Learning: ranked passages and people's judgments of them, no answers."""
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    texts: dict[str, str] = {}
    asked: dict[str, str] = {}
    shown: dict[str, list[str]] = defaultdict(list)
    for role, paths in files.items():
        for path in paths:
            if role.startswith("qrels"):
                for line in path.read_text().split("\n"):
                    if not line.strip():
                        continue
                    query, _, passage, grade = line.split()
                    grades[query][passage] = int(grade)
                continue
            for row in read_json_rows(path):
                for hit in row["hits"]:
                    query = str(hit["qid"])
                    asked[query] = row["query"]
                    if found.add_passages([hit["content"]]):
                        texts[hit["docid"]] = hit["content"]
                        shown[query].append(hit["docid"])
    for query, text in asked.items():
        known = [(texts[name], grade) for name, grade in grades[query].items() if name in texts and grade > 0]
        judged = {found.add_passage(passage): grade for passage, grade in known}
        order = sorted(judged, key=lambda key: -judged[key])
        if not order or judged[order[0]] < RELEVANT:
            found.left_out["no relevant passage with text"] += 1
            continue
        own = found.add_passages(texts[name] for name in dict.fromkeys(shown[query]))
        gold = [key for key in order if judged[key] >= RELEVANT]
        degrees = {key: float(judged[key]) for key in order}
        found.add_question(query, text, [], gold, grades=degrees, own=own, needs_answers=False)


def _squad_items(path: Path, without: Collection[str] = ()) -> Iterator[tuple[str, str, str, list[str]]]:
    """(id, paragraph, question, answers) of SQuAD's articles or of the hub's rows; an impossible one has no answers.

    ``without``: titles of articles that are left out.
    """
    if path.suffix == ".json" and isinstance(content := parse_json(path.read_bytes()), Mapping):
        items = (
            (item, paragraph["context"], item["answers"])
            for article in content["data"]
            if article.get("title") not in without
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        )
    else:
        items = ((row, row["context"], row["answers"]) for row in read_rows(path))
    for item, context, answers in items:
        texts = [] if item.get("is_impossible") else [text for (text, *_) in rows_of(answers, "text")]
        yield str(item["id"]), context, item["question"], [text for text in texts if text.strip()]


def _add_squad(found: SetData, files: Files, abstain: bool, without: Collection[str] = ()) -> None:
    """Add paragraphs and questions; those without an answer where ``abstain``, with the paragraph as their own."""
    for path in (path for paths in files.values() for path in paths):
        for question_id, context, question, answers in _squad_items(path, without):
            key = found.add_passage(context)
            known = found.questions.get(question_id)
            if not answers and not abstain:
                found.left_out["no answer"] += 1
            elif known and (known.text, known.own) == (question.strip(), (key,)):
                found.left_out["in another file too"] += 1
            else:
                name = f"{question_id}@{path.stem}" if known else question_id  # another question under its id
                gold = [key] if answers else []
                found.add_question(name, question, answers, gold, own=[key], needs_answers=not abstain)


def squad(found: SetData, files: Files) -> None:
    """SQuAD's layout (1.1, XQuAD): paragraphs with questions on each, those that have an answer; a paragraph, or a
    question on it, that stands in several files counts once.
    """
    _add_squad(found, files, abstain=False)


def squad_apart(found: SetData, files: Files) -> None:
    """SQuAD's layout, without the articles that a file under ``without`` has too, by title."""
    titles = {article["title"] for path in files["without"] for article in parse_json(path.read_bytes())["data"]}
    _add_squad(found, {"articles": files["articles"]}, abstain=False, without=titles)


def squad_abstain(found: SetData, files: Files) -> None:
    """SQuAD 2.0: also the questions that their paragraph does not answer, which have no answer and no gold."""
    _add_squad(found, files, abstain=True)


_TURN = re.compile(r"D:?(\d+):(\d+)")
ADVERSARIAL = 5  # the category of LoCoMo's questions that the conversation does not answer


def _conversations(path: Path) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """(name, conversation, questions) of LoCoMo's one file, or of its archive of a file a conversation."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    item = parse_json(archive.read(name))
                    yield Path(name).stem, item, item["qa"]
        return
    for number, item in enumerate(read_json_rows(path)):
        yield str(item.get("sample_id", number)), item["conversation"], item["qa"]


def locomo(found: SetData, files: Files) -> None:
    """LoCoMo: each turn of a conversation is a passage behind its speakers and the date of its session.

    A question is asked of its two speakers by name, as all conversations are one memory. Its evidence is turns; one of
    category 5 has no answer. A question whose evidence names no turn is left out and counted.
    """
    for path in files["conversations"]:
        for name, talk, questions in _conversations(path):
            speakers = f"{talk['speaker_a']} and {talk['speaker_b']}"
            turns: dict[tuple[int, int], list[str]] = {}
            for session in (key for key in talk if re.fullmatch(r"session_\d+", key)):
                for turn in talk[session] or ():
                    caption = f" [shows {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                    said = f"{turn['speaker']}: {turn['text']}{caption}"
                    place = _TURN.fullmatch(turn["dia_id"])
                    title = f"{speakers}, {talk[f'{session}_date_time']}"
                    turns[int(place[1]), int(place[2])] = found.add_passages([titled(title, said)])
            for number, item in enumerate(questions):
                marks = [(int(one), int(two)) for one, two in _TURN.findall(" ".join(map(str, item["evidence"])))]
                gold = [key for mark in marks for key in turns.get(mark, ())]
                answerable = item["category"] != ADVERSARIAL
                if answerable and (len(gold) < len(marks) or not gold):
                    found.left_out["evidence that names no turn"] += 1
                    continue
                question, answers = f"{speakers}: {item['question']}", [str(item["answer"])] if answerable else []
                gold = gold if answerable else []
                found.add_question(f"{name}-{number}", question, answers, gold, own=gold, needs_answers=answerable)


def retrieved_passages(found: SetData, files: Files) -> None:
    """Passages that a retriever brought, without labels."""
    for path in (path for paths in files.values() for path in paths):
        for passages in parse_json(path.read_bytes())["retrieved_docs"]:
            found.add_passages(passages)


READERS: dict[str, Callable[[SetData, Files], None]] = {
    function.__name__: function
    for function in (
        *(released, hipporag, gold_contexts, ms_marco, triviaqa, narrative_stories, narrative_summaries, dureader),
        *(trec_dl, squad, squad_apart, squad_abstain, locomo, retrieved_passages),
    )
}


def read_set(reader: str, files: Files, where: str) -> SetData:
    """Read a form's files. Raises UserError: no such reader, or a file that is broken or not of that form."""
    if reader not in READERS:
        raise UserError(f"{where}: key 'reader': unknown '{reader}' (known: {', '.join(READERS)})")
    names = ", ".join(str(path) for paths in files.values() for path in paths)
    found = SetData((files.get("questions") or files.get("rows") or next(iter(files.values())))[0])
    try:
        READERS[reader](found, files)
    except BROKEN as error:
        raise UserError(f"{names}: not what the reader {reader} expects ({error!r}); fetch the set again") from None
    return found
