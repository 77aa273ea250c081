"""Prose is English sentences, each once, and no sentence stands in both splits."""

from __future__ import annotations

import pytest

from msa_base.errors import UserError
from msa_base.tables import read_table
from tasks.parts.prose import read_sentences
from tasks.stages import sources

DOCSTRING = '''
def f():
    """Return the mean of all values in a list.

    The mean is ``nan`` where the list is empty, e.g. after a filter that kept nothing.

    >>> f([1, 2])
    1.5

    Parameters
    ----------
    values : list of float
        The values whose mean is wanted
        by the caller. See :func:`statistics.fmean` for a faster way to do it.
    x = y + 1 is not a sentence.
    """
'''


def test_sentences_of_a_docstring() -> None:
    found = [sentence for text in sources.documentation(DOCSTRING) for sentence in sources.sentences(text)]
    assert found == [
        "Return the mean of all values in a list.",
        "The mean is nan where the list is empty, e.g. after a filter that kept nothing.",
        "The values whose mean is wanted by the caller.",
        "See statistics.fmean for a faster way to do it.",
    ]


def test_comment_blocks_are_read() -> None:
    source = (
        "#!/usr/bin/env python\n# This block of words explains\n# what the next line does.\nx = 1  # not this one\n"
    )
    assert [s for t in sources.documentation(source) for s in sources.sentences(t)] == [
        "This block of words explains what the next line does."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short here.",
        "no capital at the very start.",
        "No end mark at all here",
        "Sum of a[i] over all of i.",
        "Ça ne va pas du tout ici.",
    ],
)
def test_what_is_not_prose(text: str) -> None:
    assert not sources.is_prose(text)


def test_no_sentence_occurs_twice_or_in_both_splits(prose) -> None:
    train, evaluation = (read_sentences(prose, split) for split in sources.SPLITS)
    assert min(len(train), len(evaluation)) > 500
    every = [sentence.casefold() for sentence in train + evaluation]
    assert len(set(every)) == len(every)


def test_a_source_file_has_one_split(prose) -> None:
    names = {
        split: {row["source"] for row in read_table("prose", prose / f"{split}.parquet")} for split in sources.SPLITS
    }
    assert not names["train"] & names["evaluation"]
    assert all(sources.split_of(name) == split for split, found in names.items() for name in found)
    assert not any("/test" in name or "site-packages" in name for found in names.values() for name in found)


def test_collecting_twice_gives_the_same() -> None:
    files = [file for file in sources.source_files() if file[0].startswith("python/json/")]
    assert sources.collect(files) == sources.collect(files)


def test_a_corrupt_file_is_named(tmp_path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more than that")
    with pytest.raises(UserError, match=r"train\.parquet: not a readable Parquet file"):
        read_sentences(tmp_path, "train")
