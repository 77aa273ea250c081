"""Check that the published numbers, the ledger and expected.yaml name only what there is.

    python -m reports.check --profile tiny

Every profile that they name is loaded with them, not only the one of the command line. The tests of the ledger's
entries are looked up where the repository's tests are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.kinds import kinds_of
from msa_base.load import Experiment, load
from msa_base.paths import Paths
from msa_base.validate import check_known
from reports import expected
from reports.evidence import NEEDLE_MEAN, NEEDLE_TASKS, Evidence
from reports.expected import read_expected
from reports.published import reference, tables
from reports.published.reference import Measure, Side, cast, read_ledger, read_reference
from reports.published.tables import AVERAGE, read_tables

ENDS = ("smallest", "largest")
LATENCIES = [f"latency/{cost}/{figure}" for cost in ("first_token_s", "total_s") for figure in ("median", "p90")]
TESTS = Path(__file__).parent.parent / "tests"
TEST = re.compile(r"^def (test_\w+)", flags=re.MULTILINE)
RECALL = re.compile(r"recall@(1|16)/(?:layer(\d+)|[a-z]\w*)")


def main() -> None:
    """Check the files."""
    arguments = experiment_parser(__doc__).parse_args()
    load(arguments.profile, arguments.configs)
    check(arguments.configs)


def check(configs: Path) -> None:
    """Raise a UserError that names file, entry and key for the first name that does not resolve."""
    profiles = sorted(path.stem for path in (configs / "profiles").glob("*.yaml"))
    loaded = cache(load)

    def opened(profile: str, where: str) -> Evidence:
        check_known([profile], profiles, where, configs / "profiles")
        return Evidence(loaded(profile, configs), Paths.of(profile, ""))

    systems = {name for profile in profiles for name in opened(profile, "").experiment.systems}
    _check_tables(opened(profiles[0], "").experiment, systems)
    _check_claims(opened)
    _check_tests()
    _check_paper_tables(opened, systems)
    for profile, expectations in read_expected().items():
        evidence = opened(profile, str(expected.EXPECTED))
        file, tasks = evidence.experiment.file, list(evidence.experiment.profile.tasks)
        for number, expectation in enumerate(expectations):
            where = f"{expected.EXPECTED}: {profile}[{number}]"
            known = [*tasks, NEEDLE_MEAN] if evidence.needle_tasks else tasks
            check_known([expectation.task], known, f"{where}: task", file)
            sides = {where: expectation, f"{where}: against": expectation.against}
            for inside, side in sides.items():
                if side is not None:
                    check_known([side.system], evidence.systems, f"{inside}: system", file)
                    check_known([side.context], evidence.contexts, f"{inside}: context", file)
            measured = evidence.members(expectation.task)
            _check_metric(expectation.metric, measured, expectation.system, evidence.experiment, f"{where}: metric")


def _check_claims(opened: Callable[[str, str], Evidence]) -> None:
    roles = read_reference().roles
    for name, claim in read_ledger().claims.items():
        for key, measure in (("exact", claim.exact), ("miniature", claim.miniature)):
            where = f"{reference.LEDGER}: claims: {name}"
            inside = f"{where}: {key}"
            for profile in measure.profiles:
                evidence = opened(profile, f"{inside}: profiles")
                parts = cast(roles, evidence.systems)
                first, second = (
                    replace(side, system=parts.get(side.system, side.system)) for side in (claim.first, claim.second)
                )
                experiment, of_one = evidence.experiment, first.system == second.system
                _check_side(first, of_one, experiment, roles, f"{where}: first")
                _check_side(second, of_one, experiment, roles, f"{where}: second")
                tasks = _tasks(measure, evidence, inside)
                if claim.statistic == "slope":
                    check_known([measure.metric], LATENCIES, f"{inside}: metric", "reports/check.py")
                elif not tasks:
                    raise UserError(f"{inside}: needs the key 'role' or 'tasks'; add one")
                else:
                    _check_metric(measure.metric, tasks, first.system, experiment, f"{inside}: metric")


@cache
def _tests(folder: Path) -> list[str]:
    """Every test below a folder as ``file::function``."""
    return [
        f"{path.relative_to(folder).as_posix()}::{function}"
        for path in sorted(folder.rglob("test_*.py"))
        for function in TEST.findall(path.read_text())
    ]


def _check_tests() -> None:
    """The tests that entries of the ledger name; an installed package has none to look up."""
    ledger, known = read_ledger(), _tests(TESTS)
    for part, entries in (("claims", ledger.claims), ("statements", ledger.statements)):
        for name, entry in entries.items():
            for test in [test for test in entry.tests if known and test not in known]:
                near = get_close_matches(test, known, 3, cutoff=0)
                check_known([test], near, f"{reference.LEDGER}: {part}: {name}: tests", TESTS)


def _check_paper_tables(opened: Callable[[str, str], Evidence], systems: set[str]) -> None:
    families, known = read_ledger().families, [*systems, *read_reference().roles]
    for name, table in read_tables().items():
        where, first = f"{tables.TABLES}: {name}", opened("tiny", "").experiment
        check_known(table.families, families, f"{where}: families", reference.LEDGER)
        named = [table.timings] if table.timings else []
        check_known(named, kinds_of("msa"), f"{where}: timings", "msa/bench")
        for standing in table.profiles.values():
            for profile in standing:
                opened(profile, f"{where}: profiles")
        for profile in table.exact.profiles:
            evidence = opened(profile, f"{where}: exact: profiles")
            _tasks(table.exact, evidence, f"{where}: exact")
        check_known(table.miniature.tasks, first.tasks, f"{where}: miniature: tasks", first.configs / "tasks.yaml")
        for key, measure in (("exact", table.exact), ("miniature", table.miniature)):
            check_known([measure.metric], ["accuracy", "judge"], f"{where}: {key}: metric", "reports/check.py")
        if table.exact.profiles:
            places = first.contexts if table.over == "contexts" else [*first.tasks, AVERAGE]
            check_known(table.places, places, f"{where}: places", f"{table.over}.yaml")
        for line in table.systems:
            named = [line.system] if line.system else []
            check_known(named, known, f"{where}: systems: {line.title}: system", f"{first.file} and roles")


def _check_side(side: Side, of_one: bool, experiment: Experiment, roles: Iterable[str], where: str) -> None:
    systems, contexts = experiment.profile.systems, [*experiment.profile.contexts, *ENDS]
    check_known([side.system], [*systems, *roles], f"{where}: system", f"{experiment.file} and roles")
    if side.system not in systems:
        raise UserError(f"{where}: system: {experiment.file} has none that plays the role {side.system}; add one")
    if of_one:  # the report gives the range that was measured
        contexts += experiment.contexts
    check_known([side.context], contexts, f"{where}: context", experiment.file)


def _tasks(measure: Measure, evidence: Evidence, where: str) -> list[str]:
    """The tasks of a measure; a claim of latency has none."""
    file = evidence.experiment.file
    check_known(measure.tasks, evidence.experiment.profile.tasks, f"{where}: tasks", file)
    if measure.role is None:
        return measure.tasks
    if measure.role == "needles" and not evidence.needle_tasks:
        raise UserError(f"{where}: role: {file} has not all {NEEDLE_TASKS} needle tasks; add them")
    found = evidence.tasks_of_role(measure.role)
    if not found:
        raise UserError(f"{where}: role: {file} has no task of role {measure.role}; add one")
    return found


def _check_metric(metric: str, tasks: list[str], system: str, experiment: Experiment, where: str) -> None:
    """Metrics are those that tasks.score writes for every one of the tasks, or the first judge's points."""
    further = [set(experiment.tasks[task].metrics) for task in tasks]
    known = ["accuracy", "citation_recall", *(sorted(set.intersection(*further)) if further else [])]
    known += ["judge"] if experiment.judges else []
    model = experiment.systems[system].model
    router = experiment.models[model].params.get("router") if model else None
    layers = [str(layer) for layer in router["routed_layers"]] if isinstance(router, dict) else []
    known += [f"recall@{k}/layer{layer}" for layer in layers for k in (1, 16)]
    matched = RECALL.fullmatch(metric)
    if not matched or (matched[2] and matched[2] not in layers):
        check_known([metric], known, where, f"{experiment.file} and its tasks")


def _check_tables(experiment: Experiment, systems: set[str]) -> None:
    published, path = read_reference(), reference.REFERENCE
    for role, names in published.roles.items():
        check_known(names, sorted(systems), f"{path}: roles: {role}", experiment.configs / "systems.yaml")
    for key, curves in (("scaling", published.scaling), ("needles", published.needles)):
        where = f"{path}: {key}: contexts"
        check_known(curves.contexts, experiment.contexts, where, experiment.configs / "contexts.yaml")


if __name__ == "__main__":
    run_command(main)
