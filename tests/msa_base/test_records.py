"""A layered corpus is the list that one would rebuild: by place, by id and in order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from msa_base.records import CorpusView, Document, Overlay, Question, tie_order


def drawn(rng: random.Random) -> CorpusView:
    """A random tail, and overlays that add, replace and do both, in any order, or do nothing."""
    ids = rng.sample(range(1000), 40)
    base = [Document(doc_id, f"tail {doc_id}", 3) for doc_id in ids[: rng.randrange(12)]]
    overlays = {}
    for name in "abcd":
        added = [Document(doc_id, f"{name} adds {doc_id}", 4) for doc_id in rng.sample(ids[12:], rng.randrange(5))]
        replaced = rng.sample(base, rng.randint(0, len(base)))
        added += [Document(document.doc_id, f"{name} replaces {document.doc_id}", 5) for document in replaced]
        rng.shuffle(added)
        overlays[name] = Overlay(name, tuple(added))
    return CorpusView(base, overlays)


def rebuilt(view: CorpusView, overlay: Overlay) -> list[Document]:
    """The definition: what replaces stands where the replaced one stood, what is new before a row drawn by its id."""
    known = [document.doc_id for document in view.base]
    replacing = {document.doc_id: document for document in overlay.added if document.doc_id in known}
    documents = [replacing.get(document.doc_id, document) for document in view.base]
    new = [document for document in overlay.added if document.doc_id not in known]
    drawn = [int(tie_order("places", np.asarray([document.doc_id]))[0]) for document in new]
    for number, document in sorted(zip(drawn, new, strict=True), key=lambda item: item[0], reverse=True):
        before = view.base[number % (len(known) + 1)].doc_id if number % (len(known) + 1) < len(known) else None
        place = [document.doc_id for document in documents].index(before) if before is not None else len(documents)
        earlier = [other for other, drawn_ in zip(new, drawn, strict=True) if drawn_ > number]
        while place and documents[place - 1] in earlier:
            place -= 1
        documents.insert(place, document)
    return documents


@pytest.mark.parametrize("seed", range(40))
def test_a_layered_corpus_is_the_rebuilt_list(seed: int) -> None:
    rng = random.Random(seed)
    view = drawn(rng)
    for name in (None, *view.overlays):
        question = Question("q", "?", "", 1, name)
        corpus, expected = view.documents(question), rebuilt(view, view.overlay(question))
        assert list(corpus) == expected and len(corpus) == len(expected)
        assert [corpus[place] for place in range(len(expected))] == expected
        assert [corpus[place] for place in range(-len(expected), 0)] == expected
        start, stop, step = rng.randrange(9), rng.randrange(-3, 20), rng.choice((1, 2, -1))
        assert corpus[start:stop:step] == expected[start:stop:step]
        assert [expected[place] for place in corpus.added_places] == corpus.added
        assert sorted(document.doc_id for document in corpus.added) == sorted(
            document.doc_id for document in view.overlay(question).added
        )
        hidden = {view.base[row].text for row in corpus.replaced}
        assert hidden == {document.text for document in view.base} - {document.text for document in expected}
        for document in expected:
            assert corpus.find(document.doc_id) == document
        assert corpus.find(5000) is None
        for place in (len(expected), -len(expected) - 1):
            with pytest.raises(IndexError):
                corpus[place]


def test_questions_of_one_overlay_share_their_corpus() -> None:
    view = CorpusView([Document(1, "one", 1)], {"a": Overlay("a", (Document(2, "two", 1),))})
    first, second, plain = (
        view.documents(Question("q", text, "", 1, name)) for text, name in (("x", "a"), ("y", "a"), ("z", None))
    )
    assert first is second and first is not plain
    assert [sorted(document.doc_id for document in corpus) for corpus in (first, plain)] == [[1, 2], [1]]
