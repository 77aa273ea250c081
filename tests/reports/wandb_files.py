"""Reads what the library wrote offline: a .wandb file is LevelDB's log of protobuf records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, PREFIX = 32768, 7, 7  # bytes of a block, of the file's header and of a record's


def records(path: Path) -> list[Record]:
    """The records of a file, in order."""
    data, place, found, parts = path.read_bytes(), HEADER, [], b""
    while place + PREFIX <= len(data):
        left = BLOCK - place % BLOCK
        if left < PREFIX:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + PREFIX : place + PREFIX + size]
        place += PREFIX + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def nested(items: Any) -> dict[str, Any]:
    """Values by key; what is a media file is a dictionary of its own."""
    found: dict[str, Any] = {}
    for item in items:
        key, *more = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if more:
            found.setdefault(key, {})[more[0]] = value
        else:
            found[key] = value
    return found


class OfflineRun:
    """A run by its id: every segment of it, in order."""

    def __init__(self, run_id: str) -> None:
        self.id, self.segments = run_id, 0
        self.name = self.group = self.kind = ""
        self.tags: list[str] = []
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.made: dict[str, dict[str, str]] = {}  # artifacts: reference by entry
        self.used: dict[str, dict[str, str]] = {}
        self.tables: dict[str, Any] = {}

    def add(self, directory: Path) -> None:
        """Take in one segment."""
        self.segments += 1
        for record in records(next(directory.glob("*.wandb"))):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
                self.name, self.group, self.kind = run.display_name, run.run_group, run.job_type
                self.tags = list(run.tags)
                self.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            elif kind == "history":
                items = nested(record.history.item)
                self.history.append(items)
                for key, value in items.items():
                    if isinstance(value, dict) and value.get("_type") == "table-file":
                        self.tables[key] = json.loads((directory / "files" / value["path"]).read_text())
            elif kind == "summary":
                self.summary |= nested(record.summary.update)
            elif kind == "artifact":
                artifact = record.artifact
                place = self.used if artifact.use_after_commit else self.made
                place[artifact.name] = {entry.path: entry.ref for entry in artifact.manifest.contents}

    @property
    def content(self) -> dict[str, Any]:
        """All that it shows, without when it was written."""
        own = lambda values: {key: value for key, value in values.items() if key[0] != "_"}  # noqa: E731
        rows = [{**own(row), "step": row.get("_step", row.get("step"))} for row in self.history]
        rows = [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in rows]
        return {
            "names": (self.name, self.group, self.kind, self.tags),
            "config": own(self.config),
            "history": rows,
            "summary": {key: value for key, value in own(self.summary).items() if not isinstance(value, dict)},
            "artifacts": (self.made, self.used),
            "tables": self.tables,
        }


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    """The runs of a `wandb` folder by name, each with all its segments in the order of their time."""
    by_id: dict[str, OfflineRun] = {}
    for directory in sorted(folder.glob("offline-run-*")):
        run_id = directory.name.split("-", 3)[3]  # behind offline-run-{date}_{time}
        by_id.setdefault(run_id, OfflineRun(run_id)).add(directory)
    return {run.name: run for run in by_id.values()}
