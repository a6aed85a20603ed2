"""Content as it was: every version that ever became live is kept, so that replay decides with what decided then (L10).

A content record of the log names a version; its folder holds copies of the files that made it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import orjson

from engine.content import load_content
from engine.definitions import Content
from engine.errors import ContentError, StoreCorrupt, StoreUnavailable


class ContentArchive:
    """Folders `<root>/<version>/{geofences,scenarios}`, written once and never changed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep(self, geofences: Path, scenarios: Path) -> Content:
        """Check the content of two folders, copy it and return it; raise ContentError with all its faults.

        What is checked is the copy, so that an edit under way cannot come between the check and the copy.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            copy = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        except OSError as error:
            raise StoreUnavailable(f"content cannot be kept in {self.root}: {error.strerror}") from None
        try:
            _copy(geofences, copy / "geofences")
            _copy(scenarios, copy / "scenarios")
            try:
                content = load_content(copy / "geofences", copy / "scenarios")
            except ContentError:
                load_content(geofences, scenarios)  # the same faults, under the names that ops know
                raise
            target = self.root / content.version
            if not target.exists():
                os.replace(copy, target)
            return content
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def load(self, version: str) -> Content:
        """Load a version kept earlier."""
        folder = self.root / version
        if not folder.is_dir():
            raise StoreCorrupt(f"the log names content {version}, but {folder} is missing; restore it from a copy")
        try:
            return load_content(folder / "geofences", folder / "scenarios")
        except ContentError as error:
            raise StoreCorrupt(
                f"the log names content {version}, but what is kept of it in {folder} cannot be used: changed there, "
                f"or kept by another version of this program. Restore it from a copy. First fault: {error.faults[0]}"
            ) from None

    def load_record(self, payload: bytes) -> Content:
        """Load what a content record names."""
        return self.load(str(orjson.loads(payload)["version"]))


def content_record(content: Content) -> bytes:
    """Make the payload of a content record."""
    return orjson.dumps({"version": content.version})


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "*~", "*.tmp"))
    except shutil.Error as error:  # one (source, target, reason) for every file that could not be copied
        path, _, reason = error.args[0][0]
        raise StoreUnavailable(f"{path} cannot be kept with the other content: {reason}") from None
    except OSError as error:
        raise StoreUnavailable(f"content cannot be kept in {target.parent.parent}: {error.strerror}") from None


class FolderWatch:
    """Say when content folders changed and came to rest; polled, so that every file system will do."""

    def __init__(self, *folders: Path, settle_ms: int = 1000) -> None:
        self._folders = folders
        self._settle_ms = settle_ms
        self._handled = self._stamp()
        self._seen = self._handled
        self._seen_ms = 0

    def has_settled_change(self, now_ms: int) -> bool:
        """Return True once for each change, after `settle_ms` without a further one."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen, self._seen_ms = stamp, now_ms
        if stamp == self._handled or now_ms - self._seen_ms < self._settle_ms:
            return False
        self._handled = stamp
        return True

    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        for folder in self._folders:
            for path in sorted(folder.rglob("*")):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)
