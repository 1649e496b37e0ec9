"""A shared folder that is not there any more: removed, or the file system was unmounted."""

from __future__ import annotations

import logging

from masterslave.folder.place import Place

log = logging.getLogger(__name__)


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
