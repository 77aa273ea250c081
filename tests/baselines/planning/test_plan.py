"""Plans: the paper's figures derived, bytes placed by tier, what cannot fit refused before it begins, planned
beside measured.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import baselines.drivers.run
import baselines.planning.cost
import baselines.planning.hardware
import baselines.planning.plan
from baselines.base import Estimate, MemoryPart
from baselines.planning.cost import Planner, Ran, fit, refused_contexts, together, what_ran
from baselines.planning.hardware import Hardware, place
from baselines.planning.plan import Comparison, compare, related
from msa.model.cost import Cost, phase_tokens, training_tokens
from msa_base.errors import run_command
from msa_base.load import load
from msa_base.paths import Paths
from msa_base.seal import MadeFrom
from msa_base.stage_records import IndexRecord, LatencyRecord, RunRecord
from tests.baselines.conftest import CONTEXTS, PROFILE, Workplace

HERE = Hardware(
    title="this machine", source="a test", devices=0, device_gb=0, host_gb=25, disk_gb=60, dtype="float32",
    matmul_tflops=0.4, memory_gb_per_s=0, link_gb_per_s=0, matmul_share=0.25, memory_share=0,
)  # fmt: skip
GPUS = Hardware(
    title="two", source="a test", devices=2, device_gb=80, host_gb=500, disk_gb=1000, dtype="bfloat16",
    matmul_tflops=300, memory_gb_per_s=2000, link_gb_per_s=32, matmul_share=0.5, memory_share=0.8,
)  # fmt: skip
ROOT = Path(__file__).parents[3]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """This machine as a test wants it."""

    def become(**changes: Any) -> None:
        found = Hardware(**{**vars(HERE), **changes})
        for module in (baselines.planning.cost, baselines.planning.plan):
            monkeypatch.setattr(module, "this_machine", lambda _: found)

    become()
    return become


@pytest.fixture
def run_plan(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command over an empty results directory: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan", "--results", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command(baselines.planning.plan.main)
        return ended.value.code, *capfd.readouterr()

    return run


def test_the_paper_profile_derives_the_published_figures_and_refuses_what_cannot_fit(run_plan: Callable) -> None:
    code, output, _ = run_plan("--profile", "paper")
    assert code == 0
    for figures in (("57.6", "GB", "published:", "56"), ("115.2", "GB", "twice"), ("172.8", "GB", "published:", "169")):
        assert any(set(figures) <= set(line.split()) for line in output.splitlines())
    assert "4,258,397,696" in output
    assert "msa, 16K on here: out_of_memory: " in output and "has 22.5 GB to give" in output
    assert "hf download Qwen/Qwen3-4B-Instruct-2507 --revision cdbee75f" in output


def test_the_paper_profile_as_json(run_plan: Callable) -> None:
    found = json.loads(run_plan("--profile", "paper", "--json")[1])
    rows = {(row["name"], row["size"]): row for row in found["rows"]}
    assert len(rows) == 2 + 1 + 7 * 11
    at_100m = rows["msa", "100M"]
    # the tail beside the head of the question, in documents of whole chunks
    assert at_100m["parts"]["routing keys"] == pytest.approx(57.6e9, rel=1e-3)
    assert at_100m["parts"]["content"] == pytest.approx(115.2e9, rel=1e-3)
    two, one, here = (at_100m["machines"][name] for name in ("A800-80GB-x2", "H200", "here"))
    assert (two["status"], one["status"], here["status"]) == ("ok", "ok", "out_of_memory")
    # keys lie on the devices, halved between the two; content does not fit beside them
    assert 28.8e9 < two["device_bytes"] < 72e9 and two["host_bytes"] > 115e9
    assert one["device_bytes"] > 57.6e9 + 8.5e9
    assert "host needs " in here["reason"]
    assert rows["full_attention", "512K"]["machines"]["H200"]["status"] == "unsupported_context"
    assert [(line["value"], line["published"]) for line in found["published"][:3]] == [
        (57.6, 56),
        (115.2, None),
        (172.8, 169),
    ]
    assert found["measured"] == [] and found["rates"] == 0


def test_the_tiny_profile_is_planned_from_a_clean_tree(run_plan: Callable) -> None:
    code, output, _ = run_plan("--profile", "tiny", "--json")
    found = json.loads(output)
    assert code == 0
    profile = load("tiny").profile
    trained = len(profile.models)
    models, indexes, systems = (
        found["rows"][:trained],
        found["rows"][trained : trained + 2],
        found["rows"][trained + 2 :],
    )
    assert [(row["name"], row["size"]) for row in systems] == [
        (system, context) for system in profile.systems for context in profile.contexts
    ]
    assert {row["source"] for row in systems} == {"assumed"}
    assert [row["name"] for row in models] == [f"model {name}" for name in profile.models]
    assert all("parameters" in row["size"] and row["flops"] > 1e12 for row in models)
    # six corpora of 1M tokens in documents of 96: 12 chunks of 8, 2 layers x (64 + 2 x 64) floats, text and tables
    # beside them
    chunks = 6 * (1_000_000 // 96 * 12 + 8)
    assert indexes[0]["name"] == "index bank, 6 corpora"
    bank_bytes = indexes[0]["machines"]["here"]["disk_bytes"]
    assert bank_bytes == pytest.approx(chunks * 2 * 192 * 4 + 6 * 4e6, rel=0.02)
    assert indexes[0]["parts"]["indexes of other corpora"] == pytest.approx(bank_bytes * 5 / 6)
    msa = [row for row in systems if row["name"] == "msa"]
    hours = [row["machines"]["here"]["seconds"] for row in msa]
    assert all(row["machines"]["here"]["status"] == "ok" for row in msa)
    assert hours[1:] == sorted(hours[1:]) and hours[0] > hours[1]  # heads are encoded at the first context
    held = [row["parts"]["routing keys"] for row in msa]
    assert held[-1] == pytest.approx(held[-2] * 1_000_000 / 524_288, rel=0.05)


def test_reranking_costs_its_pairs_and_fusing_what_dense_retrieval_does(tmp_path: Path) -> None:
    made = Planner(load("tiny"), Paths.of("tiny", tmp_path))
    work = made.workload("rag_dense", "scaling_facts", "1M")
    stages = {name: made.cell(name, work, "float32").stages for name in ("rag_dense", "rag_hybrid", "rag_rerank")}
    assert {name: cost.flops for name, cost in stages["rag_hybrid"].items()} == {
        name: cost.flops for name, cost in stages["rag_dense"].items()
    }
    asked = made.experiment.systems["rag_rerank"].params["candidates"] * work.questions
    layers = 2 * 4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 384)  # FLOPs a token of four layers' matrices, at least
    pairs = asked * (work.document_tokens + work.question_tokens) * layers
    assert pairs < stages["rag_rerank"]["rerank"].flops < 2 * pairs


@pytest.mark.parametrize("profile", ["tiny", "tiny_100m", "small", "paper"])
def test_a_plan_fits_one_screen(run_plan: Callable, profile: str) -> None:
    output = run_plan("--profile", profile)[1]
    assert 10 < output.count("\n") < 75 and "in all that fits" in output


def test_unknown_hardware_is_one_line_and_exit_2(run_plan: Callable) -> None:
    code, output, errors = run_plan("--profile", "tiny", "--hardware", "H20")
    assert code == 2 and output == ""
    assert "--hardware: unknown name 'H20'; did you mean 'H200'?" in errors and errors.count("\n") == 1


def tiers(*parts: MemoryPart, machine: Hardware = GPUS, **room: float) -> dict[str, dict[str, float]]:
    placed = place(parts, machine, {"device": 72e9, "host": 450e9, "disk": 1e12, **room})
    return {tier: dict(found) for tier, found in placed.items() if found}


def test_parts_without_a_tier_take_the_fastest_that_has_room() -> None:
    keys, content = (
        MemoryPart("keys", 60e9, "device", sharded=True),
        MemoryPart("content", 80e9, "auto", sharded=True, stored=True),
    )
    weights = MemoryPart("weights", 8e9, "device")
    assert tiers(content, keys, weights) == {"device": {"keys": 30e9, "weights": 8e9}, "host": {"content": 80e9}}
    assert tiers(content, weights) == {"device": {"weights": 8e9, "content": 40e9}}
    assert tiers(content, keys, host=60e9) == {"device": {"keys": 30e9}, "stored": {"content": 80e9}}


def test_without_accelerators_the_host_is_the_device() -> None:
    keys = MemoryPart("keys", 10e9, "device", sharded=True, stored=True)
    assert tiers(keys, machine=HERE) == {"host": {"keys": 10e9}, "copied": {"keys": 10e9}}
    assert tiers(MemoryPart("bank", 5e9, "disk"), machine=HERE) == {"disk": {"bank": 5e9}}


@pytest.fixture
def planner(workplace: Workplace, machine: Callable[..., None]) -> Callable[..., Planner]:
    """Planner of the small experiment, with shapes for its models and limits for its cells."""

    def make(**limits: float) -> Planner:
        models = {name: {"kind": "msa.training.train", "params": {"shape": SHAPE}} for name in ("reader", "embedder")}
        (workplace.configs / "models.yaml").write_text(yaml.safe_dump(models))
        (workplace.configs / "profiles" / "test.yaml").write_text(yaml.safe_dump({**PROFILE, "limits": limits}))
        return Planner(load("test", workplace.configs), workplace.paths)

    return make


def test_what_does_not_fit_is_refused_with_its_figures(planner: Callable[..., Planner]) -> None:
    made = Estimate((MemoryPart("weights", 20e9, "device"), MemoryPart("bank", 70e9, "disk")), {"read": Cost(3.6e14)})
    verdict = planner().judge(made, HERE)
    assert verdict.status == "out_of_memory"
    assert verdict.reason == "disk needs 70.0 GB, has 60.0 GB to give (bank 70.0)"
    limited = planner(host_gb=10).judge(made, HERE)
    assert limited.reason.startswith("host needs 20.4 GB, has 9.0 GB to give (weights 20.0, process 0.5); disk needs")
    assert verdict.seconds == pytest.approx(3600)


def test_a_cell_beyond_the_profiles_hours_is_a_timeout_with_the_estimate(planner: Callable[..., Planner]) -> None:
    made = Estimate((), {"read": Cost(7.2e14)})
    verdict = planner(cell_hours=1.5).judge(made, HERE)
    assert (verdict.status, verdict.reason) == ("timeout", "planned 2 h, the profile's limit for a cell is 1.5 h")
    assert planner(cell_hours=1.5).judge(made, GPUS).status == "ok"  # limits are of the machine that runs it
    assert planner(cell_hours=2.5).judge(made, HERE).status == "ok"
    assert planner(cell_hours=0.001).judge(Estimate(stages=None), HERE).status == "ok"


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        ({"host_gb": 0.1}, "out_of_memory", "planned, not run: host needs 0."),
        ({"cell_hours": 1e-9}, "timeout", "planned, not run: planned "),
    ],
)
def test_the_driver_refuses_a_cell_before_it_begins(
    workplace: Workplace, planner: Callable[..., Planner], limits: dict[str, float], status: str, words: str
) -> None:
    planner(**limits)
    assert workplace.run("rag_bm25") == 0
    for context in CONTEXTS:
        cell = workplace.paths.cell("rag_bm25", "needles", context, 0)
        record = RunRecord.open(cell / "run.json")
        assert (record.status, record.n) == (status, None)
        assert words in record.reason and not (cell / "predictions.jsonl").exists()
    assert workplace.command("measure", "--system", "rag_bm25") == 0
    contexts = LatencyRecord.open(workplace.paths.latency("rag_bm25")).contexts
    assert {(context.status, context.refused) for context in contexts.values()} == {(status, True)}
    planner()  # limits lifted: what was refused is planned anew
    assert workplace.run("rag_bm25") == 0
    assert RunRecord.open(workplace.paths.cell("rag_bm25", "needles", "4K", 0) / "run.json").status == "ok"


def test_the_matrix_rate_is_measured_for_a_limit_on_hours_alone(
    workplace: Workplace, planner: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, measured = planner(host_gb=20, disk_gb=20), []
    monkeypatch.setattr(baselines.planning.cost, "this_machine", lambda _: replace(HERE, matmul_tflops=0))
    monkeypatch.setattr(baselines.planning.hardware, "matmul_tflops", lambda: measured.append(1) or 0.4)
    chosen = (workplace.paths, "rag_bm25", "needles")
    assert refused_contexts(made.experiment, *chosen) == {} and measured == []
    assert set(refused_contexts(planner(host_gb=0.1).experiment, *chosen)) == set(CONTEXTS) and measured == []
    hours = refused_contexts(planner(cell_hours=1e-9).experiment, *chosen)
    assert {status for status, _ in hours.values()} == {"timeout"} and len(measured) > 0


def test_planning_is_off_the_path_of_a_question(
    workplace: Workplace, planner: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planner()
    answer_cell, refused = baselines.drivers.run.answer_cell, baselines.planning.cost.refused_contexts

    def traced(*given: Any) -> None:
        files = set()
        sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
        try:
            answer_cell(*given)
        finally:
            sys.setprofile(None)
        (tmp_path / "answered").write_text("\n".join([str(os.getpid()), *files]))

    def planned(*given: Any) -> dict[str, tuple[str, str]]:
        (tmp_path / "planned").write_text(str(os.getpid()))
        return refused(*given)

    monkeypatch.setattr(baselines.drivers.run, "answer_cell", traced)
    monkeypatch.setattr(baselines.planning.cost, "refused_contexts", planned)
    assert workplace.run("rag_bm25") == 0
    process, *files = (tmp_path / "answered").read_text().splitlines()
    entered = [Path(name).relative_to(ROOT) for name in files if name.startswith(f"{ROOT}/baselines/")]
    assert (tmp_path / "planned").read_text() not in (process, str(os.getpid()))
    assert Path("baselines/bm25.py") in entered and not [path for path in entered if "planning" in path.parts]


def write_index(workplace: Workplace, index_bytes: int, threads: int, **other: Any) -> None:
    """index.json of an index that was built on this machine, or on one that differs from it."""
    record = IndexRecord(
        made_from=MadeFrom(),
        index="dense_small",
        corpus="prose",
        kind="dense",
        status="ok",
        index_bytes=index_bytes,
        peak_host_bytes=10**9,
        build_s=1.0,
        threads=threads,
        versions={},
        hardware=baselines.planning.cost.machine().model_copy(update=other),
    )
    record.write(workplace.paths.index("dense_small", "prose") / "index.json")


def test_the_planner_knows_no_system_by_name() -> None:
    systems = {path.stem for path in (ROOT / "baselines").glob("*.py")} - {"__init__", "base"}
    for path in (ROOT / "baselines" / "planning").glob("*.py"):
        names = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert systems and not names & systems, path


def test_what_a_part_of_an_index_takes_stands_beside_its_plan(
    workplace: Workplace, planner: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    import baselines.dense

    made = planner()
    monkeypatch.setattr(baselines.dense, "index_parts", lambda directory: {"embeddings": 50}, raising=False)
    write_index(workplace, index_bytes=60, threads=1)
    found = {item.what: item for item in compare(made, HERE, list(what_ran(made)))}
    part = found["dense index, embeddings"]
    assert (part.planned, part.measured) == (found["dense index, bytes on disk"].planned, 50)


def test_within_its_limits_everything_runs(workplace: Workplace, planner: Callable[..., Planner]) -> None:
    planner(host_gb=20, disk_gb=20, cell_hours=1)
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    for system in ("rag_dense", "closed_book"):
        assert workplace.run(system) == 0
        assert RunRecord.open(workplace.paths.cell(system, "needles", "4K", 0) / "run.json").status == "ok"


def test_an_index_that_does_not_fit_is_not_built_and_its_cells_say_so(
    workplace: Workplace, planner: Callable[..., Planner]
) -> None:
    planner(disk_gb=1e-6)
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    directory = workplace.paths.index("dense_small", "prose")
    record = IndexRecord.open(directory / "index.json")
    assert {path.name for path in directory.iterdir()} == {"index.json", ".index.json"}
    assert (record.status, record.build_s, record.files) == ("out_of_memory", None, {})
    assert record.reason.startswith("planned, not built: disk needs 0.0 GB, has 0.0 GB to give (embeddings")
    assert workplace.run("rag_dense") == 0
    cell = RunRecord.open(workplace.paths.cell("rag_dense", "needles", "1K", 0) / "run.json")
    assert cell.status == "out_of_memory" and cell.reason.startswith(
        "planned, not run: index dense_small: planned, not built"
    )
    planner()
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    assert workplace.run("rag_dense") == 0
    assert RunRecord.open(workplace.paths.cell("rag_dense", "needles", "1K", 0) / "run.json").status == "ok"


def test_a_model_of_unknown_shape_is_not_estimated_and_never_refused(workplace: Workplace, machine: Callable) -> None:
    machine(host_gb=0.001, disk_gb=0.0)
    (workplace.paths.model("reader") / "config.json").write_text('{"model_type": "another"}')
    assert workplace.run("closed_book") == 0
    assert RunRecord.open(workplace.paths.cell("closed_book", "needles", "1K", 0) / "run.json").status == "ok"


def test_an_index_that_takes_too_long_is_a_timeout(workplace: Workplace, planner: Callable[..., Planner]) -> None:
    planner(cell_hours=1e-12)
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    record = IndexRecord.open(workplace.paths.index("dense_small", "prose") / "index.json")
    assert record.status == "timeout" and record.reason.startswith("planned, not built: planned ")


def test_what_ran_here_stands_beside_its_plan(workplace: Workplace, planner: Callable[..., Planner]) -> None:
    made = planner()
    vectors = 100 * (SHAPE["hidden_size"] * 4 + 8)
    write_index(workplace, index_bytes=round(vectors * 1.1), threads=2)
    found = {item.what: item for item in compare(made, HERE, list(what_ran(made)))}
    assert found["dense index, bytes on disk"].ratio == pytest.approx(1 / 1.1)
    assert found["dense index, bytes on disk"].within and not found["dense index, peak memory"].within
    # no other row measured a rate: a quarter of the matrix rate, 0.1 TFLOP/s
    flops = made.index("dense_small", ["prose"], "float32").flops
    assert found["dense index, seconds of a thread"].planned == pytest.approx(flops / 0.1e12)
    assert found["dense index, seconds of a thread"].measured == 2.0
    write_index(workplace, round(vectors * 1.1), 2, cpu="another")
    assert list(what_ran(made)) == []
    assert Comparison("a", "b", 115, 100).within and not Comparison("a", "b", 84, 100).within


def test_a_cell_that_ran_is_planned_with_its_own_tokens(workplace: Workplace, planner: Callable[..., Planner]) -> None:
    made = planner()
    assert made.workload("rag_bm25", "needles", "4K").source == "prepared"
    assert workplace.run("rag_bm25") == 0
    work = made.workload("rag_bm25", "needles", "4K")
    lines = (workplace.paths.cell("rag_bm25", "needles", "4K", 0) / "predictions.jsonl").read_text().splitlines()
    read = [json.loads(line)["input_tokens"] for line in lines]
    assert (work.source, work.questions, work.answer_tokens) == ("ran", 9, 1)
    assert (work.prompt_tokens, work.longest_tokens) == (pytest.approx(sum(read) / 9), max(read))
    ran = next(item for item in what_ran(made) if item.row == "rag_bm25 4K")
    assert ran.seconds == pytest.approx(9 * 0.5, rel=0.1)  # the fake reader's half a second, though it answers at once


def test_rates_are_found_from_rows_that_mix_stages() -> None:
    def ran(read: float, route: float, little: float = 0.0) -> Ran:
        stages = {"read": Cost(read * 1e9), "route": Cost(route * 1e9), "little": Cost(little)}
        return Ran("msa_system cells", "msa", "msa", Estimate((), stages), read / 20 + route / 50)

    rates = fit([ran(10, 5), ran(10, 50), ran(100, 10, 1e8), ran(3, 300)])
    assert rates == {"read": pytest.approx(1 / 20e9), "route": pytest.approx(1 / 50e9)}
    assert fit([]) == fit([Ran("x cells", "x", "x", Estimate(stages=None), 3.0)]) == {}


def test_measured_rates_stand_for_the_matrix_rate_here_alone(planner: Callable[..., Planner]) -> None:
    made, work = planner(), Estimate((), {"read": Cost(1e12), "encode float32": Cost(3e14)})
    assert made.seconds(work, HERE) == pytest.approx(10 + 3000)
    assert replace(made, rates={"read": 2e-12}).seconds(work, HERE) == pytest.approx(2 + 3000)
    made.rates["encode float32"] = 1e-12
    assert made.seconds(work, HERE) == pytest.approx(10 + 300)
    assert made.seconds(work, GPUS) == pytest.approx(1 / 150 + 1)  # encoding on two devices


def test_profiles_with_a_model_in_common_share_rates(tmp_path: Path) -> None:
    experiment = load("tiny_100m")
    for name in ("tiny", "paper", "tiny_100m"):
        (tmp_path / name).mkdir()
    found = related(Planner(experiment, Paths.of("tiny_100m", tmp_path)))
    assert [planner.experiment.name for planner in found] == ["tiny"]


def test_indexes_one_after_another_add_up_on_disk_alone() -> None:
    small, large = (
        Estimate((MemoryPart("bank", size, "disk"), MemoryPart("work", size, "host")), {"embed": Cost(size)})
        for size in (1, 10)
    )
    made = together([small, large, small])
    assert {part.name: part.bytes for part in made.parts} == {"bank": 10, "work": 10, "indexes of other corpora": 2}
    assert made.stages == {"embed": Cost(12)}
    assert together([small, Estimate(stages=None)]).stages is None


def test_training_tokens_follow_from_the_rows_of_a_phase() -> None:
    samples = {"bare": {"bank_tokens": 3000, "bare_share": 1.0}, "short": {"bank_tokens": 4000}}
    memory = {"objective": "memory", "samples": "short", "steps": 10, "rows": 20, "answer_share": 0.0}
    assert phase_tokens(memory, samples) == 10 * (4000 + 20 * 45)
    assert phase_tokens({**memory, "answer_share": 1.0}, samples) == 10 * (4000 + 20 * (45 + 1.5 * 85 + 45))
    copy = {"objective": "copy", "samples": "bare", "steps": 3, "rows": 2, "tokens": 8}
    assert phase_tokens(copy, samples) == 3 * 2 * 20
    recall = {"objective": "recall", "samples": "bare", "steps": 3, "rows": 2, "tokens": 40}
    assert phase_tokens(recall, samples) == 3 * 2 * 60
    read = {"objective": "read", "samples": "bare", "steps": 1, "rows": 1, "documents": [2, 4], "questions": 2}
    assert phase_tokens(read, samples) == 3 * 40 + 2 * 45
    ask = {"objective": "ask", "samples": "short", "steps": 2, "rows": 3}
    assert phase_tokens(ask, samples) == 2 * 3 * (85 + 22.5)
    assert phase_tokens({**read, "objective": "memory_agent"}, samples) == 3 * 40 + 1.5 * 45
    assert phase_tokens({**memory, "objective": "embed"}, samples) == 10 * (4000 + 20 * 45)
    assert training_tokens({"phases": [ask, read], "shards": 2}, samples) == 2 * (645 + 210)
    assert training_tokens({}, samples) is None


def test_missing_weights_stop_the_workflow_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    import baselines.checks.check

    monkeypatch.setattr(sys, "argv", ["check", "--profile", "paper"])
    with pytest.raises(SystemExit) as ended:
        run_command(baselines.checks.check.main)
    errors = capfd.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1
    assert "profiles/paper.yaml: models.yaml: reader: weights of Qwen/Qwen3-4B-Instruct-2507 are not at" in errors
