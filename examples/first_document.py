"""Answers with the text of the document that shares most words with the question."""

from baselines.base import System
from msa_base.records import Answer


class FirstDocument(System):
    """Looks at every document of the question's own corpus."""

    def answer(self, questions, view):
        """One answer a question, in order."""
        answers = []
        for question in questions:
            words = set(question.text.lower().split())
            best = max(view.documents(question), key=lambda item: len(words & set(item.text.lower().split())))
            answers.append(
                Answer(
                    question.question_id,
                    best.text,
                    cited_doc_ids=[best.doc_id],
                    routed_doc_ids={"words": [best.doc_id]},
                )
            )
        return answers


def make(spec, resources):
    """Open the system."""
    return FirstDocument()
