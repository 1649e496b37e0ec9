"""A shared folder that is not there any more, removed or unmounted, and bundles that are not."""

from __future__ import annotations

import logging
from collections.abc import Collection

from masterslave.folder.place import Place

log = logging.getLogger(__name__)

#: A bundle is taken for lost when no file of it has been seen for so long.
_VANISHED_S = 5.0

#: Between two listings while a bundle is missing.
_AGAIN_S = _VANISHED_S / 5


class Absence:
    """Notices it, says so once, and tells when it has lasted for too long."""

    def __init__(self, place: Place, gone_s: float) -> None:
        """`gone_s`: seconds after which nobody waits for the folder any longer."""
        self._place, self._gone_s = place, gone_s
        self._since: float | None = None
        self.story = f"folder {place.path} has been gone for {gone_s:g} s: removed, or not mounted"

    def goes_on(self, is_there: bool, now: float) -> bool:
        """Whether to give up. `is_there`: a file of ours was just seen in the folder."""
        if is_there or self._place.is_there():
            if self._since is not None:
                log.info("folder %s is there again", self._place.path)
            self._since = None
            return False
        if self._since is None:
            self._since = now
            log.error(
                "folder %s has gone: removed, or not mounted; the job is given up if it does not "
                "come back within %g s", self._place.path, self._gone_s,
                extra={"action": "folder_gone"},
            )  # fmt: skip
        return now - self._since >= self._gone_s


class Vanished:
    """Notices bundles of which no file is there: refused by their slaves, or removed."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}  # bundle -> since when no file of it is seen
        self._look_at = 0.0

    def must_look(self, now: float) -> bool:
        """Whether to list again, though nothing has changed, as one was missing."""
        if not self._since or now < self._look_at:
            return False
        self._look_at = now + _AGAIN_S
        return True

    def forget(self, bundle: str) -> None:
        """A bundle has come to its end."""
        self._since.pop(bundle, None)

    def look(self, bundles: Collection[str], seen: Collection[str], now: float) -> list[str]:
        """Those that have been missing for long; `seen`: of which a file is there."""
        for bundle in [one for one in bundles if one in seen]:
            self._since.pop(bundle, None)
        gone = []
        for bundle in [one for one in bundles if one not in seen]:
            since = self._since.setdefault(bundle, now)
            if now - since > _VANISHED_S:
                gone.append(bundle)
        return gone
