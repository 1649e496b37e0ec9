"""Pyro's name server: asked as a client, and inside a master where none answers.

Strangers speak with both sides without a proof, so everything from there is read as plain literals
(`literals`), never made into objects, and what they can have stored is bounded.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import ssl
import threading
from typing import Any

import Pyro5.client
import Pyro5.core
import Pyro5.errors
import Pyro5.nameserver
import Pyro5.protocol
import Pyro5.serializers
import Pyro5.server
import Pyro5.socketutil
from Pyro5 import config

from masterslave.errors import (
    AuthenticationError,
    ConnectionFailed,
    LabelInUse,
    LabelUnknown,
)
from masterslave.settings import join_address
from masterslave.transports import literals
from masterslave.transports.guarded import GuardedSocket
from masterslave.transports.pyro import PyroServer
from masterslave.transports.sockets import (
    accept_at_once,
    connect,
    end,
    peer_of,
    what_to_check,
)
from masterslave.transports.strangers import Strangers
from masterslave.transports.tls import server_tls

log = logging.getLogger(__name__)

_NAME_SERVER_S = 5.0  # longest time for an answer of the name server
_BROADCASTS = 3  # a broadcast is not sure to arrive

#: Longest silence on a connection to the name server; Pyro's proxies connect again.
_NAME_SERVER_IDLE_S = 30.0

#: Entries of the name server. Larger: more that strangers can have stored, 16 KiB each.
_NAMES = 4096

#: Entries of a label's addresses that are tried.
_ADDRESSES = 16


def object_name(label: str) -> str:
    """The name of a task manager in the name server."""
    return f"TaskManager.{label}"


class NameServerGone(ConnectionFailed):
    """No name server answers."""


class _NameServerDaemon(Pyro5.nameserver.NameServerDaemon):  # type: ignore[misc]
    """Pyro's name server, for which everyone is a stranger: see `literals`.

    Takes no regular expressions, which can keep the interpreter busy for ever, nor names without
    end; is not held up by silence. Pyro's own request loop would make objects of what it is sent.
    """

    _METHODS = frozenset(
        ("count", "list", "lookup", "ping", "register", "remove", "set_metadata", "yplookup")
    )

    def __init__(self, host: str, port: int) -> None:
        self._strangers = Strangers(end)
        super().__init__(host=host, port=port)

    def _handshake(self, conn: Any, denied_reason: str | None = None) -> bool:
        if denied_reason:
            return False
        try:
            server_tls(conn.sock, _NAME_SERVER_S)
        except OSError as error:
            log.info("name server: connection from %s refused: %s", peer_of(conn), error)
            return False
        conn.sock = GuardedSocket(conn.sock, server=True)
        conn.timeout = _NAME_SERVER_S
        self._strangers.enter(conn)
        accepted = False
        try:
            hello = Pyro5.protocol.recv_stub(conn, [Pyro5.protocol.MSG_CONNECT])
            wanted = literals.loads(hello.data)
            accepted = isinstance(wanted, dict) and wanted.get("object") == _NAME_SERVER
            methods = {"methods": self._METHODS, "oneway": (), "attrs": ()}
            answer: object = {"handshake": "hello", "meta": methods}
            if not accepted:
                answer = "this is a name server, and has nothing else"
            kind = Pyro5.protocol.MSG_CONNECTOK if accepted else Pyro5.protocol.MSG_CONNECTFAIL
            _send_serpent(conn, kind, 0, hello.seq, answer)
            conn.timeout = _NAME_SERVER_IDLE_S
        except Exception as error:  # a stranger may send anything
            log.debug("no client of the name server: %s", error)
            accepted = False
        if not accepted:
            self._strangers.leave(conn)
        return accepted

    def clientDisconnect(self, conn: Any) -> None:
        """A connection has closed."""
        self._strangers.leave(conn)

    def handleRequest(self, conn: Any) -> None:
        """Answer one call."""
        protocol = Pyro5.protocol
        try:
            request = protocol.recv_stub(conn, [protocol.MSG_INVOKE, protocol.MSG_PING])
        except Exception as error:  # it has gone, is silent, or sends what is no message
            raise Pyro5.errors.ConnectionClosedError(str(error)) from error
        if request.type == protocol.MSG_PING:
            _send_serpent(conn, protocol.MSG_PING, 0, request.seq, "pong")
            return
        flags = 0
        try:
            answer = self._answer(literals.loads(request.data))
        except Exception as error:
            flags = protocol.FLAGS_EXCEPTION
            known = isinstance(error, (Pyro5.errors.PyroError, TypeError, ValueError))
            answer = error if known else Pyro5.errors.PyroError(str(error))
        _send_serpent(conn, protocol.MSG_RESULT, flags, request.seq, answer)

    def _answer(self, call: Any) -> Any:
        name, method, args, kwargs = call
        if name != _NAME_SERVER:
            raise Pyro5.errors.DaemonError("unknown object")
        if method not in self._METHODS:
            raise AttributeError(f"a name server has no method {method!r}")
        call = getattr(self.nameserver, method)
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        if given.get("regex"):
            raise Pyro5.errors.NamingError("this name server takes no regular expressions")
        if method == "register":
            given["uri"] = _uri_text(given["uri"])
            if self.nameserver.count() >= _NAMES and given["name"] not in self.nameserver.storage:
                raise Pyro5.errors.NamingError("this name server has no room for more names")
        return call(**given)


_NAME_SERVER = Pyro5.core.NAMESERVER_NAME
_SERPENT = Pyro5.serializers.serializers["serpent"]


def _send_serpent(conn: Any, kind: int, flags: int, seq: int, value: Any) -> None:
    data = _SERPENT.dumps(value)
    identity = _SERPENT.serializer_id
    conn.send(Pyro5.protocol.SendingMessage(kind, flags, seq, identity, data).data)


def _uri_text(value: Any) -> str:
    """A Pyro address as text, which may have come as an object's state. Raises `ValueError`."""
    if isinstance(value, dict) and value.get("__class__") == "Pyro5.core.URI":
        protocol, name, sockname, host, port = value["state"]
        where = f"./u:{sockname}" if sockname else join_address(str(host), int(port))
        value = f"{protocol}:{name}@{where}"
    if not isinstance(value, str):
        raise ValueError("not an address")
    return value


class EmbeddedNameServer:
    """A name server inside this process, where no other one answers."""

    def __init__(self, host: str, port: int, entry: tuple[PyroServer, str] | None = None) -> None:
        """Raises `OSError` when the port is taken, by another name server most likely.

        `entry`: a server and its label, there before anyone is answered: who starts a name server
        for a label never loses it to one that came later.
        """
        self._daemon = _NameServerDaemon(host=host, port=port)
        if entry is not None:
            server, label = entry
            self._daemon.nameserver.register(
                object_name(label), server.uri, metadata=server.addresses
            )
        accept_at_once(self._daemon)
        self._broadcast = None
        if not host.startswith("127."):
            with contextlib.suppress(OSError):  # without it, PYRO_NS_HOST still leads here
                self._broadcast = Pyro5.nameserver.BroadcastServer(
                    self._daemon.uriFor(self._daemon.nameserver)
                )
                self._broadcast.runInThread()
        self._thread = threading.Thread(
            target=self._daemon.requestLoop, name="name-server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close it. Those registered here find or start another one."""
        if self._broadcast is not None:
            self._broadcast.close()
        self._daemon.shutdown()
        self._thread.join()


def name_server_address() -> tuple[str, int]:
    """Where Pyro's configuration says that the name server is."""
    return config.NS_HOST, config.NS_PORT


def _name_server_connection(address: tuple[str, int]) -> Any:
    """A connection to the name server there; `OSError` when none answers, else as `connect`.

    Pyro's own way to connect would decode the first answer with whatever serializer that names.
    """
    sock = connect(address, "the name server", _NAME_SERVER_S)
    sock.settimeout(_NAME_SERVER_S)
    guarded = GuardedSocket(sock, server=False)
    connection = Pyro5.socketutil.SocketConnection(guarded, _NAME_SERVER)
    hello = {"handshake": "hello", "object": _NAME_SERVER}
    try:
        _send_serpent(connection, Pyro5.protocol.MSG_CONNECT, 0, 0, hello)
        Pyro5.protocol.recv_stub(connection, [Pyro5.protocol.MSG_CONNECTOK])
    except Exception as error:  # a stranger may answer anything
        connection.close()
        under = error.__context__  # of Pyro's error, which has its text only
        cause = under if isinstance(under, ssl.SSLError) else error
        raise ConnectionError(f"it is not a name server: {what_to_check(cause)}") from error
    return connection


def _ask_all() -> tuple[str, int] | None:
    """Where a name server is that answers a broadcast, as Pyro's name servers do."""
    with contextlib.closing(Pyro5.socketutil.create_bc_socket(timeout=0.7)) as sock:
        for _ in range(_BROADCASTS):
            for address in config.BROADCAST_ADDRS:
                with contextlib.suppress(OSError):  # a network that cannot be reached
                    sock.sendto(b"GET_NSURI", 0, (address, config.NS_BCPORT))
            with contextlib.suppress(OSError, ValueError, Pyro5.errors.PyroError):
                uri = Pyro5.core.URI(sock.recvfrom(100)[0].decode("ascii"))
                return uri.host, uri.port
    return None


class NameServer:
    """The name server that answers now; used by one thread, within a ``with``."""

    def __init__(self, *, broadcast: bool, address: tuple[str, int] | None = None) -> None:
        """Find it: at `address`, else at `PYRO_NS_HOST` (default: this machine), else by broadcast
        if allowed.

        Raises `NameServerGone` when none answers, `AuthenticationError` when its certificate is
        not trusted, `SettingsError` when TLS is asked for and its files cannot be used.
        """
        address = address or name_server_address()
        where = join_address(*address)
        try:
            self._connection = _name_server_connection(address)
        except (OSError, ConnectionFailed) as error:
            found = _ask_all() if broadcast else None
            if found is None:
                if isinstance(error, AuthenticationError):
                    raise
                also = " or to a broadcast" if broadcast else ""
                reason = getattr(error, "strerror", None) or error
                raise NameServerGone(
                    f"no name server answers at {where}{also}: {reason}"
                ) from error
            try:
                self._connection = _name_server_connection(found)
            except AuthenticationError:
                raise
            except (OSError, ConnectionFailed) as again:
                raise NameServerGone(
                    f"the name server at {join_address(*found)} does not answer: {again}"
                ) from again

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call = (_NAME_SERVER, method, args, kwargs)
        try:
            _send_serpent(self._connection, Pyro5.protocol.MSG_INVOKE, 0, 0, call)
            answer = Pyro5.protocol.recv_stub(self._connection, [Pyro5.protocol.MSG_RESULT])
            result = literals.loads(answer.data)
        except Exception as error:  # a stranger may answer anything
            raise NameServerGone(f"the name server does not answer: {error}") from error
        if answer.flags & Pyro5.protocol.FLAGS_EXCEPTION:
            fields = result if isinstance(result, dict) else {}
            if fields.get("__class__") == "Pyro5.errors.NamingError":
                raise Pyro5.errors.NamingError(str(fields.get("args")))
            raise NameServerGone(f"the name server fails: {fields.get('args')}")
        return result

    def register(self, server: PyroServer, label: str) -> None:
        """Enter a label. Raises `LabelInUse` when the label has an entry."""
        try:
            self._call(
                "register", object_name(label), server.uri, safe=True, metadata=server.addresses
            )
        except Pyro5.errors.NamingError as error:
            raise LabelInUse(f"label {label!r} has an entry in the name server") from error

    def addresses(self, label: str) -> list[str]:
        """The addresses of a label's task manager. Raises `LabelUnknown` if there is no entry."""
        try:
            found = self._call("lookup", object_name(label), return_metadata=True)
        except Pyro5.errors.NamingError as error:
            raise LabelUnknown(
                f"no task manager with label {label!r} is known to the name server; "
                "start its master first, or name its host with -m HOST[:PORT]"
            ) from error
        try:
            uri, metadata = found
            location = _uri_text(uri).partition("@")[2]
            others = {text for text in metadata if isinstance(text, str)} - {location}
        except (TypeError, ValueError) as error:
            raise LabelUnknown(f"label {label!r} leads nowhere: {error}") from error
        return [location, *sorted(others)[:_ADDRESSES]]

    def labels(self) -> list[str]:
        """All labels that have an entry."""
        prefix = object_name("")
        names = self._call("list", prefix=prefix)
        found = names if isinstance(names, dict) else {}
        labels = [str(name)[len(prefix) :] for name in found]
        return sorted(label for label in labels if label.isprintable())

    def remove(self, label: str, uri: str | None = None) -> None:
        """Delete a label's entry, if `uri` is given only while it still leads there."""
        name = object_name(label)
        if uri is not None:
            try:
                if _uri_text(self._call("lookup", name)) != uri:
                    return
            except (Pyro5.errors.NamingError, ValueError):
                return
        self._call("remove", name)
