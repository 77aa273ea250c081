"""Begin a baseline or a task: one file, one entry, and its name in the profile `smoke`, runnable at once.

    python -m msa_base.scaffold baseline my_system
    python -m msa_base.scaffold task my_task

The file is a copy of one in examples/ under the new name. Nothing is written where anything would be overwritten.
"""

from __future__ import annotations

import argparse
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from msa_base.errors import UserError, run_command
from msa_base.load import load
from msa_base.paths import DIRECTORY
from msa_base.tables import whole_file

PROFILE = "smoke"


@dataclass(frozen=True)
class Kind:
    """What is begun: its room, the example, the table of its entry, the entry, and its place in the profile."""

    room: str
    example: str
    table: str
    entry: str
    named: tuple[str, str, str]  # of the profile: pattern of the key's inline value, what is added, the closing bracket
    following: str


KINDS = {
    "baseline": Kind(
        "baselines",
        "first_document",
        "systems",
        "  {name}: {{kind: {name}, title: {title}}}\n",
        (r"^(systems: \[.*)\]$", "{name}", "]"),
        "make smoke SYSTEMS={name}    # then results/smoke/report/index.html, under Leaderboards\n"
        "  .venv/bin/python -m baselines.checks.contract --profile smoke --system {name}",
    ),
    "task": Kind(
        "tasks",
        "birthday",
        "tasks",
        "  {name}:\n    kind: {name}\n    corpus: facts\n    metric: contains\n    role: scenario\n    title: {title}\n"
        "    params: {{replicates: 1, head_tokens: 8000}}\n",
        (r"^(tasks: \{.*)\}$", "{name}: 16", "}"),
        "make smoke SYSTEMS=rag_bm25    # then results/smoke/report/index.html, under Leaderboards\n"
        "  .venv/bin/python -m tasks.stages.prepare task --profile smoke --task {name}",
    ),
}


def begin(what: str, name: str, root: Path = DIRECTORY.parent) -> list[Path]:
    """Write the file and the entries under a checkout; the paths that changed, the new file first.

    Raises:
        UserError: the name cannot be a module's or is taken, or a configuration file has not the form that is added to.
            Nothing has changed then.
    """
    kind = KINDS[what]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"NAME={name}: cannot be a module's; use small letters, digits and '_', a letter first")
    file, table = root / kind.room / f"{name}.py", root / "configs" / f"{kind.table}.yaml"
    profile = root / "configs" / "profiles" / f"{PROFILE}.yaml"
    if file.exists() or file.with_suffix("").exists():
        raise UserError(f"{file}: exists already; choose another name")
    if name in getattr(load(PROFILE, root / "configs"), kind.table):
        raise UserError(f"{table}: key '{kind.table}' has an entry '{name}' already; choose another name")
    title = name.replace("_", " ").capitalize()
    pattern, added, end = kind.named
    texts = {
        file: (root / "examples" / f"{kind.example}.py").read_text(),
        table: _added(table, rf"^({kind.table}:)$", r"\1\n" + kind.entry.format(name=name, title=title).rstrip("\n")),
        profile: _added(profile, pattern, rf"\1, {added.format(name=name)}{end}"),
    }
    example = kind.example
    for old, new in {example: name, _camel(example): _camel(name), "Birthdays:": f"{title}:"}.items():
        texts[file] = texts[file].replace(old, new)
    for path, text in texts.items():
        with whole_file(path) as temporary:
            temporary.write_text(text)
    load(PROFILE, root / "configs")
    return list(texts)


def _added(path: Path, pattern: str, replacement: str) -> str:
    """The text of a file with something added at the one line that a pattern names."""
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise UserError(f"{path}: has not one line like {pattern}; write the entry by hand (CONTRIBUTING.md)")
    return text


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("name", help="of the new module and its entry")
    chosen = parser.parse_args()
    for path in begin(chosen.what, chosen.name):
        print(f"wrote {path.relative_to(DIRECTORY.parent)}")
    print(f"now:\n  {KINDS[chosen.what].following.format(name=chosen.name)}")


if __name__ == "__main__":
    run_command(main)
