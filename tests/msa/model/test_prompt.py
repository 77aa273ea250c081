"""Rows of tokens: where a tokenizer lies, what is learnt, padding and positions."""

from __future__ import annotations

import pytest

from msa.model.losses import IGNORE
from msa.model.prompt import Prompter, Row, _spelling_error, load_tokenizer, own_positions, pad_rows
from msa_base.errors import UserError


def test_a_tokenizer_is_read_from_its_file_and_from_its_directory(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).get_vocab() == tokenizer.get_vocab()


def test_each_learnt_token_is_the_target_of_the_one_before_it():
    row = Row().add([1, 2]).add([3, 4], routing=True, learn=True).add([], learn=True).add([5])
    assert row.ids == [1, 2, 3, 4, 5]
    assert row.targets == [IGNORE, 3, 4, IGNORE, IGNORE]
    assert row.routing == [False, False, True, True, False]


def test_rows_are_padded_on_the_right_to_a_multiple():
    assert pad_rows([[1], [2, 3, 4]], 9).tolist() == [[1, 9, 9], [2, 3, 4]]
    assert pad_rows([[1], [2, 3, 4]], 9, 2).tolist() == [[1, 9, 9, 9], [2, 3, 4, 9]]
    assert pad_rows([[1, 2]], 9, 2).tolist() == [[1, 2]]


def test_what_stands_behind_the_template_head_makes_room_for_the_chosen_documents():
    assert own_positions(5, 2, 3).tolist() == [0, 1, 5, 6, 7]


@pytest.mark.parametrize("text", ["a \ud800", "\udfff", "b \udbff\udbff"])
def test_half_a_surrogate_pair_is_no_text(tokenizer, text):
    with pytest.raises(UserError, match="not valid Unicode; give it as UTF-8"):
        Prompter(tokenizer).text(text)


def test_what_no_tokenizer_spells_is_its_own_fault(tokenizer):
    """A text that UTF-8 can hold, up to both ends of the surrogates, is not blamed."""
    fault = _spelling_error(["a \ud7ff \ue000"], TypeError("no such piece"))
    assert isinstance(fault, UserError) and "tokenizer.json is broken" in str(fault)


def test_the_question_alone_or_its_whole_wording_routes(tokenizer):
    rows = {}
    for tokens in ("wording", "question"):
        prompter = Prompter(tokenizer, query_tokens=tokens)
        row = prompter.opening("what is alpha")
        rows[tokens] = row.ids, [token for token, routes in zip(row.ids, row.routing, strict=True) if routes]
    assert rows["wording"][0] == rows["question"][0] and rows["question"][1] == prompter.text("what is alpha")
    assert len(rows["wording"][1]) > len(rows["question"][1])


def test_a_token_beyond_the_models_rows_is_refused(tokenizer):
    prompter = Prompter(tokenizer)
    last = max(prompter.text("what is alpha"))
    prompter.rows = last + 1
    assert max(prompter.text("what is alpha")) == last
    prompter.rows = last
    with pytest.raises(UserError, match=f"token {last} .* has rows for {last};"):
        prompter.text("what is alpha")
