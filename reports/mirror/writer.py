"""Writes the runs of a results directory for Weights & Biases, always offline first, and sends them where asked to.

A run goes out in segments under one id: each holds what was added since the last one, so that a run that grows, or is
resumed, goes on. A segment is written in one go and counts once the record (wandb/tracked.json) names it; what a kill
left half written is removed. Sending is `wandb sync` in a process of its own: what hangs is ended, what was not sent is
sent the next time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from msa_base.errors import UserError
from msa_base.seal import MadeFrom, copy_of, sealed
from msa_base.stage_records import MirroredRun, MirroredSegment, MirrorRecord
from reports.mirror.runs import Artifact, Content, Source

PROJECT = "msa-bench"
QUIET_S = 30.0  # how long sending may say nothing before it is ended
WAIT_S = 60.0  # how long another mirror at work is waited for
SAVE_EVERY = 32  # runs
OURS = ("RUN_ID", "RUN_GROUP", "JOB_TYPE", "NAME", "NOTES", "TAGS", "RESUME", "SWEEP_ID", "SWEEP_PARAM_PATH", "MODE")
Fill = Callable[[Any], None]


class NotMirrored(Exception):
    """Weights & Biases failed, hung or did not answer."""


class Mirror:
    """Brings the runs of a results directory up to date.

    Args:
        root: results/{profile}; the runs lie in its folder ``wandb``.
        upload_bytes: files of artifacts up to this size go along, larger ones by their digest alone.

    Raises:
        UserError: another mirror is at work there, and does not end.
    """

    def __init__(self, root: Path, profile: str, upload_bytes: int = 0) -> None:
        self.root, self.profile, self.upload_bytes = root, profile, upload_bytes
        self.environment = {**os.environ, "WANDB_MODE": "online"}  # the caller's, for sending
        self.folder, self.path = root / "wandb", root / "wandb" / "tracked.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = _take(self.folder / "lock")
        record = _known(self.path)
        # two results directories of one profile are different runs: a random word tells them apart
        self.word = record.word if record else secrets.token_hex(4)
        self.runs = dict(record.runs) if record else {}
        self.files = dict(record.files) if record else {}
        self.unsealed: list[str] = []  # directories written since the record was
        self.seen: dict[str, list[tuple[int, int]]] = {}
        self._tidy()

    def _tidy(self) -> None:
        """Note what was sent; drop what is lost or damaged of the rest, and what a kill left half written."""
        for name, run in self.runs.items():
            kept: list[MirroredSegment] = []
            for segment in run.segments:
                if segment.is_sent or _is_sent(self.folder / segment.directory):
                    kept.append(segment.model_copy(update={"is_sent": True}))
                elif self._holds(segment):
                    kept.append(segment)
                else:
                    break  # those after it would stand at wrong steps
            if len(kept) < len(run.segments):
                self.runs[name] = run.model_copy(update={"segments": kept, "digest": ""})
            else:
                self.runs[name] = run.model_copy(update={"segments": kept})
        named = {segment.directory for run in self.runs.values() for segment in run.segments}
        for directory in self.folder.glob("offline-run-*"):
            if directory.name not in named and not _is_sent(directory):
                shutil.rmtree(directory, ignore_errors=True)
        waiting = {segment.directory for run in self.runs.values() for segment in run.segments if not segment.is_sent}
        self.files = {name: file for name, file in self.files.items() if name.split("/")[0] in waiting}

    def _holds(self, segment: MirroredSegment) -> bool:
        """Whether the files of a segment are what was written."""
        names = [name for name in self.files if name.startswith(f"{segment.directory}/")]
        with suppress(UserError):
            return bool(names) and sealed(self.folder, names) == {name: self.files[name] for name in names}
        return False

    def write(self, source: Source, fill: Fill | None = None) -> bool:
        """Write what is new of a run, as a segment; whether there was anything.

        Args:
            fill: what adds to the run more than its content.

        Raises:
            UserError: a file of the run is not as its stage left it.
            NotMirrored: Weights & Biases failed.
        """
        stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
        if self.seen.get(source.name) == stamps:
            return False
        version = source.version()[:8]
        name = "-".join(part for part in (source.name.replace("/", "-"), version) if part)
        digest, known = source.digest, self.runs.get(name)
        if known is None or known.digest != digest:
            content = source.read()
            segments = list(known.segments) if known else []
            segments.append(self._segment(source, name, content, segments[-1].rows if segments else 0, fill))
            self.runs[name] = MirroredRun(digest=digest, segments=segments)
            if len(self.unsealed) == SAVE_EVERY:
                self.save()
        self.seen[source.name] = stamps
        return known is not self.runs[name]

    def _segment(self, source: Source, name: str, content: Content, first: int, fill: Fill | None) -> MirroredSegment:
        """Write the points from ``first`` on, and all that is no point."""
        wandb = library(self.folder)
        run_id = f"{self.profile}-{self.word}-{name}"
        while any(self.folder.glob(f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
            time.sleep(0.1)  # directories are named by the second
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run_id,
                name=source.name,
                group=self.profile,
                job_type=source.kind,
                tags=[tag[:64] for tag in (self.profile, *source.tags)],
                dir=str(self.root),
                mode="offline",
                resume="allow",
                config=content.config,
            )
            try:
                directory = Path(run.dir).parent
                for step, row in enumerate(content.rows[first:], start=first):
                    run.log(row, step=step)
                self._fill(run, content)
                if fill is not None:
                    fill(run)
                run.summary["complete"] = source.is_complete
            finally:
                run.finish()
        except (wandb.Error, OSError, TimeoutError) as error:
            raise NotMirrored(f"{source.name}: not written: {error}") from error
        self.unsealed.append(directory.name)
        return MirroredSegment(directory=directory.name, rows=max(first, len(content.rows)))

    def _fill(self, run: Any, content: Content) -> None:
        if content.predictions is not None:
            log_table(run, "predictions", *content.predictions)
        for key, value in content.numbers.items():
            run.summary[key] = value
        for artifact in content.made:
            run.log_artifact(self._artifact(artifact))
        for artifact in content.used:
            # what use_artifact does of an artifact that is no version yet; that one refuses to work offline
            run._log_artifact(self._artifact(artifact), is_user_created=True, use_after_commit=True)

    def _artifact(self, found: Artifact) -> Any:
        """An artifact whose entries are digests; small files go along if asked for."""
        wandb = library(self.folder)
        metadata = {"made_from": found.seal.made_from.model_dump(), "bytes": 0}
        artifact = wandb.Artifact(found.name, type=found.kind, metadata=metadata)
        for name, file in sorted(found.seal.files.items()):
            path = found.path.with_name(name)
            if file.bytes <= self.upload_bytes and path.is_file():
                artifact.add_file(str(path), name=name)
            else:
                # the digest stands in the reference, so that other content is another version
                artifact.add_reference(f"sha256:{file.sha256}?bytes={file.bytes}", name=name)
            metadata["bytes"] += file.bytes
        artifact.metadata = metadata
        return artifact

    def save(self) -> None:
        """Write the record of what is new, once the library's process has ended: only then are its files whole."""
        if not self.unsealed and self.path.exists():
            return
        if self.unsealed:
            library(self.folder).teardown()
        for name in self.unsealed:
            found = [*(self.folder / name).glob("*.wandb"), *(self.folder / name).glob("files/**/*")]
            names = [str(path.relative_to(self.folder)) for path in found if path.is_file()]
            self.files |= sealed(self.folder, names)
        self.unsealed.clear()
        self._record()

    def _record(self) -> None:
        record = MirrorRecord(made_from=MadeFrom(), files=self.files, word=self.word, runs=self.runs)
        record.write(self.path)

    @property
    def unsent(self) -> list[str]:
        """The directories of segments that are still to be sent, in their order."""
        found = [segment for run in self.runs.values() for segment in run.segments]
        found = [segment.directory for segment in found if not segment.is_sent]
        return sorted(str(self.folder / name) for name in found)

    def send(self, said: IO[str]) -> None:
        """Send what was not sent; what the program says goes to ``said``.

        Raises:
            NotMirrored: not all of it arrived, or for :data:`QUIET_S` nothing was heard.
        """
        if directories := self.unsent:
            try:
                run_quietly([sys.executable, "-m", *sync_command(directories)], said, self.environment)
            finally:
                self._tidy()
                self._record()
            left = self.unsent
            for directory in set(directories) - set(left):
                shutil.rmtree(directory, ignore_errors=True)
            if left:
                mend = "without a key: .venv/bin/wandb login"
                raise NotMirrored(f"{len(left)} of {len(directories)} runs were not sent; {mend}")


def sync_command(directories: Iterable[str]) -> list[str]:
    """The command that sends runs, as arguments."""
    return ["wandb", "sync", *directories]


def send_with(directories: Iterable[str]) -> str:
    """:func:`sync_command` for a shell."""
    return shlex.join(sync_command(directories))


def run_quietly(command: list[str], said: IO[str], environment: dict[str, str]) -> None:
    """Run a command in a session of its own; what it says goes to the file ``said``.

    Raises:
        NotMirrored: it said nothing for :data:`QUIET_S`, and was ended.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )
    size, heard_s = -1, time.monotonic()
    try:
        while process.poll() is None:
            if (now := os.fstat(said.fileno()).st_size) != size:
                size, heard_s = now, time.monotonic()
            if time.monotonic() - heard_s > QUIET_S:
                raise NotMirrored(f"the server did not answer within {QUIET_S:.0f} s")
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def library(folder: Path) -> Any:
    """The library, told to leave nothing outside ``folder``, to take no run's name from the environment, and to send
    nothing of its own.
    """
    for part in ("DATA", "CACHE", "ARTIFACT"):
        os.environ[f"WANDB_{part}_DIR"] = str((folder / f".{part.lower()}").absolute())
    os.environ.setdefault("WANDB_CONFIG_DIR", str((folder / ".config").absolute()))
    for name in OURS:
        os.environ.pop(f"WANDB_{name}", None)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports on itself to the server, offline too
    import wandb

    settings = {"console": "off", "silent": True, "x_disable_stats": True, "x_disable_meta": True}
    # reading what is installed takes half of a run's time, and run.json says what a result was made with
    settings["x_save_requirements"] = False
    wandb.setup(wandb.Settings(**settings, disable_git=True, save_code=False))
    return wandb


def log_table(run: Any, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table as a file of the run. The library's own way makes an artifact of it, which the run names by a place
    on this machine.
    """
    import wandb

    table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
    table.bind_to_run(run, key, run.step)
    run.log({key: table})


def _known(path: Path) -> MirrorRecord | None:
    """The record of an earlier mirror; None where there is none that holds."""
    for place in (path, copy_of(path)):
        with suppress(UserError):
            return MirrorRecord.read(place)
    return None


def _is_sent(directory: Path) -> bool:
    return any(directory.glob("*.synced"))


def _take(path: Path) -> IO[str]:
    """Hold a lock until this process ends."""
    lock = open(path, "a")  # noqa: SIM115 (closed with the mirror)
    for _ in range(int(WAIT_S * 10)):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.1)
    raise UserError(f"{path}: another mirror is at work there; wait for it or stop it")
