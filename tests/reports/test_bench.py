"""The benchmark's table and roofline: ratios of one run, the best of the others, and a page with or without them."""

from __future__ import annotations

import pandas as pd
import pytest

from msa_base.errors import UserError
from reports import bench
from reports.build import build

SECONDS = {
    ("eager", "float32"): 0.2,
    ("folded", "bfloat16"): 0.006,
    ("compiled", "int8"): 0.003,
    ("ours", "bfloat16"): 0.004,
    ("ours", "int8"): 0.002,
    ("first_pass", "int8"): 0.0015,
}


@pytest.fixture
def directory(tmp_path):
    """What `make bench` leaves: one cell, one row of it failed."""
    rows = []
    for (peer, dtype), seconds in {**SECONDS, ("faiss", "float32"): None}.items():
        row = {
            "context": "1M",
            "question_tokens": 32,
            "batch": 1,
            "cache": "cold",
            "chunks": 15625,
            "peer": peer,
            "dtype": dtype,
        }
        row |= {
            "status": "ok" if seconds else "failed: no memory",
            "median_s": seconds,
            "p90_s": seconds,
            "n": 9 if seconds else None,
        }
        row |= {
            "necessary_bytes": 3e7,
            "flops": 1e9,
            "bandwidth_bytes_per_s": 1e10,
            "matmul_flops_per_s": 1e12,
            "bandwidth_share": 0.5,
        }
        rows.append(row | {"matmul_share": 0.1, "deficit": 1e-5, "extra_bytes": 62500})
    pd.DataFrame(rows).to_csv(tmp_path / "routing.csv", index=False)
    return tmp_path


def test_ours_is_compared_with_the_best_of_the_others(directory):
    (row,) = bench.ratios(bench.read(directory)).to_dict("records")
    assert row["rounded_times_best"] == row["rounded_times_int8"] == pytest.approx(2.0)
    assert row["ours"] == "int8" and row["best"] == "compiled int8"
    assert row["times_best"] == pytest.approx(1.5) and row["times_eager"] == pytest.approx(100)
    assert row["times_bfloat16"] == pytest.approx(1.5) and pd.isna(row["times_float32"])
    assert row["not_measured"] == "faiss"


def test_the_page_has_the_benchmark_where_it_was_run(new_tree, directory):
    tree = new_tree()
    build(tree.evidence())
    page = tree.paths.report / "index.html"
    assert "Routing one layer" not in page.read_text()
    target = tree.paths.root.parent / "bench"
    target.mkdir()
    (target / "routing.csv").write_text((directory / "routing.csv").read_text())
    build(tree.evidence())
    assert (
        "Routing one layer" in page.read_text()
        and "1.50 x" in page.read_text()
        and page.read_text().count("<figure") == 1
    )
    assert len(pd.read_csv(tree.paths.report / "routing.csv")) == len(SECONDS) + 1


def test_a_damaged_file_is_named(tmp_path):
    assert bench.read(tmp_path) is None
    (tmp_path / "routing.csv").write_text("context\n1M\n")
    with pytest.raises(UserError, match=r"routing.csv: column question_tokens is missing"):
        bench.read(tmp_path)
