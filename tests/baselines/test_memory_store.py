"""Memory store: extraction, the four operations, and recall in hops."""

from __future__ import annotations

import json

import pytest

from baselines.base import CellStatus, Resources
from baselines.memory_store import MemoryStore, ModelAgent, Params, RuleAgent
from baselines.parts.phrases import PhraseEncoder, Phrases
from baselines.parts.reading import ReaderInput, TimeLimit
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Question
from tests.baselines.test_hipporag import Scripted

RULES = {"agent": "rules", "phrases": "words"}


def open_store(**params: object) -> MemoryStore:
    return MemoryStore(Params(**{**RULES, **params}), Resources(None, None, None, 1, 0))


def recall(store: MemoryStore, question: str, documents: list[Document]) -> ReaderInput:
    view = CorpusView(documents, {})
    store.ingest(view)
    return store.select([ask(question)], view)[0]


def ask(text: str) -> Question:
    return Question("q", text, "", 5)


def test_rules_keep_what_names_two_things_behind_its_title() -> None:
    found = RuleAgent().extract(
        ["The sky is blue. Ben Dale paid 5 coins. Then Ada went.", "Rome\nIt is in Italy now. It is old."]
    )
    assert found == [["Ben Dale paid 5 coins."], ["Rome: It is in Italy now."]]


def test_rules_keep_the_fuller_of_two_statements_and_both_of_two_values() -> None:
    documents = [Document(number, "", 0) for number in range(4)]
    facts = [
        ["Ben Dale met Eve Holt."],
        ["Ben Dale met Eve Holt in the rain."],
        ["Ben Dale paid 5 coins."],
        ["Ben Dale paid 6 coins."],
    ]
    stores = [
        RuleAgent().store(pairs, Phrases(PhraseEncoder(None, words=True)))
        for pairs in (list(zip(documents, facts, strict=True)), list(zip(documents, facts, strict=True))[::-1])
    ]
    for store in stores:
        assert sorted(store.texts.values()) == [
            "Ben Dale met Eve Holt in the rain.",
            "Ben Dale paid 5 coins.",
            "Ben Dale paid 6 coins.",
        ]
        (fuller,) = [number for number, text in store.texts.items() if "rain" in text]
        assert sorted(store.sources[fuller]) == [0, 1]


def test_a_model_adds_updates_deletes_and_does_nothing() -> None:
    def operations(*items: object) -> str:
        return json.dumps({"operations": list(items)})

    model = Scripted(
        '{"facts": ["A is red.", "B is big."]}', '{"facts": ["A is dark red.", "B is big.", "B is small."]}',
        '{"facts": []}',
        operations({"fact": 0, "event": "ADD"}, {"fact": 1, "event": "ADD"}),
        operations(
            {"fact": 0, "event": "UPDATE", "memory": 0, "text": "A is dark red."},
            {"fact": 1, "event": "NONE"},
            {"fact": 2, "event": "DELETE", "memory": 1},
            {"fact": 9, "event": "ADD"}, {"fact": 0, "event": "UPDATE", "memory": 77}, "nonsense",
        ),
    )  # fmt: skip
    agent = ModelAgent(model, Params(), TimeLimit(None))
    documents = [Document(number, text, 0) for number, text in enumerate(("one", "two", "three"))]
    facts = agent.extract([document.text for document in documents])
    store = agent.store(zip(documents, facts, strict=True), Phrases(PhraseEncoder(None, words=True)))
    assert store.texts == {0: "A is dark red.", 2: "B is small."}
    assert store.sources == {0: [0, 1], 2: [1]}
    assert '"0": "A is red."' in model.asked[4] and '"1": "B is big."' in model.asked[4]


def test_replies_without_json_say_nothing() -> None:
    agent = ModelAgent(Scripted("no", '{"facts": "A"}'), Params(), TimeLimit(None))
    assert agent.extract(["x", "y"]) == [[], []]


def test_a_model_that_would_take_too_long_is_refused() -> None:
    agent = ModelAgent(Scripted(*['{"facts": []}'] * 16), Params(), TimeLimit(0.0))
    with pytest.raises(CellStatus, match="84 more calls") as raised:
        agent.extract([str(number) for number in range(100)])
    assert raised.value.status == "timeout"


def test_recall_follows_a_chain_and_drops_what_is_far() -> None:
    documents = [
        Document(1, "Words first. The partner of Brave Fox is Calm Owl.", 9),
        Document(2, "Calm Owl has the number 12345.", 9),
        Document(3, "The partner of Brave Dog is Mild Cat. Mild Cat has the number 6.", 9),
    ]
    question = "What is the number for the partner of Brave Fox?"
    chosen = recall(open_store(read_k=3, order="best_first"), question, documents)
    assert [(d.doc_id, d.text) for d in chosen.documents] == [
        (1, "The partner of Brave Fox is Calm Owl."), (2, "Calm Owl has the number 12345."),
    ]  # fmt: skip
    assert chosen.routed_doc_ids["memory_store"] == [1, 2, 3]
    flat = recall(open_store(read_k=3, hops=1), question, documents)
    assert [document.doc_id for document in flat.documents] == [1]


def test_every_name_asked_about_is_recalled_however_far_it_is() -> None:
    texts = [
        "The magic number for big-red-fox is 1111.",
        "One of the old secret numbers of tiny-owl was 2222.",
        "The magic number for big-dog is 3333.",
    ]
    documents = [Document(number, text, 9) for number, text in enumerate(texts)]
    question = "What is the magic number for big-red-fox and tiny-owl?"
    chosen = recall(open_store(read_k=3, order="best_first"), question, documents)
    assert [document.doc_id for document in chosen.documents] == [0, 1]


def test_nothing_stored_is_nothing_read() -> None:
    chosen = recall(open_store(), "What?", [Document(1, "the sky is blue.", 5)])
    assert chosen.documents == [] and chosen.routed_doc_ids == {"memory_store": []}


def test_what_needs_an_embedder_says_so() -> None:
    with pytest.raises(UserError, match="`phrases: both` needs an index whose model embeds"):
        open_store(phrases="both")
