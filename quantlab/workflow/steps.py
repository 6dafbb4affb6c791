"""Steps cached by content hash: a step runs again only if its key or one of its files has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from quantlab.documents import canonical_sha256, dump_json, read_json
from quantlab.errors import ConfigError
from quantlab.files import check_folder, sha256_file, write_text
from quantlab.progress import Narrator
from quantlab.records import from_plain, to_plain

STATE_SCHEMA = "quantlab.state/1"
STATE_NAME = "state.json"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step.

    Attributes:
        key: Hash of all that goes into it.
        files: Hash of each file it wrote, by path relative to the state's folder.
    """

    key: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _State:
    steps: Mapping[str, StepRecord] = field(default_factory=dict)


class Steps:
    """Finished steps of a run; the record is written after each, so an interrupted run goes on where it was."""

    def __init__(self, folder: Path, narrator: Narrator, *, force: bool) -> None:
        check_folder(folder)
        self.folder, self.narrator = folder, narrator
        self.path = folder / STATE_NAME
        self.records: dict[str, StepRecord] = {}
        if self.path.is_file() and not force:
            self.records = dict(self._load().steps)

    def run(self, name: str, inputs: Mapping[str, object], action: Callable[[], Iterable[Path]]) -> None:
        """Run ``action``, which returns the files it wrote, unless it was finished with the same inputs.

        Args:
            name: Of the step.
            inputs: Everything the result depends on, as plain values; quantlab's version is added.
            action: Does the work.
        """
        key = canonical_sha256({"step": name, "quantlab": version("quantlab"), **inputs})
        if self._fresh(name, key):
            self.narrator.say(f"cached {name}")
            return
        if self.records.pop(name, None) is not None:
            self._save()
        files = {path.relative_to(self.folder).as_posix(): sha256_file(path) for path in action()}
        self.records[name] = StepRecord(key, files)
        self._save()

    def _load(self) -> _State:
        try:
            document = read_json(self.path, STATE_SCHEMA, ConfigError, "run state")
            document.pop("schema")
            return from_plain(_State, document, str(self.path))
        except ConfigError as error:
            hint = "run every step again with --force"
            raise ConfigError(error.what, got=error.got, expected=error.expected, hint=hint) from error

    def _fresh(self, name: str, key: str) -> bool:
        record = self.records.get(name)
        if record is None or record.key != key:
            return False
        paths = {self.folder / file: expected for file, expected in record.files.items()}
        return all(path.is_file() and sha256_file(path) == expected for path, expected in paths.items())

    def _save(self) -> None:
        write_text(self.path, dump_json({"schema": STATE_SCHEMA, **to_plain(_State(self.records))}))
