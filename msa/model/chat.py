"""Prompts of models that are asked as they come: one message of a user, in the model's own chat template.

What is written here a served model gets as well (baselines.parts.endpoint), which lays its template around the message
itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from msa.model.prompt import Row, Spelling
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document

MESSAGE = "MESSAGE"  # stands for a user's message while a template is rendered
PLAIN = f"{MESSAGE}\n"  # of a model without a template: it goes on behind the message


class ChatPrompter(Spelling):
    """Builds rows of one message, up to where the reply begins.

    Args:
        template: the checkpoint's chat template (Jinja), None for a model that is no chat model.
        names: what the template may name beside its messages, such as ``bos_token``.

    Raises:
        UserError: the template cannot be rendered, or leaves the message out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: int | None = None,
        ends: Iterable[int] = (),
        template: str | None = None,
        names: dict[str, str] | None = None,
    ):
        own = {index for index in [tokenizer.token_to_id(prompts.IM_END)] if index is not None}
        super().__init__(tokenizer, rows, {*ends, *own})
        rendered = PLAIN if template is None else _rendered(template, names or {})
        if rendered.count(MESSAGE) != 1:
            raise UserError("its chat template does not give a user's message once; mend chat_template.jinja")
        self.head, self.tail = map(self.encode, rendered.split(MESSAGE))
        padding = tokenizer.token_to_id(prompts.END_OF_TEXT)
        self.pad = padding if padding is not None else min(self.ends, default=0)

    def message(self, text: str) -> Row:
        """A prompt that is one message of a user."""
        return Row().add(self.head).add(self.text(text)).add(self.tail)

    def reading(self, documents: list[Document], question: str, answer_prefix: str) -> Row:
        """A reader's prompt: the instruction, documents' text, the question, and how the answer should begin."""
        pairs = [(document.doc_id, document.text) for document in documents]
        return self.message(prompts.reading_message(pairs, question, answer_prefix))

    def said(self, ids: list[int]) -> str:
        """The message of a prompt."""
        return self.decode(ids[len(self.head) : len(ids) - len(self.tail)])


def _rendered(template: str, names: dict[str, str]) -> str:
    """A conversation of one message, as transformers renders it; what a template asks of the clock it does not get."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        messages = [{"role": "user", "content": MESSAGE}]
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **names)
    except Exception as error:  # whatever a foreign template does
        raise UserError(f"its chat template cannot be rendered ({error}); mend chat_template.jinja") from None
