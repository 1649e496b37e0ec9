"""The transport between processes: Pyro5 over signed connections, and Pyro's name server.

The only module that imports Pyro5. What is Pyro's: sockets, threads per connection, dispatch of
calls, msgpack, the name server. What is added: `channel` below it, so that nothing unproved is
decoded; a process whose connection closes is lost at once; errors arrive as themselves.

Pyro's configuration is global to the process. Here only the size of its thread pool is set, which
would otherwise refuse the 81st connection, and compression switched off; everything else, TLS
included, is the user's. TLS is for every connection of the process or for none: to task managers
and to the name server.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import Pyro5.client
import Pyro5.core
import Pyro5.errors
import Pyro5.nameserver
import Pyro5.protocol
import Pyro5.serializers
import Pyro5.server
import Pyro5.socketutil
from Pyro5 import config
from Pyro5.callcontext import current_context
from Pyro5.serializers import SerializerBase

from masterslave import pieces
from masterslave.errors import (
    REMOTE_ERRORS,
    AuthenticationError,
    ConnectionFailed,
    ForeignProtocol,
    LabelInUse,
    LabelUnknown,
    MasterSlaveError,
    SettingsError,
    UnknownProcess,
    remote_error,
)
from masterslave.manager import TaskManager
from masterslave.settings import join_address
from masterslave.transports import literals
from masterslave.transports.channel import (
    ChannelEnded,
    ChannelError,
    GuardedSocket,
    SealedSocket,
    check_certificates,
    client_handshake,
    end_connection,
    keep_alive,
    server_handshake,
    server_tls,
    tls_reason,
)
from masterslave.transports.remote import REMOTE_METHODS, check_call
from masterslave.transports.strangers import Strangers, Throttle

log = logging.getLogger(__name__)

#: Connections that a task manager serves at a time; two per slave. Larger costs nothing until they
#: come. Smaller refuses slaves.
config.THREADPOOL_SIZE = max(config.THREADPOOL_SIZE, 4096)

#: Compressed messages are refused (see `channel.check_message`), so none may be sent.
config.COMPRESSION = False

_CONNECT_S = 5.0  # longest time to connect to an address
_NAME_SERVER_S = 5.0  # longest time for an answer of the name server
_BROADCASTS = 3  # a broadcast is not sure to arrive

#: Longest silence on a connection to the name server; Pyro's proxies connect again.
_NAME_SERVER_IDLE_S = 30.0

#: Entries of the name server. Larger: more that strangers can have stored, 16 KiB each.
_NAMES = 4096

#: Entries of a label's addresses that are tried.
_ADDRESSES = 16


# --- errors cross as themselves -------------------------------------------------------------


def _error_to_dict(error: MasterSlaveError) -> dict[str, Any]:
    return {
        "__class__": f"masterslave.{type(error).__name__}",
        "args": [str(a) for a in error.args],
    }


def _dict_to_error(name: str, fields: dict[str, Any]) -> MasterSlaveError:
    args = fields.get("args")
    texts = map(str, args) if isinstance(args, (list, tuple)) else ()
    return remote_error(name.rpartition(".")[2], *texts)


for _name, _cls in REMOTE_ERRORS.items():
    SerializerBase.register_class_to_dict(_cls, _error_to_dict)
    SerializerBase.register_dict_to_class(f"masterslave.{_name}", _dict_to_error)


# --- TLS, as Pyro is configured -------------------------------------------------------------

_tls_lock = threading.Lock()  # Pyro shows its context to other threads before it is complete


def _tls_context(role: str) -> ssl.SSLContext:
    """Pyro's TLS context for a "SERVER" or "CLIENT"; `SettingsError` if it cannot be made."""
    certificate, key, password = (
        getattr(config, f"SSL_{role}{name}") for name in ("CERT", "KEY", "KEYPASSWD")
    )
    if role == "SERVER" and not certificate:
        raise SettingsError("PYRO_SSL is on, and a master then needs PYRO_SSL_SERVERCERT")
    if role == "SERVER" and config.SSL_REQUIRECLIENTCERT and not config.SSL_CACERTS:
        raise SettingsError("PYRO_SSL_REQUIRECLIENTCERT is on, and needs PYRO_SSL_CACERTS")
    with _tls_lock:
        check_certificates(role, certificate, key, password, config.SSL_CACERTS)
        files = {f"{role.lower()}cert": certificate, f"{role.lower()}key": key}
        context: ssl.SSLContext = Pyro5.socketutil.get_ssl_context(
            **files, keypassword=password, cacerts=config.SSL_CACERTS
        )
    return context


def _accept_at_once(daemon: Pyro5.server.Daemon) -> None:
    """Have the one thread that accepts connections leave TLS handshakes to `server_tls`."""
    if config.SSL:
        daemon.sock.do_handshake_on_connect = False  # inherited by what is accepted


def _connect(address: tuple[str, int], who: str, timeout_s: float) -> socket.socket:
    """A connected socket, within TLS if Pyro's configuration says so. `who`: should answer there.

    Raises `AuthenticationError` for a certificate that is not trusted, `ConnectionFailed` if TLS
    fails otherwise, `SettingsError` if it cannot be tried, `OSError` when nothing answers.
    """
    context = _tls_context("CLIENT") if config.SSL else None
    try:
        sock = socket.create_connection(address, timeout=_CONNECT_S)
    except UnicodeError as error:
        raise OSError(f"{address[0]!r} is not a host name") from error
    keep_alive(sock)
    if context is None:
        return sock
    sock.settimeout(timeout_s)
    where = join_address(*address)
    try:
        return context.wrap_socket(sock, server_hostname=address[0])
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationError(
            f"{who} at {where} was refused: its certificate is not accepted: "
            f"{error.verify_message.rstrip('.')}; PYRO_SSL_CACERTS must name the authority that "
            "signed it, and it must be valid for this address"
        ) from error
    except (OSError, ValueError) as error:
        raise ConnectionFailed(
            f"{who} at {where} does not answer in TLS: {tls_reason(error)}; "
            "set PYRO_SSL on both sides, or on neither"
        ) from error


# --- the server -----------------------------------------------------------------------------


class _Daemon(Pyro5.server.Daemon):  # type: ignore[misc]
    """Pyro's daemon behind signed connections; knows which process hangs on which connection."""

    def __init__(self, host: str, port: int, key: bytes, handshake_s: float) -> None:
        self._key = key
        self._handshake_s = handshake_s
        # process id -> the connection it registered through last, and the number of that time
        self._lifelines: dict[int, tuple[Any, int]] = {}
        self._binding = threading.Lock()
        self._connections: set[Any] = set()
        self._dropped = False
        self.on_loss: Callable[[int, int], None] = lambda process_id, generation: None
        self.on_sign_of_life: Callable[[int], None] = lambda process_id: None
        self._strangers = Strangers(_end)
        self._throttle = Throttle()
        super().__init__(host=host, port=port)
        _accept_at_once(self)

    def _handshake(self, conn: Any, denied_reason: str | None = None) -> bool:
        """Replaces Pyro's handshake, which decodes before it asks who is there."""
        peer = _peer(conn)
        if denied_reason:
            self._tell(peer, denied_reason)
            return False
        self._connections.add(conn)
        if self._dropped:  # it came in while the server was being stopped
            return False
        self._strangers.enter(conn)
        try:
            keep_alive(conn.sock)
            deadline = time.monotonic() + self._handshake_s
            server_tls(conn.sock, self._handshake_s)
            conn.sock = server_handshake(conn.sock, self._key, deadline - time.monotonic())
            conn.sock.on_piece = lambda: self._hear(conn)
        except (ConnectionFailed, OSError) as error:
            self._connections.discard(conn)
            self._tell(peer, error)
            return False
        finally:
            self._strangers.leave(conn)
        return True

    def handleRequest(self, conn: Any) -> None:
        """Answer one call; Pyro would log the traceback of each that is not one."""
        try:
            super().handleRequest(conn)
        except Pyro5.errors.ConnectionClosedError as error:
            reason = error.__context__
            if isinstance(reason, ChannelError) and not isinstance(reason, ChannelEnded):
                self._tell(_peer(conn), reason)
            raise
        except OSError:
            raise
        except Exception as error:
            self._tell(_peer(conn), f"{type(error).__name__} in its message")
            raise Pyro5.errors.ConnectionClosedError(str(error)) from error

    def _tell(self, peer: str, reason: object) -> None:
        before = self._throttle.admit()
        if before is not None:
            more = f" (and {before} others before)" if before else ""
            log.warning(
                "connection from %s refused: %s%s", peer, reason, more, extra={"action": "refused"}
            )

    def clientDisconnect(self, conn: Any) -> None:
        """A connection has closed: what registered through it is lost, as of now."""
        self._connections.discard(conn)
        with self._binding:  # the process may be registering through its next one at this moment
            hung = {i: g for i, (lifeline, g) in self._lifelines.items() if lifeline is conn}
            for process_id in hung:
                del self._lifelines[process_id]
        for process_id, generation in hung.items():
            self.on_loss(process_id, generation)

    def _hear(self, conn: Any) -> None:
        """A large message makes progress: the processes of its connection live."""
        for process_id, (lifeline, _) in list(self._lifelines.items()):
            if lifeline is conn:
                self.on_sign_of_life(process_id)

    def bind_process(self, process_id: int, generation: int) -> None:
        """The process that registers in the current call hangs on the current connection."""
        with self._binding:
            self._lifelines[process_id] = current_context.client, generation

    def free_process(self, process_id: int) -> None:
        """The process has left in good order; its connection may close."""
        with self._binding:
            self._lifelines.pop(process_id, None)

    def drop_connections(self) -> None:
        """Close all connections, so that the threads that serve them end."""
        self._dropped = True
        for conn in list(self._connections):
            end_connection(conn.sock)


def _end(conn: Any) -> None:
    end_connection(conn.sock)


def _peer(conn: Any) -> str:
    try:
        return join_address(*conn.sock.getpeername()[:2])
    except OSError:
        return "a peer that has gone"


def _exported(manager: TaskManager, daemon: _Daemon) -> Any:
    """An object whose methods are the remote methods of `manager`, as Pyro wants to see them."""

    def forward(name: str) -> Callable[..., Any]:
        method = getattr(manager, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            sealed = current_context.client.sock
            if parts := sealed.take_pieces():
                left, places = args
                args, kwargs = pieces.restore(left, places, parts)
            check_call(name, args, kwargs)
            result = method(*args, **kwargs)
            if name == "registerProcess":
                daemon.bind_process(result[0], result[2])
            elif name == "unregisterProcess":
                daemon.free_process(args[0] if args else kwargs["process_id"])
            return _lifted(sealed, result)

        call.__name__ = name
        return call

    methods = {name: forward(name) for name in REMOTE_METHODS}
    return Pyro5.server.expose(type("TaskManager", (), methods))()


def _lifted(sealed: SealedSocket, value: Any) -> Any:
    """What is left of a value for Pyro's message, beside which its large buffers will travel."""
    left, places, parts = pieces.lift([value])
    sealed.attach(parts)
    return (left, places) if parts else value


def object_name(label: str) -> str:
    """The name of a task manager in the name server."""
    return f"TaskManager.{label}"


def _object_id(label: str) -> str:
    return f"TaskManager.{quote(label, safe='')}"


class PyroServer:
    """Serves a task manager on a port until stopped."""

    def __init__(
        self, manager: TaskManager, host: str, port: int, key: bytes, handshake_s: float
    ) -> None:
        """Listen on `host`:`port` (0: any free port).

        Raises `ConnectionFailed` if that fails, `SettingsError` if TLS is asked for and its files
        cannot be used, or if Pyro is told to serve all connections with one thread.
        """
        if config.SERVERTYPE != "thread":  # calls wait in here, each in the thread of its peer
            raise SettingsError(f"PYRO_SERVERTYPE={config.SERVERTYPE!r}: must be 'thread'")
        if config.SSL:
            _tls_context("SERVER")
        try:
            self._daemon = _Daemon(host, port, key, handshake_s)
        except OSError as error:
            raise ConnectionFailed(
                f"cannot listen on {join_address(host, port)}: {error.strerror or error}; "
                "another master may be using the port (MASTERSLAVE_PORT chooses another)"
            ) from error
        self._daemon.on_loss = lambda process_id, generation: manager.lostProcess(
            process_id, "its connection closed", generation
        )
        self._daemon.on_sign_of_life = lambda process_id: _ping(manager, process_id)
        self._daemon.register(_exported(manager, self._daemon), _object_id(manager.label))
        self.port: int = self._daemon.sock.getsockname()[1]
        self.addresses = [join_address(name, self.port) for name in _announced(host)]
        self.uri = f"PYRO:{_object_id(manager.label)}@{self.addresses[0]}"
        self._thread = threading.Thread(
            target=self._daemon.requestLoop, name="pyro-server", daemon=True
        )

    def start(self) -> None:
        """Begin to serve, in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections; returns when the threads have ended."""
        self._daemon.on_loss = lambda process_id, generation: None
        self._daemon.drop_connections()
        self._daemon.shutdown()
        self._thread.join()


def _ping(manager: TaskManager, process_id: int) -> None:
    with contextlib.suppress(UnknownProcess):  # taken for dead already: it will find out
        manager.ping(process_id)


def _announced(host: str) -> list[str]:
    """The addresses under which a server bound to `host` can be reached, most useful first."""
    if host not in ("0.0.0.0", "::", ""):
        return [host]
    import psutil  # takes time to import, and only masters that listen everywhere need it

    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    outside = [address for address in found if not address.startswith("127.")]
    return [*outside, "127.0.0.1"]


# --- the client -----------------------------------------------------------------------------


class PyroLink:
    """A `Link` over the network."""

    def __init__(self, address: tuple[str, int], label: str, key: bytes, timeout_s: float) -> None:
        """Connect and prove the key both ways.

        Raises `ConnectionFailed` when nothing answers at the address within the time-out,
        `AuthenticationError` when what answers does not hold the key, or in TLS no certificate
        that is trusted, `SettingsError` when TLS is asked for and its files cannot be used.
        """
        where = join_address(*address)
        try:
            sock = _connect(address, "the task manager", timeout_s)
        except OSError as error:
            raise ConnectionFailed(
                f"cannot reach a task manager at {where}: {error.strerror or error}; "
                "check the host and port, and that its master runs"
            ) from error
        try:
            sealed = client_handshake(sock, key, timeout_s)
        except AuthenticationError as error:
            sock.close()
            raise AuthenticationError(
                f"the task manager at {where} was refused: {error}; "
                "use the same key file on both machines (MASTERSLAVE_KEY_FILE)"
            ) from error
        except (ForeignProtocol, OSError) as error:
            sock.close()
            kind = ForeignProtocol if isinstance(error, ForeignProtocol) else ConnectionFailed
            raise kind(f"no task manager answers at {where}: {_what_to_check(error)}") from error
        self._where = where
        self._label = label
        self._sock = sock
        self._sealed = sealed
        self._proxy = _proxy(_object_id(label), sealed)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Link.call`."""
        self._proxy._pyroClaimOwnership()
        left, places, parts = pieces.lift([args, kwargs])
        self._sealed.attach(parts)
        if parts:
            args, kwargs = (left, places), {}
        try:
            result = self._proxy._pyroInvoke(method, args, kwargs)
        except Pyro5.errors.CommunicationError as error:
            self.close()
            raise ConnectionFailed(f"the connection to {self._where} broke: {error}") from error
        except Pyro5.errors.DaemonError as error:
            raise LabelUnknown(
                f"the task manager at {self._where} has another label than {self._label!r}; "
                "check the label and the port"
            ) from error
        if parts := self._sealed.take_pieces():
            left, places = result
            (result,) = pieces.restore(left, places, parts)
        return result

    def close(self) -> None:
        """See `Link.close`."""
        end_connection(self._sock)
        self._sock.close()


def _what_to_check(error: Exception) -> str:
    """What went wrong with a connection before it was in use, and what to do about it."""
    if isinstance(error, ssl.SSLError):  # the server looks at the client's certificate last of all
        return f"it ended TLS: {tls_reason(error)}; check PYRO_SSL_CLIENTCERT if it wants one"
    if isinstance(error, TimeoutError):
        return f"{error}; check the port"
    return f"{error}; check the port, and that PYRO_SSL is on for both sides or for neither"


def _proxy(object_id: str, sealed: Any) -> Any:
    """A proxy over a connection that is authenticated already; calls go out in msgpack.

    Pyro's way to put a proxy on an open socket asks the other side for its methods at once; they
    are known here.
    """
    proxy = Pyro5.client.Proxy(f"PYRO:{object_id}@sealed:1")
    proxy._pyroSerializer = "msgpack"
    proxy._pyroMethods = set(REMOTE_METHODS)
    proxy._pyroConnection = Pyro5.socketutil.SocketConnection(sealed, object_id)
    return proxy


# --- the name server ------------------------------------------------------------------------


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
        self._strangers = Strangers(_end)
        super().__init__(host=host, port=port)

    def _handshake(self, conn: Any, denied_reason: str | None = None) -> bool:
        if denied_reason:
            return False
        try:
            server_tls(conn.sock, _NAME_SERVER_S)
        except OSError as error:
            log.info("name server: connection from %s refused: %s", _peer(conn), error)
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

    def __init__(self, host: str, port: int) -> None:
        """Raises `OSError` when the port is taken, by another name server most likely."""
        self._daemon = _NameServerDaemon(host=host, port=port)
        _accept_at_once(self._daemon)
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
    """A connection to the name server there; `OSError` when none answers, else as `_connect`.

    Pyro's own way to connect would decode the first answer with whatever serializer that names.
    """
    sock = _connect(address, "the name server", _NAME_SERVER_S)
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
        raise ConnectionError(f"it is not a name server: {_what_to_check(cause)}") from error
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
