"""The server of canned replies (msa_base.stand_in) for tests, and replies spoilt by chance."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from msa_base.stand_in import Canned, Reply, canned, chat

__all__ = ["JSON", "Canned", "Reply", "canned", "chat", "spoilt"]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> Any:
    """A good reply with one value, wherever it stands, changed into any other."""
    good = json.loads(json.dumps(good))
    place, at = good, None
    while isinstance(place, dict | list) and place:
        at = place, draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = at[0][at[1]]
        if draw(st.booleans()):
            break
    at[0][at[1]] = draw(JSON)
    return good
