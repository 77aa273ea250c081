"""Seals: what they hold, what no longer holds is named, and what is read again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from msa_base import seal
from msa_base.errors import UserError
from msa_base.seal import File, MadeFrom, Seal

MADE_FROM = MadeFrom(code={"a": "1", "b": "2"}, config={"k": "3"})


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """The seal of two files."""
    (tmp_path / "one.txt").write_text("first")
    (tmp_path / "two.txt").write_text("second one")
    seal.write_seal(tmp_path / "seal.json", MADE_FROM, ["two.txt", "one.txt"])
    return tmp_path / "seal.json"


def test_a_seal_holds_digests_and_sizes(sealed: Path) -> None:
    found = Seal.open(sealed)
    held = {"one.txt": b"first", "two.txt": b"second one"}
    assert found.files == {n: File(sha256=hashlib.sha256(c).hexdigest(), bytes=len(c)) for n, c in held.items()}
    assert list(found.files) == ["one.txt", "two.txt"]
    assert found.made_from == MADE_FROM
    assert sealed.with_name(".seal.json").read_bytes() == sealed.read_bytes()


def edited(path: Path, again: bool = True, **changes: object) -> None:
    """Change a seal's keys, with a digest that fits where ``again``."""
    content = json.loads(path.read_text()) | changes
    if again:
        del content["digest"]
        content["digest"] = seal.value_digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("damage", "said"), [
    (lambda path: (path.parent / "one.txt").unlink(), "one.txt: is missing"),
    (lambda path: (path.parent / "one.txt").write_text("longer"), "one.txt: has 6 bytes, 5 were sealed"),
    (lambda path: (path.parent / "two.txt").write_text("second two"), "two.txt: was changed"),
    (lambda path: edited(path, again=False, files={}), "seal.json: was changed"),
    (lambda path: edited(path, format=0), "is of format 0, this version reads format 1"),
    (lambda path: edited(path, format=2), "is of format 2, this version reads format 1"),
    (lambda path: path.write_text("[]"), "is of format none"),
    (lambda path: edited(path, other=1), "key 'other'"),
    (lambda path: edited(path, made_from={"code": {"a": 1}}), "key 'made_from.code.a': .*found 1"),
    (lambda path: path.unlink(), "no such file"),
])  # fmt: skip
def test_what_does_not_hold_is_named(sealed: Path, damage, said: str) -> None:
    damage(sealed)
    with pytest.raises(UserError, match=said):
        Seal.open(sealed)


def test_outputs_stay_where_nothing_changed(sealed: Path, capsys: pytest.CaptureFixture) -> None:
    assert Seal.current(sealed, MADE_FROM) == Seal.open(sealed)
    assert "stays, nothing changed" in capsys.readouterr().out
    sealed.unlink()  # as Snakemake does before a rule runs: the copy says what is there
    assert Seal.current(sealed, MADE_FROM) is not None
    assert Seal.open(sealed).made_from == MADE_FROM
    assert Seal.current(sealed, MadeFrom(code={"a": "1", "b": "0", "c": "1"})) is None
    assert "made, since code changed: b, c; config changed: k" in capsys.readouterr().out
    (sealed.parent / "one.txt").write_text("other")
    assert Seal.current(sealed, MADE_FROM) is None
    assert "one.txt: was changed after it was sealed" in capsys.readouterr().out
    assert Seal.current(sealed.with_name("none.json"), MADE_FROM) is None
    assert "nothing is there" in capsys.readouterr().out


def test_one_digest_stands_for_all_that_a_result_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("x")
    found = MADE_FROM.of(tmp_path, tmp_path / "in" / "file", limit=3)
    assert found.data == {"in/file": hashlib.sha256(b"x").hexdigest(), "limit": hashlib.sha256(b"3").hexdigest()}
    assert found.code == MADE_FROM.code
    assert len({MADE_FROM.digest, found.digest, MadeFrom().digest}) == 3
    assert found.changes(found) == ""


def test_a_value_has_one_digest_whatever_the_order_of_its_keys() -> None:
    assert seal.value_digest({"a": 1, "b": [1, 2]}) == seal.value_digest({"b": [1, 2], "a": 1})
    assert seal.value_digest({"a": 1, "b": [1, 2]}) == hashlib.sha256(b'{"a": 1, "b": [1, 2]}').hexdigest()
    assert seal.value_digest([1, 2]) != seal.value_digest([2, 1])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files whose content is digested, of a results directory ``tmp_path``."""
    made: list[str] = []
    digest = hashlib.file_digest

    def counted(content, kind: str):
        made.append(Path(content.name).name)
        return digest(content, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(seal, "_DIGESTS", {})
    (tmp_path / "_logs").mkdir()
    seal.read_cache.cache_clear()
    return made


def later(monkeypatch: pytest.MonkeyPatch, path: Path, seconds: float) -> None:
    """Let it be so long after a file changed last."""
    found = path.stat()
    now = max(found.st_mtime_ns, found.st_ctime_ns) + round(seconds * 1e9)
    monkeypatch.setattr(seal.time, "time_ns", lambda: now)


def test_a_file_that_settled_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    for age, times in ((0.5, 2), (1.9, 4), (2.1, 5), (9.0, 5)):
        later(monkeypatch, path, age)
        assert seal.file_digest(path) == seal.file_digest(path) == hashlib.sha256(b"before").hexdigest()
        assert len(reads) == times, age
    before = path.stat()
    path.write_text("behind")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as they were
    assert seal.file_digest(path) == hashlib.sha256(b"behind").hexdigest()
    path.unlink()
    assert seal.digest_if_there(path) is None
    with pytest.raises(UserError, match="no such file"):
        seal.file_digest(path)


@pytest.mark.parametrize("large", [3, 4])
def test_only_large_files_are_kept_for_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], large: int
) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "file"
    path.write_text("four")
    monkeypatch.setattr(seal, "LARGE_BYTES", large)
    later(monkeypatch, path, 10)
    first = seal.file_digest(path)
    kept = json.loads((tmp_path / seal.CACHE).read_text()) if large < 4 else {}
    assert [entry[3] for entry in kept.values()] == [first] * (large < 4)
    assert (tmp_path / seal.CACHE).exists() == (large < 4)
    monkeypatch.setattr(seal, "_DIGESTS", {})  # another command
    seal.read_cache.cache_clear()
    assert seal.file_digest(path) == first == seal.digest_if_there(path)
    assert len(reads) == (1 if large < 4 else 2)


def test_kept_digests_are_of_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    for name in ("gone", "here"):
        (tmp_path / name).write_text(name)
        later(monkeypatch, tmp_path / name, 10)
        seal.file_digest(tmp_path / name)
    (tmp_path / "gone").unlink()
    seal.keep_digests(tmp_path)
    assert set(json.loads((tmp_path / seal.CACHE).read_text())) == {str(tmp_path / "here")}
    (tmp_path / "broken").write_text("{")
    assert seal.read_cache(tmp_path / "broken") == {} == seal.read_cache(tmp_path / "missing")


def test_a_checkpoint_is_its_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        seal.checkpoint_digest(tmp_path)
    seen = set()
    for name in ("model.safetensors", "model-2.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_text(name)
        seen.add(seal.checkpoint_digest(tmp_path))
    assert len(seen) == 5
    (tmp_path / "train.jsonl").write_text("{}")
    assert seal.checkpoint_digest(tmp_path) in seen
