"""Store of cache entries for several machines, at any URL that fsspec supports, such as a bucket or a shared disk.

<url>/files/<sha256>         file contents, each stored once and never altered
      entries/<key>.json     the record of an entry, written after all of its contents

So an entry is present whole or not at all without a rename, which object stores do not have. Every content is compared
with its hash when it is read; an altered content is removed together with the entry.
"""

from __future__ import annotations

import hashlib
import importlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from md_export.engine.cache import Cache, Entry, StoredFile, Tell, entry_from_json, entry_to_json
from md_export.engine.plan import Result
from md_export.errors import ArtifactError, MdExportError, MissingExtraError, RuntimeFault, UsageError
from md_export.system.files import require_space
from md_export.system.workspace import workspace

_CHUNK: Final = 8 << 20
_LARGEST_RECORD: Final = 64 << 20


def store_url(given: str) -> str:
    """Return a URL that is valid in every process; a path without a protocol becomes an absolute ``file://`` URL."""
    return given if "://" in given else f"file://{Path(given).absolute()}"


class Store:
    """Store of entries at ``url``; any number of processes on any machines may use it at the same time.

    Raises:
        UsageError: fsspec does not support such URLs.
        MissingExtraError: the package that opens such URLs is not installed.
        RuntimeFault: from every method: the store does not answer, or may not be read or written from here.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._system, self._root = importlib.import_module("fsspec.core").url_to_fs(url)
        except ImportError as error:
            raise MissingExtraError(f"the store {url} needs a package that is not installed here: {error}") from error
        except ValueError as error:
            raise UsageError(f"the store {url} cannot be opened: {error}; name a URL that fsspec supports") from error
        # On a local file system a reader could see a file that is still being written, so files are renamed at the end.
        local: Any = importlib.import_module("fsspec.implementations.local")
        self._renames = isinstance(self._system, local.LocalFileSystem)

    def read(self, key: str) -> Entry | None:
        """Return an entry's record without reading its files; None if it is missing or damaged."""
        try:
            with self._reaching(), self._system.open(self._record(key), "rb") as stream:
                content = stream.read(_LARGEST_RECORD + 1)
            entry = entry_from_json(content[:_LARGEST_RECORD].decode())
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry if entry.key == key else None

    def fetch(self, entry: Entry, folder: Path) -> str:
        """Copy an entry's files to a new folder.

        Returns the name of the first file that is missing or altered, or an empty string. Such a file is removed from
        the store together with the entry.
        """
        for name, file in entry.files.items():
            if not self._fetch_file(file, folder / name):
                self.remove(entry.key)
                self._remove(self._content(file))
                return name
        folder.mkdir(exist_ok=True)
        return ""

    def put(self, entry: Entry, folder: Path) -> None:
        """Copy an entry's files from ``folder`` to the store; contents that the store already has are skipped.

        Raises:
            ArtifactError: a file does not match the entry's hash.
        """
        with self._reaching():
            for part in ("files", "entries"):
                self._system.makedirs(f"{self._root}/{part}", exist_ok=True)
            for name, file in entry.files.items():
                self._put_file(folder / name, file)
            with self._writing(self._record(entry.key)) as stream:
                stream.write(entry_to_json(entry).encode())

    def remove(self, key: str) -> None:
        """Remove an entry's record; its file contents stay, even if no other entry uses them."""
        self._remove(self._record(key))

    def _put_file(self, source: Path, file: StoredFile) -> None:
        path = self._content(file)
        with suppress(FileNotFoundError):
            if self._system.info(path)["size"] == file.bytes:
                return
        with source.open("rb") as given, self._writing(path) as made:
            if not _copied(given, made, file):
                raise ArtifactError(f"{source} was altered while it was read; run the same command again")

    def _fetch_file(self, file: StoredFile, path: Path) -> bool:
        """Copy one content to ``path`` and return whether it exists and matches its hash."""
        try:
            with self._reaching(), self._system.open(self._content(file), "rb") as given:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as made:
                    return _copied(given, made, file)
        except FileNotFoundError:
            return False

    @contextmanager
    def _writing(self, path: str) -> Iterator[IO[bytes]]:
        """Yield a stream to a file that appears whole or not at all.

        Object stores guarantee this; on disks the file is written under a temporary name and renamed.
        """
        name = f"{path}.{secrets.token_hex(6)}.new" if self._renames else path
        try:
            with self._system.open(name, "wb") as stream:
                yield stream
            if self._renames:
                self._system.mv(name, path)
        except BaseException:
            with suppress(Exception):
                self._system.rm_file(name)
            raise

    def _remove(self, path: str) -> None:
        with self._reaching(), suppress(FileNotFoundError):
            self._system.rm_file(path)

    def _record(self, key: str) -> str:
        return f"{self._root}/entries/{key}.json"

    def _content(self, file: StoredFile) -> str:
        return f"{self._root}/files/{file.sha256}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Translate errors of the storage service to RuntimeFault; their classes depend on the service."""
        try:
            yield
        except (MdExportError, FileNotFoundError):
            raise
        except Exception as error:
            raise RuntimeFault(
                f"the store {self.url} failed with {type(error).__name__}: {error}; this machine and every "
                "worker must be able to read and write it: check the URL, the permissions, the space and the network"
            ) from error


def _copied(given: Any, made: IO[bytes], file: StoredFile) -> bool:
    """Copy at most ``file.bytes`` bytes; return whether the size and the hash of the source are those of ``file``."""
    digest, left = hashlib.sha256(), file.bytes
    while left > 0 and (chunk := given.read(min(_CHUNK, left))):
        digest.update(chunk)
        made.write(chunk)
        left -= len(chunk)
    return left == 0 and not given.read(1) and digest.hexdigest() == file.sha256


class BackedCache(Cache):
    """Cache in ``root`` backed by a store: missing entries are fetched from the store, new entries go to both.

    Raises:
        RuntimeFault: from every method except ``read``: the store does not answer.
    """

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root)
        self.store = store

    def get(self, key: str, tell: Tell = lambda _: None) -> Entry | None:
        """Return an entry as :meth:`Cache.get` does, or fetch it from the store.

        An entry that is damaged in the store is removed there.
        """
        return super().get(key, tell) or self._fetched(key, tell)

    def require(self, key: str) -> Entry:
        """Return an entry as :meth:`Cache.require` does, or fetch it from the store."""
        return self.read(key) or self._fetched(key, lambda _: None) or super().require(key)

    def put(self, key: str, kind: str, label: str, folder: Path, result: Result | None) -> Entry:
        """Store an entry as :meth:`Cache.put` does, then copy it to the store."""
        super().put(key, kind, label, folder, result)
        return self.share(key)

    def share(self, key: str) -> Entry:
        """Copy an entry of this machine's cache to the store."""
        # Read the entry again instead of using the one just put: another process may have published it first, and a
        # manifest contains measured seconds, so the two differ.
        entry = super().require(key)
        self.store.put(entry, self.files(key))
        return entry

    def remove(self, key: str) -> None:
        """Remove an entry from this machine's cache and from the store."""
        super().remove(key)
        self.store.remove(key)

    def _fetched(self, key: str, tell: Tell) -> Entry | None:
        entry = self.store.read(key)
        if entry is None:
            return None
        with workspace(self.work) as work:
            require_space(work, entry.bytes)
            if damage := self.store.fetch(entry, work / key):
                tell(f"store: {entry.label} is damaged ({damage}); it will be built again")
                return None
            return super().put(key, entry.kind, entry.label, work / key, entry.result)
