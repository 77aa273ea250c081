"""Every value in every YAML file: a wrong one is an error that names file and key, before any job, and no traceback.

Each kind of key is tried with one wrong value; ``make soak`` tries every wrong value at every key.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import reports.check
from baselines.planning.hardware import Hardware
from msa.checkpoints.pretrained import Pretrained
from msa.training.recipe import TrainParams
from msa_base import validate
from msa_base.errors import UserError
from msa_base.kinds import kinds_of
from msa_base.load import load
from msa_base.specs import EndpointSpec, ModelSpec, Profile, SystemFile, TaskFile
from reports.expected import Expectation
from reports.published.reference import Reference
from tasks.qa.samples import RealSpec
from tasks.qa.table import SetSpec
from tasks.stages.samples import SampleSpec
from tasks.stages.vocabulary import BytesSpec, HubSpec, WordsSpec
from tests.damage import damaged
from tests.test_names import FILES, ROOT, check_everything, place, replaced  # noqa: F401 (place is a fixture)

READ_AS_YAML = validate._parse  # `place` reads JSON

NAN, INFINITY = float("nan"), float("inf")
UNKNOWN = "zzz_unknown"  # a key that no mapping has
WRONG: dict[type, list[Any]] = {
    bool: [0, 1, 2.0, "yes", "", None, []],
    int: [-3, 0, NAN, 10**30, INFINITY, -0.5, -INFINITY, 2**70, True, "3", None, [], {}],
    float: [NAN, -3, INFINITY, 0, -INFINITY, 1e300, True, "3", None, [], {}],
    str: ["", 3, True, None, [], {}, ["a"]],
    list: ["x", 3, None, {}, {"a": 1}],
    dict: ["x", 3, True, None, []],
}


def is_zero(value: Any) -> bool:
    """Whether a value is the number 0."""
    return value == 0 and not isinstance(value, bool)


def is_nothing(value: Any) -> bool:
    """Whether a value is null."""
    return value is None


def is_figure(value: Any) -> bool:
    """Whether a value is a number that somebody may publish."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 <= value <= 1e6


def is_anything(_: Any) -> bool:
    """Of what another program understands."""
    return True


# What is right all the same: places (file: key/key/...) and the values that may stand there.
RIGHT: list[tuple[str, Callable[[Any], bool]]] = [
    (r"configs/judges\.yaml: [^/]+/body(/.*)?", is_anything),
    (r"configs/models\.yaml: [^/]+/params/model_kwargs/.*", is_anything),
    (r".*: [^/]+/params/model_kwargs", lambda value: isinstance(value, dict)),
    (
        r"configs/(models|judges)\.yaml: .*/(api_key_env|input_usd|output_usd|revision|answer_weight|serve|shape)",
        is_nothing,
    ),
    (r"configs/models\.yaml: msa_4b/params/router", is_nothing),
    (r"configs/models\.yaml: .*/(decay_share|final_share|matrix_weight_decay|answer_share|routing_dropout)", is_zero),
    (r"configs/models\.yaml: .*/(\w+_weight|answer_shares/\w+|temperature|top_p|\w+put_usd|routed_layers/0)", is_zero),
    (r"configs/models\.yaml: .*/form/(query_heads|key_heads|head_dim)", is_nothing),
    (r"configs/models\.yaml: .*/query_prefix", lambda value: value == ""),
    (r"configs/profiles/.*: limits/\w+", is_nothing),
    (r"configs/profiles/.*: (data|hardware|published|extends|limits/\w+)", is_nothing),
    (r"configs/profiles/.*: samples/\w+/(\w+_share|tasks_per_bank|seed)", is_zero),
    (r"configs/profiles/.*: seeds/\d+", is_zero),
    (r"configs/profiles/.*: (judges|main|indexes|corpora)", lambda value: value == []),
    (r"configs/systems\.yaml: systems/[^/]+/(max_questions|reranker)", is_nothing),
    (r"configs/systems\.yaml: .*/(b|nearness|constant|synonym_threshold|seed)(/\d+)?", is_zero),
    (r"configs/tasks\.yaml: corpora/[^/]+/params/max_tokens", is_nothing),
    (r"configs/tasks\.yaml: .*/(seed|other_passages)", is_zero),
    (r"reports/published/.*/(published|above|at_most|at_least)", is_figure),
    (r"reports/published/reference\.yaml: .*/(series|rows)/[^/]+/\d+", is_zero),
    (r"reports/published/reference\.yaml: .*/(series|rows|training_s)/[^/]+", lambda value: isinstance(value, list)),
    (r"reports/published/tables\.yaml: [^/]+/(systems/\d+/system|timings|(exact|miniature)/role)", is_nothing),
    (r"tasks/qa/sets\.yaml: .*/(sha256|revision|tokens|language)", is_nothing),
]


class Case(NamedTuple):
    """One wrong value: where, and what would stand there."""

    key: str
    value: Any


def inside(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) of a value and of everything inside it."""
    yield key, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield from inside(value, f"{key}/{name}".lstrip("/"))


def wrong_values(file: str, key: str, value: Any) -> list[Any]:
    """What may not stand at a key whose value is right."""
    wrong = list(WRONG.get(type(value), []))
    if isinstance(value, list) and value:
        wrong.append([*value, value[0]])
    if isinstance(value, dict):
        wrong.append({**value, UNKNOWN: 1})
    right = [may for pattern, may in RIGHT if re.fullmatch(pattern, f"{file}: {key}")]
    return [item for item in wrong if not any(may(item) for may in right)]


def kind_of(file: str, key: str) -> str:
    """A key without the names of entries: what is checked by the same field."""
    depth = 1 if re.match(r"configs/(systems|tasks)|reports/published/reference", file) else 0
    parts = re.sub(r"/\d+", "/#", key).split("/")
    return "/".join("*" if at == depth and "profiles/" not in file else part for at, part in enumerate(parts))


def cases(file: str, content: Any, every: bool) -> Iterator[Case]:
    """Every wrong value of a file, or one for each kind of key, in turn."""
    seen: set[str] = set()
    for key, value in inside(content):
        wrong, kind = wrong_values(file, key, value), kind_of(file, key)
        if wrong and (every or kind not in seen):
            yield from (Case(key, item) for item in (wrong if every else [wrong[len(seen) % len(wrong)]]))
        seen.add(kind)


def spoilt(content: Any, case: Case) -> Any:
    """The content with the wrong value."""

    def put(container: Any, key: Any) -> None:
        container[key] = case.value

    return replaced(content, case.key.split("/"), put) if case.key else case.value


def is_clear(file: str, case: Case, message: str) -> bool:
    """Whether one line names the file and the key, or the entry that the key is of."""
    words = [word for word in re.split(r"[/\d]+", case.key) if word][-2:]
    return Path(file).name in message and "\n" not in message and (not words or any(word in message for word in words))


EVERY = [False, pytest.param(True, marks=pytest.mark.soak)]


@pytest.mark.parametrize("every", EVERY, ids=["one of a kind", "every"])
@pytest.mark.parametrize("file", FILES)
def test_every_wrong_value_is_refused(place: Path, file: str, every: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    opened = load if file.startswith("configs/") else cache(load)  # the configuration stays as it is
    monkeypatch.setattr(reports.check, "load", opened)
    shipped, accepted, unclear, number = (place / file).read_text(), [], [], 0
    for case in cases(file, json.loads(shipped), every):
        number += 1
        (place / file).write_text(json.dumps(spoilt(json.loads(shipped), case)))
        try:
            check_everything(place / "configs", file, opened)
        except UserError as error:
            if not is_clear(file, case, str(error)):
                unclear.append(f"{case}: {str(error)[:300]}")
        else:
            accepted.append(str(case))
    (place / file).write_text(shipped)
    assert not accepted and not unclear, "\n".join([*accepted, *unclear])
    assert number


def records() -> Iterator[type]:
    """The dataclasses that people's YAML becomes, of modules that a `kind` names too."""
    yield from (Profile, SystemFile, TaskFile, ModelSpec, EndpointSpec, Hardware, SetSpec, Reference, Expectation)
    yield from (TrainParams, Pretrained, SampleSpec, RealSpec, WordsSpec, BytesSpec, HubSpec)
    for package in ("baselines", "baselines.parts", "tasks", "tasks.qa"):
        for name in {name for name in kinds_of(package) if "." not in name}:
            module = importlib.import_module(f"{package}.{name}")
            for holder in ("Params", "IndexParams", "RetrieverParams", "CorpusParams", "ModelParams"):
                if dataclasses.is_dataclass(getattr(module, holder, None)):
                    yield getattr(module, holder)


def unbounded(schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Places of a JSON schema where a number has no lowest or no highest value."""
    ends = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})
    if schema.get("type") in ("integer", "number") and not all(end & schema.keys() for end in ends):
        yield where
    for key, value in schema.items():
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict):
                yield from unbounded(part, f"{where}/{key}" if part is value else f"{where}/{key}/{number}")


def test_every_number_that_people_write_has_a_range() -> None:
    found = list(records())
    assert len(found) > 30
    for record in found:
        assert list(unbounded(TypeAdapter(record).json_schema())) == [], record


MODELS, SYSTEMS, TASKS, TINY = (f"configs/{name}.yaml" for name in ("models", "systems", "tasks", "profiles/tiny"))
REPORTED = [  # each was once accepted, or ended in a traceback or never
    (TINY, "seeds", [-1], "seeds[0]"),
    (TINY, "seeds", [0, 0], "'0' is named twice"),
    (TINY, "seeds", [2**70], "seeds[0]"),
    (TINY, "contexts", ["16K", "16K"], "'16K' is named twice"),
    (TINY, "contexts", ["32K", "16K"], "smallest first"),
    (TINY, "systems", ["msa", "msa"], "'msa' is named twice"),
    (TINY, "latency/questions", 0, "questions"),
    (TINY, "latency/questions", -1, "questions"),
    (TINY, "latency/threads", 0, "threads"),
    (TINY, "latency/threads", -3, "threads"),
    (TINY, "tokenizer/words", 0, "words"),
    (TINY, "tokenizer/words", -1, "words"),
    (TINY, "samples/bare/banks", -1, "banks"),
    (TINY, "samples/bare/banks", 0, "banks"),
    (TINY, "samples/bare/bare_share", 2.0, "bare_share"),
    (TINY, "samples/bare/bare_share", NAN, "bare_share"),
    (TINY, "samples/bare/questions", 0, "questions"),
    (SYSTEMS, "systems/rag_bm25/max_questions", 0, "max_questions"),
    (SYSTEMS, "systems/rag_bm25/max_questions", -1, "max_questions"),
    (SYSTEMS, "systems/msa/params/max_rounds", -1, "max_rounds"),
    (SYSTEMS, "systems/msa/reads_gold", True, "reads_gold' must be false"),
    (SYSTEMS, "systems/oracle/reads_gold", False, "reads_gold' must be true"),
    (SYSTEMS, "systems/msa/kind", "os.path", "opens no system"),
    (SYSTEMS, "systems/rag_bm25/params/b", INFINITY, "'b' must be a finite number"),
    (SYSTEMS, "systems/rag_dense/index", None, "needs the key 'index'"),
    (SYSTEMS, "systems/closed_book/model", None, "needs the key 'model'"),
    (SYSTEMS, "indexes", "x", "indexes: expected a mapping"),
    (SYSTEMS, "systems", 3, "systems: expected a mapping"),
    (TASKS, "corpora", "x", "corpora: expected a mapping"),
    (TASKS, "tasks", 3, "tasks: expected a mapping"),
    (TASKS, "tasks/scaling_facts/params/head_tokens", 10**7, "below the smallest context 16K"),
    (TASKS, "tasks/scaling_facts/params/head_tokens", -1, "head_tokens"),
    (TASKS, "corpora/facts/params", {"nouns": -1}, "nouns"),
    (TASKS, "corpora/facts/params", {"nouns": 10**9}, "nouns"),
    (MODELS, "backbone/params/shape/hidden_size", -1, "hidden_size"),
    (MODELS, "backbone/params/shape/query_heads", 3, "'query_heads' must be a multiple of kv_heads"),
    (MODELS, "backbone/params/shape/layers", 0, "layers"),
    (MODELS, "msa/params/router/routed_layers", [2, 9], "'routed_layers' must be below 4"),
    (MODELS, "msa/params/router/routed_layers", [3, 3], "each layer once"),
    (MODELS, "msa/params/router/pool_tokens", -8, "pool_tokens"),
    (MODELS, "msa/params/router/top_k_documents", 0, "top_k_documents"),
    (MODELS, "msa/params/phases/0/steps", -3, "steps"),
    (MODELS, "msa/params/phases/0/steps", 0, "steps"),
    (MODELS, "msa/params/phases/0/rows", 0, "rows"),
    (MODELS, "msa/params/phases", [], "phases"),
    (MODELS, "msa/params/optimizer/matrix_learning_rate", NAN, "matrix_learning_rate"),
]


@pytest.mark.parametrize("file", [MODELS, SYSTEMS, TASKS, TINY])
def test_what_was_reported_is_refused(place: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(reports.check, "load", load)
    shipped = (place / file).read_text()
    for _, key, value, words in (case for case in REPORTED if case[0] == file):
        (place / file).write_text(json.dumps(spoilt(json.loads(shipped), Case(key, value))))
        with pytest.raises(UserError) as raised:
            check_everything(place / "configs", file)
        message = str(raised.value)
        assert words in message and Path(file).name in message and "\n" not in message, (key, value, message)


@given(file=st.sampled_from(FILES), data=st.data())
def test_any_damage_is_one_clear_error_or_another_right_value(place: Path, file: str, data: st.DataObject) -> None:  # noqa: F811
    path = place / file
    shipped = path.read_bytes()
    path.write_bytes(data.draw(damaged((ROOT / file).read_bytes())))

    def parse(text: str, at: Path | str) -> Any:
        return READ_AS_YAML(text, at) if str(at) == str(path) else json.loads(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "_parse", parse)
        try:
            check_everything(place / "configs", file)
        except UserError as error:
            assert ".yaml" in str(error) and "\n" not in str(error)
        finally:
            path.write_bytes(shipped)
