"""The tokenizer keeps every digit apart in pairs and gives back what it read."""

from __future__ import annotations

import random

import pytest

from msa_base import prompts
from msa_base.errors import UserError
from tasks.parts import wording
from tasks.stages import vocabulary


@pytest.mark.parametrize(
    "text",
    [
        "3f2a91bc-1234-4abc-8abc-0123456789ab",
        "faceb00c-deaf-4bed-8add-cafe00112233",
        "lonely-pencil",
        "Lonely Pencil is here.",
        "4839201",
        "4839201, 1234567, 7654321, and 1111111",
        "[123456][654321]",
        "the answer is 12345.",
    ],
)
def test_round_trip(tokenizer, text) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_uuids_and_numbers_split_into_pairs(tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(300):
        value = wording.random_uuid(generator)
        pieces = [token.removeprefix("##") for token in tokenizer.encode(value).tokens]
        assert "".join(pieces) == value and [len(piece) for piece in pieces if piece != "-"] == [2] * 16
        number = wording.random_number(generator)
        assert tokenizer.decode(tokenizer.encode(number).ids) == number
        assert len(tokenizer.encode(number).ids) == 4


def test_special_tokens_and_case(tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in prompts.SPECIAL_TOKENS] == list(
        range(len(prompts.SPECIAL_TOKENS))
    )
    tokens = tokenizer.encode(prompts.document(123456, "Hello")).tokens
    assert tokens[0] == prompts.IM_START and tokens[-1] == prompts.IM_END
    names = wording.entity_name("brave", "abacus")
    assert (
        tokenizer.encode(names).tokens == ["Brave", "Abacus"] and tokenizer.decode(tokenizer.encode(names).ids) == names
    )
    assert tokenizer.encode("brave abacus").tokens == ["brave", "abacus"]  # a name is not the word it is made of
    assert vocabulary.UNKNOWN not in tokenizer.encode("Café déjà-vu!? (~x_y) {z}; 100%").tokens


def test_words_of_keys_and_templates_are_whole(tokenizer) -> None:
    adjectives, nouns = wording.plain_words()
    for word in [
        *adjectives[::40],
        *nouns[::200],
        *(noun.capitalize() for noun in nouns[::200]),
        *" ".join(wording.template_words()).replace("{", " ").split(),
    ]:
        if word.isalpha() and not set(word) <= vocabulary.HEX:
            assert tokenizer.encode(word).tokens == [word]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "letters"}, "kind: unknown name 'letters'.*words, bytes, hub"),
        ({"kind": "words", "wordz": 3}, "unknown key 'wordz'"),
        ({"kind": "hub", "path": "/nowhere"}, "does not exist"),
    ],
)
def test_bad_entries(entry, message, prose) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary.make_tokenizer(entry, "tiny.yaml: tokenizer", prose)


def test_a_model_directory_and_a_broken_file(tokenizer, prose, tmp_path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = vocabulary.make_tokenizer({"kind": "hub", "path": str(tmp_path)}, "tokenizer", prose)
    assert loaded.encode("The sky is blue.").ids == tokenizer.encode("The sky is blue.").ids
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer file"):
        vocabulary.read_tokenizer(tmp_path / "tokenizer.json")
