"""Labels: how a master makes itself known, and how others find it.

A `Registration` keeps a label in the name server for as long as its master lives: where no name
server answers it starts one in this process, and when that ends with its holder, the next look of
another master's registration starts one there. Entries of masters that have gone are replaced; a
living one is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from masterslave import connectionfile
from masterslave.connectionfile import Connection
from masterslave.errors import AuthenticationError, ConnectionFailed, LabelInUse, SettingsError
from masterslave.settings import Settings, split_address
from masterslave.transports.nameserver import (
    EmbeddedNameServer,
    NameServer,
    NameServerGone,
    name_server_address,
)
from masterslave.transports.pyro import PyroLink, PyroServer

log = logging.getLogger(__name__)

_ALIVE_S = 3.0  # longest time that a living master takes to prove its key
_AT_LOCALHOST = ("0.0.0.0", "::", "", "127.0.0.1", "localhost")  # reached by that name, too
_WAIT_STEP_S = 0.25  # between two looks of a slave that waits for its master


class Registration:
    """Keeps a server's label in the name server, with a thread that looks after it."""

    def __init__(self, server: PyroServer, label: str, settings: Settings, key: bytes) -> None:
        self._server = server
        self._label = label
        self._settings = settings
        self._key = key
        self._own: EmbeddedNameServer | None = None
        self._closing: threading.Thread | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="registration", daemon=True)

    def start(self) -> None:
        """Enter the label now. Raises `LabelInUse` when a living master has it."""
        try:
            self._enter()
        except BaseException:
            self._close_own()
            raise
        self._thread.start()

    def stop(self) -> None:
        """Remove the label; close the name server if it is in this process. Blocks until it has."""
        self.leave()
        if self._closing is not None:
            self._closing.join()

    def leave(self) -> None:
        """Remove the label, and begin to close what `stop` closes: it takes a fifth of a second."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        try:
            with self._name_server() as names:
                names.remove(self._label, self._server.uri)
        except ConnectionFailed as error:  # gone, or replaced by one that we do not trust
            log.debug("%s was not removed from the name server: %s", self._label, error)
        if self._own is not None:
            closing = threading.Thread(target=self._close_own, name="name-server-end")
            try:
                closing.start()
                self._closing = closing
            except RuntimeError:  # Python 3.12 and later start none when the interpreter ends
                self._close_own()

    def _name_server(self) -> NameServer:
        # A master that listens on this machine only has no use for a name server elsewhere.
        local = self._settings.host.startswith("127.")
        address = None
        if self._own is not None and self._settings.host not in _AT_LOCALHOST:
            address = self._settings.host, name_server_address()[1]  # ours listens there only
        return NameServer(broadcast=self._settings.broadcast and not local, address=address)

    def _close_own(self) -> None:
        if self._own is not None:
            self._own.stop()
            self._own = None

    def _enter(self) -> None:
        try:
            names = self._name_server()
        except NameServerGone:
            names = self._start_name_server()
        with names:
            try:
                names.register(self._server, self._label)
            except LabelInUse:
                addresses = names.addresses(self._label)
                if self._server.uri.endswith("@" + addresses[0]):
                    return  # our own entry
                if is_alive(self._label, addresses, self._key, self._settings):
                    raise LabelInUse(_in_use(self._label, addresses[0])) from None
                log.info("replacing the entry of %s: its master has gone", self._label)
                names.remove(self._label)
                names.register(self._server, self._label)

    def _start_name_server(self) -> NameServer:
        host, port = name_server_address()
        if not host.startswith("127.") and host != "localhost":
            raise NameServerGone(
                f"no name server answers at PYRO_NS_HOST={host}, port {port}; start pyro5-ns there"
            )
        bind = self._settings.host
        self._refuse_living()
        try:
            self._own = EmbeddedNameServer(bind, port, (self._server, self._label))
            log.info("started a name server on %s:%d", bind, port)
        except OSError:
            time.sleep(0.05)  # another master was faster; its server answers in a moment
        return self._name_server()

    def _refuse_living(self) -> None:
        """Where no name server can say who has the label, this user's connection file may know."""
        try:
            known = connectionfile.read(self._settings.connections, self._label)
        except SettingsError:  # not this user's; ours takes its place
            return
        if known is None or set(known.addresses) & set(self._server.addresses):
            return  # nobody, or ourselves
        if is_alive(self._label, known.addresses, self._key, self._settings):
            raise LabelInUse(_in_use(self._label, known.addresses[0]))

    def _renew(self) -> None:
        while not self._stop.wait(self._settings.renewal_s):
            try:
                self._enter()
            except LabelInUse as error:
                log.warning("%s", error, extra={"action": "label_lost"})
            except Exception as error:  # whatever it was, the next look may find it mended
                log.debug("registration not renewed: %s", error)


def _in_use(label: str, address: str) -> str:
    return (
        f"a master with label {label!r} is running at {address}; "
        "choose another label, or end that one first"
    )


def is_alive(label: str, addresses: list[str], key: bytes, settings: Settings) -> bool:
    """Whether a task manager answers at one of the addresses, with our key or another one."""
    for text in addresses:
        try:
            link = _link(text, label, key, min(settings.handshake_s, _ALIVE_S))
        except AuthenticationError:  # speaks our protocol, with someone else's key
            return True
        except ConnectionFailed:
            continue
        try:
            link.call("numberOfActiveProcesses")
            return True
        except ConnectionFailed:
            continue
        finally:
            link.close()
    return False


def _link(text: str, label: str, key: bytes, timeout_s: float) -> PyroLink:
    """A link to an address as it was registered; one that makes no sense is nobody's."""
    try:
        address = split_address(text)
    except SettingsError as error:
        raise ConnectionFailed(f"label {label!r} leads nowhere: {error}") from error
    return PyroLink(address, label, key, timeout_s)


def locate(label: str, master_host: str | None, settings: Settings) -> list[str]:
    """The addresses at which a label's task manager may be found.

    `master_host` is ``host`` or ``host:port``; None asks the name server. Raises `LabelUnknown`
    or `NameServerGone`.
    """
    if master_host is not None:
        host, port = split_address(master_host)
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    with NameServer(broadcast=settings.broadcast) as names:
        return names.addresses(label)


def connect(label: str, master_host: str | None, settings: Settings, key: bytes) -> PyroLink:
    """A link to the label's task manager, by the first of its addresses that answers.

    `master_host`: where it is; None finds it by the user's connection file, if there is one and who
    answers there has that label, else by the name server. Raises `ConnectionFailed`, or a subclass
    that says more, naming every address tried.
    """
    if master_host is not None:
        return _by_name(label, master_host, settings, key)
    known = connectionfile.read(settings.connections, label)
    if known is None:
        try:
            return _by_name(label, None, settings, key)
        except ConnectionFailed as error:
            problem = connectionfile.problem(settings.connections, label)
            if not problem or isinstance(error, AuthenticationError):
                raise
            raise type(error)(f"{error}; {problem}") from error
    try:
        return _by_file(known, settings, key)
    except ConnectionFailed as error:
        by_file = error
    try:
        return _by_name(label, None, settings, key)
    except ConnectionFailed as error:
        if isinstance(by_file, AuthenticationError):
            raise by_file from error
        raise type(error)(f"{error}; by the file {known.path}: {by_file}") from error


def _by_file(known: Connection, settings: Settings, key: bytes) -> PyroLink:
    if not known.addresses:
        raise ConnectionFailed(
            f"the master listens on {known.host} for that host only; "
            "MASTERSLAVE_HOST=0.0.0.0 in its environment lets others reach it"
        )
    impatient = replace(settings, handshake_s=min(settings.handshake_s, _ALIVE_S))
    link = connect_any(known.label, known.addresses, key, impatient)
    try:
        link.call("numberOfActiveProcesses")  # its port may be another label's by now
    finally:
        link.close()
    return _link(link.address, known.label, key, settings.handshake_s)


def _by_name(label: str, master_host: str | None, settings: Settings, key: bytes) -> PyroLink:
    try:
        addresses = locate(label, master_host, settings)
    except NameServerGone as error:
        raise NameServerGone(
            f"{error}; start the master of {label!r} first, or name its host with -m HOST[:PORT]"
        ) from error
    return connect_any(label, addresses, key, settings)


def connect_any(label: str, addresses: list[str], key: bytes, settings: Settings) -> PyroLink:
    """A link by the first of the addresses that answers; raises as `connect`."""
    problems: list[ConnectionFailed] = []
    for text in addresses:
        try:
            return _link(text, label, key, settings.handshake_s)
        except ConnectionFailed as error:
            problems.append(error)
    for problem in problems:
        if isinstance(problem, AuthenticationError):
            raise problem
    raise ConnectionFailed("; ".join(str(problem) for problem in problems))


def connect_or_follow(label: str, known: str, settings: Settings, key: bytes) -> PyroLink:
    """A link to the label's task manager at its known address ``host:port``, or where it is now.

    A master that is started again may find its port taken; it stands in the name server then.
    Raises `ConnectionFailed` with both reasons.
    """
    impatient = replace(settings, handshake_s=min(settings.handshake_s, _ALIVE_S))
    try:
        link = connect(label, known, impatient, key)
        try:
            link.call("numberOfActiveProcesses")  # it may be another label's by now
        except ConnectionFailed:
            link.close()
            raise
        return link
    except ConnectionFailed as error:
        first = error
    try:
        return connect(label, None, settings, key)
    except ConnectionFailed as error:
        raise ConnectionFailed(f"{first}; by its label: {error}") from error


def wait_and_connect(
    label: str,
    master_host: str | None,
    settings: Settings,
    key: bytes,
    on_failure: Callable[[ConnectionFailed], None] = lambda error: None,
) -> PyroLink:
    """As `connect`, but blocks until the master is there. A refused key is raised at once.

    `on_failure` is told of each attempt that failed, and ends the wait by raising.
    """
    told = False
    while True:
        try:
            return connect(label, master_host, settings, key)
        except AuthenticationError:
            raise
        except ConnectionFailed as error:
            on_failure(error)
            if not told:
                log.info("waiting for the master of %s: %s", label, error)
                told = True
            time.sleep(_WAIT_STEP_S)


def survey(settings: Settings, key: bytes, *, with_counts: bool) -> list[dict[str, object]]:
    """All labels of the name server and of this user's connection files, with address and state.

    State: "alive", "refuses our key", "gone (entry removed)", of a connection file "gone". Entries
    of the dead are removed from the name server. Raises `NameServerGone` when there is none, and
    no file leads to a task manager either.
    """
    files = connectionfile.read_all(settings.connections)
    rows: list[dict[str, object]] = []
    no_names: NameServerGone | None = None
    try:
        rows = _survey_names(settings, key, with_counts)
    except NameServerGone as error:
        no_names = error
    named = {row["label"] for row in rows if row["state"] != "gone (entry removed)"}
    for known in files:
        if known.label not in named and known.addresses:
            row: dict[str, object] = {"label": known.label, "address": known.addresses[0]}
            row["state"] = "alive"
            try:
                _ask(row, known.label, known.addresses, key, settings, with_counts)
            except AuthenticationError:
                row["state"] = "refuses our key"
            except ConnectionFailed:
                row["state"] = "gone"
            rows.append(row)
    if no_names is not None and all(row["state"] == "gone" for row in rows):
        raise no_names  # which may be why none of the files is of use: TLS, say
    return rows


def _survey_names(settings: Settings, key: bytes, with_counts: bool) -> list[dict[str, object]]:
    try:
        name_server = NameServer(broadcast=settings.broadcast)
    except NameServerGone as error:
        raise NameServerGone(
            f"{error}; start a master first, or set PYRO_NS_HOST to the name server's host"
        ) from error
    with name_server as names:
        known = [(label, names.addresses(label)) for label in names.labels()]
        rows: list[dict[str, object]] = []
        for label, addresses in known:
            row: dict[str, object] = {"label": label, "address": addresses[0], "state": "alive"}
            try:
                _ask(row, label, addresses, key, settings, with_counts)
            except AuthenticationError:
                row["state"] = "refuses our key"
            except ConnectionFailed:
                row["state"] = "gone (entry removed)"
                names.remove(label)
            rows.append(row)
    return rows


def _ask(
    row: dict[str, object],
    label: str,
    addresses: list[str],
    key: bytes,
    settings: Settings,
    with_counts: bool,
) -> None:
    link = connect_any(label, addresses, key, settings)
    try:
        if with_counts:
            status = link.call("status")
            row["processes"], row["workers"] = status["active_processes"], status["workers"]
        else:
            link.call("numberOfActiveProcesses")
    finally:
        link.close()
