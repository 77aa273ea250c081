"""Whether a text shows anything: spaces, control characters and what has no width do not."""

from __future__ import annotations

import unicodedata

_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode's categories of control, format and space


def is_blank(text: str) -> bool:
    """Whether a text has no character that can be seen."""
    return all(unicodedata.category(letter) in _UNSEEN for letter in text)
