"""A cache of one machine with a store behind it that many machines share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from md_export.files import require_space
from md_export.matrix.cache import Cache, Tell
from md_export.matrix.entry import Entry
from md_export.matrix.store import Store
from md_export.matrix.workspace import workspace


class BackedCache(Cache):
    """What is not in ``root`` is fetched from the store, what is put goes to both.

    Raises:
        RuntimeFault: from every method but ``read``: the store does not answer.
    """

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root)
        self.store = store

    def get(self, key: str, tell: Tell = lambda _: None) -> Entry | None:
        """As :meth:`Cache.get`, fetched where it is not here; one that is damaged in the store is removed there."""
        return super().get(key, tell) or self._fetched(key, tell)

    def require(self, key: str) -> Entry:
        """As :meth:`Cache.require`, fetched where it is not here."""
        return self.read(key) or self._fetched(key, lambda _: None) or super().require(key)

    def put(self, key: str, kind: str, label: str, folder: Path, value: dict[str, Any]) -> Entry:
        """As :meth:`Cache.put`, then to the store."""
        super().put(key, kind, label, folder, value)
        return self.share(key)

    def share(self, key: str) -> Entry:
        """Bring an entry of this machine to the store."""
        # Not what was just put: another process may have been first, and a manifest tells seconds.
        entry = super().require(key)
        self.store.put(entry, self.files(key))
        return entry

    def remove(self, key: str) -> None:
        """Take an entry away, here and in the store."""
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
            return super().put(key, entry.kind, entry.label, work / key, entry.value)
