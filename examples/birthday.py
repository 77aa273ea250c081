"""Birthdays: on which day somebody was born, one document each."""

from tasks.parts.entities import head_names
from tasks.parts.heads import Ask, HeadParams, prepare_heads

Params = HeadParams


def birthday_head(limit, generator):
    """At most ``limit`` sentences, each of which becomes a document in real prose, and a question on each."""
    for name in head_names(generator, limit):
        day = f"{generator.randint(1, 28)} {generator.choice(('May', 'June'))} {generator.randint(1900, 1999)}"
        yield [f"{name} was born on {day}."], [Ask(f"When was {name} born?", [day], [0])]  # answers, gold documents


def prepare(request):
    """The same questions at every context."""
    return prepare_heads(request, request.read(Params), birthday_head)
