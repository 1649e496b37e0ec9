"""When to look into a shared folder again, and whether a look at the time of a directory is enough.

Pure: time is an argument, in seconds of any steady clock.
"""

from __future__ import annotations

from random import Random

from masterslave.folder.files import Stamp

#: Times of directories are as coarse as the system's clock tick, some milliseconds: what happens in
#: the tick of a listing leaves the time as it is. So a listing that was read sooner than this after
#: the time had changed is read once more. Smaller: news would be overlooked.
SETTLED_S = 0.05

#: The same where times seem to be whole seconds.
SETTLED_COARSE_S = 1.1


class Watch:
    """Decides by a directory's stamp whether it must be listed."""

    def __init__(self) -> None:
        self._stamp: Stamp | None = None
        self._since = 0.0  # when the stamp was first seen
        self._listed_at = 0.0

    def must_list(self, stamp: Stamp | None, now: float) -> bool:
        """Whether there may be something new, by a stamp that was just seen."""
        if stamp is None:
            return False
        if stamp != self._stamp:
            return True
        coarse = stamp.mtime_ns % 1_000_000_000 == 0
        settled_s = SETTLED_COARSE_S if coarse else SETTLED_S
        is_settled = self._listed_at - self._since >= settled_s
        return not is_settled and now - self._since >= settled_s

    def listed(self, stamp: Stamp, now: float) -> None:
        """It was listed, and had this stamp before that."""
        if stamp != self._stamp:
            self._stamp, self._since = stamp, now
        self._listed_at = now

    def settles_in(self, now: float) -> float | None:
        """Seconds until the last listing is to be read once more; None: it need not be."""
        if self._stamp is None or self._listed_at - self._since >= SETTLED_S:
            return None
        return max(0.0, self._since + SETTLED_S - now) + 0.001


class Pause:
    """A pause that grows while nothing happens, and is a little different each time.

    So that many who have begun at the same time do not all look at the same time.
    """

    def __init__(
        self, first_s: float, longest_s: float, late_s: float | None = None, late_at_s: float = 60.0
    ) -> None:
        """From `first_s` to `longest_s`; to `late_s` when nothing has happened for `late_at_s`."""
        self._first_s, self._longest_s = first_s, longest_s
        self._late_s = longest_s if late_s is None else late_s
        self._late_at_s = late_at_s
        self._next_s = first_s
        self._quiet_since: float | None = None
        self._random = Random()  # noqa: S311 - no secret

    def reset(self) -> None:
        """Something has happened."""
        self._next_s = self._first_s
        self._quiet_since = None

    def next_s(self, now: float) -> float:
        """How long to pause now, in seconds."""
        if self._quiet_since is None:
            self._quiet_since = now
        late = now - self._quiet_since >= self._late_at_s
        pause_s = min(self._next_s, self._late_s if late else self._longest_s)
        self._next_s = 1.5 * pause_s
        return pause_s * self._random.uniform(0.8, 1.0)
