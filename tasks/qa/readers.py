"""One function a form: from the files of a set to its passages and questions.

A passage is "title", newline, text where there is a title, as HippoRAG 2 and the paper's benchmark files have it.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from tasks.metrics import contains
from tasks.qa import plain_pickle
from tasks.qa.records import SetData

Files = Mapping[str, Sequence[Path]]
NO_ANSWER = "No Answer Present."  # what MS MARCO writes where nobody answered
RELEVANT = 2  # TREC Deep Learning counts a passage as relevant from this grade on


def titled(title: str | None, text: str) -> str:
    """A passage with its title before it."""
    return f"{title}\n{text}" if title else text


def read_json_rows(path: Path) -> list[Any]:
    """A JSON list, or JSON lines, gzipped or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    if text.lstrip()[:1] == "[":
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def read_parquet_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files in order, streamed."""
    import datasets

    yield from datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train", streaming=True)


def released(files: Files) -> SetData:
    """The authors' benchmark files: questions with an answer and reference passages, and a list of passages."""
    found = SetData(files["questions"][0])
    for text in plain_pickle.load(files["memory"][0]):
        found.add_passages([text])
    for number, row in enumerate(plain_pickle.load(files["questions"][0])):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        gold = found.add_passages(row["reference_list"])
        found.add_question(str(number), row["query"], answers, gold)
    return found


def _title_facts(facts: list[list[Any]]) -> dict[str, list[int]]:
    """Supporting titles in order, each with its sentence numbers."""
    titles: dict[str, list[int]] = {}
    for title, sentence, *_ in facts:
        titles.setdefault(title, []).extend(sentence if isinstance(sentence, list) else [sentence])
    return titles


def _hipporag_answers(row: dict[str, Any]) -> list[str]:
    """Every reference that HippoRAG 2 scores against."""
    if "obj" in row:  # PopQA keeps lists as JSON text
        lists = [json.loads(row[key]) if isinstance(row[key], str) else row[key] for key in ("possible_answers", "o_aliases")]
        return [row["obj"], *(item for items in lists for item in items), row["o_wiki_title"]]
    answer = row["answer"] if "answer" in row else row["reference"]
    return [*(answer if isinstance(answer, list) else [answer]), *row.get("answer_aliases", [])]


def _supporting(found: SetData, row: dict[str, Any], by_title: Mapping[str, list[str]]) -> tuple[list[str], list[str], list[str]]:
    """(gold, evidence, own) of a row with titles and sentence numbers; a title of which there is no text gives none."""
    titles = _title_facts(row["supporting_facts"])
    texts = {title: sentences for title, sentences in row.get("context", [])}
    # some editions give the supporting paragraphs beside the facts
    texts |= {fact[0]: fact[2] for fact in row["supporting_facts"] if len(fact) > 2 and isinstance(fact[2], list)}
    own = {title: found.add_passage(titled(title, " ".join(map(str.strip, sentences)))) for title, sentences in texts.items()}
    gold, evidence = [], []
    for title, numbers in titles.items():
        gold += [own[title]] if title in own else by_title.get(title, [])
        evidence += [texts[title][number] for number in numbers if title in texts and number < len(texts[title])]
    return gold, evidence, list(own.values())


def _marked(found: SetData, paragraphs: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """(gold, evidence, own) of paragraphs that say of themselves whether they support."""
    keys = [found.add_passage(titled(item["title"], item.get("text") or item["paragraph_text"])) for item in paragraphs]
    return [key for key, item in zip(keys, paragraphs, strict=True) if item.get("is_supporting", True)], [], keys


def hipporag(files: Files) -> SetData:
    """The layout of HippoRAG 2: HotpotQA, 2WikiMultiHopQA, MuSiQue, PopQA and NQ, with a corpus of all passages or without.

    A question one of whose supporting titles has no text is left out and counted.
    """
    found = SetData(files["questions"][0])
    by_title: dict[str, list[str]] = defaultdict(list)
    for path in files.get("corpus", ()):
        for row in read_json_rows(path):
            by_title[row["title"]].append(found.add_passage(titled(row["title"], row["text"])))
    for path in [path for role in ("questions", "more_questions") for path in files.get(role, ())]:
        for number, row in enumerate(read_json_rows(path)):
            if "supporting_facts" in row:
                gold, evidence, own = _supporting(found, row, by_title)
                wanted = len(_title_facts(row["supporting_facts"]))
            else:
                gold, evidence, own = _marked(found, row["contexts"] if "contexts" in row else row["paragraphs"])
                wanted = 1
            if len(gold) < wanted:
                found.left_out["supporting passages without text"] += 1
                continue
            question_id = row.get("_id") or row.get("id") or f"{path.stem}-{number}"
            found.add_question(str(question_id), row["question"], _hipporag_answers(row), gold, evidence, own=own)
    return found


def gold_contexts(files: Files) -> SetData:
    """NQ with the annotated passage of each question (the layout of "lost in the middle")."""
    found = SetData(files["questions"][0])
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        own = {found.add_passage(titled(item["title"], item["text"])): item["isgold"] for item in row["ctxs"]}
        gold = [key for key, is_gold in own.items() if is_gold]
        found.add_question(str(number), row["question"], row["answers"], gold, own=own)
    return found


def ms_marco(files: Files) -> SetData:
    """MS MARCO question answering: the passages shown with a query, those an answer was written from marked."""
    found = SetData(files["rows"][0])
    for row in read_parquet_rows(files["rows"]):
        passages = row["passages"]
        own, gold = [], []
        for text, selected in zip(passages["passage_text"], passages["is_selected"], strict=True):
            for key in found.add_passages([text]):
                own.append(key)
                gold += [key] if selected else []
        answers = [answer for answer in row["answers"] if answer.strip() and answer != NO_ANSWER]
        if not answers or not gold:
            found.left_out["no answer" if not answers else "no marked passage"] += 1
            continue
        found.add_question(str(row["query_id"]), row["query"], answers, gold, own=own)
    return found


def triviaqa(files: Files) -> SetData:
    """TriviaQA: pages and search results of a question; those that hold an answer are gold (distant supervision)."""
    found = SetData(files["rows"][0])
    for row in read_parquet_rows(files["rows"]):
        answers = [row["answer"]["value"], *row["answer"]["aliases"]]
        pages, results = row["entity_pages"], row["search_results"]
        texts = [titled(*pair) for pair in zip(pages["title"], pages["wiki_context"], strict=True) if pair[1]]
        texts += [titled(*pair) for pair in zip(results["title"], results["search_context"], strict=True) if pair[1]]
        own = found.add_passages(texts)
        gold = [key for key in own if contains(found.passages[key], answers)]
        if not gold:
            found.left_out["no document with an answer"] += 1
            continue
        found.add_question(row["question_id"], row["question"], [answer for answer in answers if answer.strip()], gold, own=own)
    return found


def narrative_stories(files: Files) -> SetData:
    """NarrativeQA as HippoRAG 2 has it: chunks of ten stories; gold are the story's chunks that hold an answer."""
    found = SetData(files["questions"][0])
    chunks: dict[str, list[str]] = defaultdict(list)
    for row in read_json_rows(files["corpus"][0]):
        chunks[row["idx"].rpartition("_")[0]] += found.add_passages([titled(row["title"], row["text"])])
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        text, story = ([item[key] if isinstance(item, dict) else item for item, key in ((row["question"], "text"), (row["document"], "id"))])
        answers = [answer["text"] if isinstance(answer, dict) else answer for answer in row["answer"]]
        gold = [key for key in chunks[story] if contains(found.passages[key], answers)]
        found.add_question(str(number), text, answers, gold)
    return found


def narrative_summaries(files: Files) -> SetData:
    """NarrativeQA on summaries: the summary is gold; chunks of stories are distractors."""
    found = SetData(files["questions"][0])
    for number, row in enumerate(read_json_rows(files["questions"][0])):
        gold = found.add_passage(row["context"])
        for index, item in enumerate(row["qas"]):
            found.add_question(f"{number}-{index}", item["question"], [item["answer"]], [gold], own=[gold])
    for path in files.get("corpus", ()):
        found.add_passages(titled(row["title"], row["text"]) for row in read_json_rows(path))
    return found


def dureader(files: Files) -> SetData:
    """DuReader: the pages shown with a question, those an answer was written from marked."""
    found = SetData(files["questions"][0])
    for row in read_json_rows(files["questions"][0]):
        own, gold = [], []
        for page in row["documents"]:
            for key in found.add_passages([titled(page["title"], "\n\n".join(page["paragraphs"]))]):
                own.append(key)
                gold += [key] if page["is_selected"] else []
        if not row["answers"] or not gold:
            found.left_out["no answer" if not row["answers"] else "no marked page"] += 1
            continue
        found.add_question(str(row["question_id"]), row["question"], row["answers"], gold, own=own)
    return found


def trec_dl(files: Files) -> SetData:
    """TREC Deep Learning: ranked passages and people's judgments of them, no answers."""
    found = SetData(next(iter(files.values()))[0])
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    texts: dict[str, str] = {}
    asked: dict[str, str] = {}
    shown: dict[str, list[str]] = defaultdict(list)
    for role, paths in files.items():
        for path in paths:
            if role.startswith("qrels"):
                for line in path.read_text().splitlines():
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
        judged = {found.add_passage(texts[name]): grade for name, grade in grades[query].items() if name in texts and grade > 0}
        order = sorted(judged, key=lambda key: -judged[key])
        if not order or judged[order[0]] < RELEVANT:
            found.left_out["no relevant passage with text"] += 1
            continue
        own = found.add_passages(texts[name] for name in dict.fromkeys(shown[query]))
        gold = [key for key in order if judged[key] >= RELEVANT]
        degrees = {key: float(judged[key]) for key in order}
        found.add_question(query, text, [], gold, grades=degrees, own=own, needs_answers=False)
    return found


def squad(files: Files) -> SetData:
    """SQuAD 1.1: articles of paragraphs with questions on each; a paragraph that stands in several files counts once."""
    found = SetData(next(iter(files.values()))[0])
    for path in (path for paths in files.values() for path in paths):
        for article in json.loads(path.read_text())["data"]:
            for paragraph in article["paragraphs"]:
                key = found.add_passage(paragraph["context"])
                for item in paragraph["qas"]:
                    answers = [answer["text"] for answer in item["answers"] if answer["text"].strip()]
                    if not answers or item["id"] in found.questions:
                        found.left_out["no answer" if not answers else "in another file too"] += 1
                        continue
                    found.add_question(item["id"], item["question"], answers, [key], own=[key])
    return found


def retrieved_passages(files: Files) -> SetData:
    """Passages that a retriever brought, without labels."""
    found = SetData(next(iter(files.values()))[0])
    for path in (path for paths in files.values() for path in paths):
        for passages in json.loads(path.read_text())["retrieved_docs"]:
            found.add_passages(passages)
    return found


READERS: dict[str, Callable[[Files], SetData]] = {
    function.__name__: function
    for function in (
        *(released, hipporag, gold_contexts, ms_marco, triviaqa, narrative_stories, narrative_summaries, dureader),
        *(trec_dl, squad, retrieved_passages),
    )
}


def read_set(reader: str, files: Files, where: str) -> SetData:
    """Read a form's files.

    Raises:
        UserError: no such reader, or a file that is broken or not of that form; the message names it.
    """
    if reader not in READERS:
        raise UserError(f"{where}: key 'reader': unknown '{reader}' (known: {', '.join(READERS)})")
    names = ", ".join(str(path) for paths in files.values() for path in paths)
    try:
        return READERS[reader](files)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise UserError(f"{names}: not what the reader {reader} expects ({error!r}); fetch the set again") from None
