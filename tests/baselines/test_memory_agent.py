"""MemAgent: chunks, calls and tokens, the memory overwritten, the release's messages and its reading of replies, and
cells refused before they take too long.
"""

from __future__ import annotations

import time
from typing import ClassVar

import pytest

import baselines.memory_agent as module
from baselines.base import CellStatus, Resources
from baselines.memory_agent import MemoryAgent, Params, sections
from baselines.parts.reading import TimeLimit
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.records import CorpusView, Document, Generation, Overlay, Question
from msa_base.validate import build


class NotingReader:
    """Notes the last word of every section, thinks aloud, and answers with what it is given."""

    asked: ClassVar[list[str]] = []
    delay_s = 0.0

    def __init__(self, model: object, threads: int) -> None:
        NotingReader.asked = []

    def generate(self, messages: list[str], max_new_tokens: int) -> list[Generation]:
        NotingReader.asked += messages
        time.sleep(self.delay_s * len(messages))
        replies = []
        for message in messages:
            memory = message.split("Memory: ")[1].split("\nSection: ")[0].replace(prompts.NO_MEMORY, "")
            last = message.split("Section: ")[1].split("\n" + prompts.REPEAT_QUESTION)[0].split()[-1]
            replies.append(Generation(f"hm</think> {memory} {last}", 100, 7, 0.5, 1.0))
        return replies

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        return [Generation(documents[0].text, 30, 3, 0.25, 0.75) for documents, _ in pairs]


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_reader", NotingReader)
    monkeypatch.setattr(NotingReader, "delay_s", 0.0)


def agent(limit_s: float | None = None, **params: object) -> MemoryAgent:
    return MemoryAgent(Params(**params), Resources(None, None, None, 1, 0, cell_limit_s=limit_s))


def words(*names: str) -> list[Document]:
    """Documents of four words, a token each; the last word is the name."""
    return [Document(number, f"w x y {name}", 4) for number, name in enumerate(names)]


def test_chunks_are_consecutive_and_as_long_as_set() -> None:
    documents = [Document(0, "a b c d e", 5), Document(1, "f g h", 3), Document(2, "i", 1)]
    assert list(sections(documents, Params(chunk_tokens=4))) == ["a b c d", " e\nf g h", "i"]
    assert list(sections(documents, Params(chunk_tokens=100))) == ["a b c d e\nf g h\ni"]
    assert list(sections([Document(0, "a b", 10)], Params(chunk_tokens=1))) == ["a", " b"]
    assert list(sections([Document(0, "", 3)], Params())) == [""]
    assert list(sections([], Params())) == []


def test_whole_documents_stay_whole_where_they_fit() -> None:
    documents = [*words("one", "two", "three"), Document(9, "a b c d e f g h i j", 10)]
    found = list(sections(documents, Params(chunk_tokens=9, whole_documents=True)))
    assert found == ["w x y one\nw x y two", "w x y three\na b c d e", " f g h i j"]


def test_published_number_of_calls() -> None:
    documents = [Document(number, "word " * 100, 100) for number in range(10_000)]  # a million tokens
    assert len(list(sections(documents, Params()))) + 1 == 201


def test_every_reply_replaces_the_memory_and_every_token_counts() -> None:
    view = CorpusView(words("one", "two", "three"), {"more": Overlay("more", (Document(7, "w x y seven", 4),))})
    questions = [Question("a", "what?", "", 5), Question("b", "who?", "", 5, "more")]
    first, second = agent(chunk_tokens=4).answer(questions, view)
    ends = [" ".join(document.text.split()[-1] for document in view.documents(asked)) for asked in questions]
    assert first.text == ends[0] == "one two three"
    assert second.text == ends[1] and sorted(second.text.split()) == ["one", "seven", "three", "two"]
    assert (first.rounds, second.rounds) == (4, 5)
    assert (second.input_tokens, second.output_tokens) == (4 * 100 + 30, 4 * 7 + 3)
    assert second.total_s == 4 * 1.0 + 0.75 and second.first_token_s == 4 * 1.0 + 0.25
    assert second.cited_doc_ids == []


def test_the_first_message_has_no_memory_and_names_problem_memory_and_section_in_order() -> None:
    agent(chunk_tokens=4).answer([Question("a", "what?", "", 5)], CorpusView(words("one", "two"), {}))
    assert NotingReader.asked == [
        prompts.memory_update("what?", prompts.NO_MEMORY, "w x y one"),
        prompts.memory_update("what?", "one", "w x y two"),
    ]
    places = [NotingReader.asked[1].index(part) for part in ("what?", "one", "w x y two")]
    assert places == sorted(places)


def test_the_released_model_gets_its_own_messages_and_its_answer_is_what_follows_the_last_mark(monkeypatch) -> None:
    replies = iter(
        [
            " noted 7",
            "<think>so the answer is 3</think>The answer is 1; no, **the answer is 2.**",
            "noted 7",
            "It is 2.",
        ]
    )
    asked: list[tuple[str, int]] = []

    def generate(self, messages: list[str], max_new_tokens: int) -> list[Generation]:
        asked.extend((message, max_new_tokens) for message in messages)
        return [Generation(next(replies), 10, 2, 0.5, 1.0) for _ in messages]

    monkeypatch.setattr(NotingReader, "generate", generate)
    view = CorpusView(words("one"), {})
    answers = [agent(released_messages=True).answer([Question(name, "what?", "It is", 5)], view)[0] for name in "ab"]
    assert [answer.text for answer in answers] == ["2", ""]
    assert answers[0].rounds == 2 and answers[0].output_tokens == 4
    state = "<problem> \nwhat?\n</problem>\n\n<memory>\n{}\n</memory>\n\n"  # the space is theirs
    assert asked[:2] == [
        (
            "You are presented with a problem, a section of an article that may contain the answer to the problem, "
            "and a previous memory. Please read the provided section carefully and update the memory with the new "
            "information that helps to answer the problem. Be sure to retain all relevant details from the previous "
            "memory while adding any new, useful information.\n\n"
            + state.format("No previous memory")
            + "<section>\nw x y one\n</section>\n\nUpdated memory:\n",
            1024,
        ),
        (
            "You are presented with a problem and a previous memory. Please answer the problem based on the previous "
            'memory and format your response as follows "Therefore, the answer is (insert answer here)".\n\n'
            + state.format(" noted 7")  # nothing is stripped where there is no think tag
            + "Your answer:\n",
            1024,
        ),
    ]


@pytest.mark.parametrize(
    ("reply", "memory", "answer"),
    [
        (" the answer is 2 ", " the answer is 2 ", "2"),
        ("the answer is 1</think> so the answer is 2.", "so the answer is 2.", "2"),
        ("<think>a</think>b</think> the answer is\n**3.**", "the answer is\n**3.**", "3"),
        ("Therefore, the answer is ...4. ", "Therefore, the answer is ...4. ", "4"),
        (
            "the answer is 5<｜Assistant｜><｜end▁of▁sentence｜>",
            "the answer is 5<｜Assistant｜><｜end▁of▁sentence｜>",
            "5",
        ),
        ("the answer is 6</think>", "", "6</think>"),  # nothing behind the tag: the whole reply is searched
        ("The Answer is 7", "The Answer is 7", ""),
        ("\\boxed{8}", "\\boxed{8}", ""),  # what it was trained to write, and is not evaluated by
        ("", "", ""),
    ],
)
def test_replies_are_read_as_the_release_does(reply: str, memory: str, answer: str) -> None:
    assert (module.behind_thinking(reply), module.released_answer(reply)) == (memory, answer)


def test_the_limits_and_the_sampling_are_the_release_s() -> None:
    assert (Params().chunk_tokens, Params().memory_tokens, prompts.NO_MEMORY) == (5000, 1024, "No previous memory")
    params = load("tiny").models["rl_memory_agent_14b"].params
    assert (params["temperature"], params["top_p"]) == (0.7, 0.95)


def test_a_cell_that_would_take_too_long_is_refused_with_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NotingReader, "delay_s", 0.01)
    view, questions = CorpusView(words(*map(str, range(60))), {}), [Question("a", "what?", "", 5)]
    slow = agent(limit_s=0.3, chunk_tokens=4)
    slow.ingest(view)
    with pytest.raises(CellStatus, match=r"59 more calls .* beyond the profile's limit") as raised:
        slow.answer(questions, view)
    assert raised.value.status == "timeout" and len(NotingReader.asked) == 2
    enough = agent(limit_s=100.0, chunk_tokens=4)
    enough.ingest(view)
    assert enough.answer(questions, view)[0].rounds == 61
    # once the speed is known, a cell is refused before its first call
    enough.limit = TimeLimit(0.3)
    asked = len(NotingReader.asked)
    with pytest.raises(CellStatus, match="61 more calls"):
        enough.answer(questions, view)
    assert len(NotingReader.asked) == asked


@pytest.mark.parametrize("params", [{"chunk_tokens": 0}, {"memory_tokens": 0}, {"chunks": 3}])
def test_bad_parameters_name_their_place(params: dict) -> None:
    with pytest.raises(UserError, match=r"^systems\.yaml: here"):
        build(Params, params, "systems.yaml: here")
