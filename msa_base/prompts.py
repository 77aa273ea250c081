"""The strings that models see: special tokens, the document wrapper, question and reader templates (paper, 3 and 4)."""

from __future__ import annotations

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
OBJECT_REF_END = "<|object_ref_end|>"  # ends generated ids and fetched text
END_OF_RETRIEVE = "<End-of-Retrieve>"  # the model has all the documents it wants
END_OF_TEXT = "<|endoftext|>"  # padding
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, OBJECT_REF_END, END_OF_RETRIEVE)

TEMPLATE_HEAD = f"{IM_START}user\n"
TEMPLATE_TAIL = f"{IM_END}\n{IM_START}assistant\n"
REPEAT_QUESTION = "The user's question is: "
GIVE_ANSWER = "The answer to the question is: "
NO_MEMORY = "No previous memory"  # what a memory agent starts from (MemAgent)
THINK_END = "</think>"  # ends what a model says to itself; what follows is its reply


def document(doc_id: int, text: str) -> str:
    """A document of the memory: its id stands at both ends."""
    return f"{IM_START}[{doc_id}]. {text}[{doc_id}]{IM_END}"


def fetched(doc_id: int, text: str) -> str:
    """A document's original text, one line of what Memory Interleave appends."""
    return f"[{doc_id}]. {text}\n"


def citation(doc_ids: list[int]) -> str:
    """Generated ids: ``[17][4]<|object_ref_end|>``."""
    return "".join(f"[{doc_id}]" for doc_id in doc_ids) + OBJECT_REF_END


def question(text: str) -> str:
    """The question text: the tokens that take part in routing."""
    return f"Answer from the documents above: {text} Return all related documents."


def released_question(text: str) -> str:
    """The question text that MSA-4B was trained on (EverMind-AI/MSA at 30405b2, src/msa_service.py)."""
    before = "\nPlease answer the question based on the above historical document information\n\n"
    return f"{before}{text}\nPlease return all documents related to the question\n"


def reading_message(documents: list[tuple[int, str]], question_text: str, answer_prefix: str) -> str:
    """One chat message for models that are asked as they come: documents (id, text), question, start of the answer."""
    texts = "".join(fetched(doc_id, text) for doc_id, text in documents)
    source = f"from the documents below:\n\n{texts}\n" if documents else "from what you know.\n\n"
    message = f"Answer the question {source}Question: {question_text}\nReply with the answer alone. {answer_prefix}"
    return message.rstrip()


def memory_update(problem: str, memory: str, section: str) -> str:
    """A memory agent's message for one section (MemAgent); the reply is the new memory.

    The problem comes again behind the section, as in every prompt here: a small model looks for what it was asked last.
    """
    task = f"Update the memory from the section.\nProblem: {problem}\nMemory: {memory}\nSection: {section}\n"
    return f"{task}{REPEAT_QUESTION}{problem}\nNew memory: "


# What RL-MemoryAgent-14B is evaluated with: BytedTsinghua-SIA/MemAgent at 76b7a65, taskutils/memory_eval/utils/
# recurrent.py (the space behind "<problem>" is theirs). It was trained on the same updates, but on a last message that
# wants the answer in \boxed{} (recurrent/impls/memory.py).
_MEMAGENT_STATE = "<problem> \n{problem}\n</problem>\n\n<memory>\n{memory}\n</memory>\n\n"
MEMAGENT_UPDATE = f"""You are presented with a problem, a section of an article that may contain the answer to the \
problem, and a previous memory. Please read the provided section carefully and update the memory with the new \
information that helps to answer the problem. Be sure to retain all relevant details from the previous memory while \
adding any new, useful information.

{_MEMAGENT_STATE}<section>
{{section}}
</section>

Updated memory:
"""
MEMAGENT_ANSWER = f"""You are presented with a problem and a previous memory. Please answer the problem based on the \
previous memory and format your response as follows "Therefore, the answer is (insert answer here)".

{_MEMAGENT_STATE}Your answer:
"""
MEMAGENT_ANSWER_MARK = "the answer is"  # what follows its last occurrence is the answer
