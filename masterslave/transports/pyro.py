"""The transport between processes: Pyro5 over signed connections.

What is Pyro's: sockets, threads per connection, dispatch of calls, msgpack. What is added:
`channel` below it, so that nothing unproved is decoded; a process whose connection closes is lost
at once; errors arrive as themselves; and `exchanges`, the calls that make up a job, go round what
Pyro does for a call. Pyro5 is imported here, in `sockets` and in `nameserver` only.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
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
    LabelUnknown,
    MasterSlaveError,
    SettingsError,
    UnknownProcess,
    remote_error,
)
from masterslave.records import Piece
from masterslave.settings import join_address
from masterslave.transports.answers import Exchanges
from masterslave.transports.channel import (
    ChannelEnded,
    ChannelError,
    SealedSocket,
    client_handshake,
    end_connection,
    keep_alive,
    server_handshake,
)
from masterslave.transports.exchanges import pack, unpack_answer
from masterslave.transports.remote import REMOTE_METHODS, check_call
from masterslave.transports.sockets import (
    accept_at_once,
    connect,
    end,
    peer_of,
    tls_context,
    what_to_check,
)
from masterslave.transports.strangers import Strangers, Throttle
from masterslave.transports.tls import server_tls

if TYPE_CHECKING:
    from masterslave.manager import TaskManager  # slaves and clients do without

log = logging.getLogger(__name__)

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
        self.share = True
        self.exchanges: Exchanges | None = None
        self.on_loss: Callable[[int, int], None] = lambda process_id, generation: None
        self.on_sign_of_life: Callable[[int], None] = lambda process_id: None
        self._strangers = Strangers(end)
        self._throttle = Throttle()
        super().__init__(host=host, port=port)
        accept_at_once(self)

    def _handshake(self, conn: Any, denied_reason: str | None = None) -> bool:
        """Replaces Pyro's handshake, which decodes before it asks who is there."""
        peer = peer_of(conn)
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
            if self.share:
                conn.sock.share_memory(first=False)
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
            if self.exchanges is None or not self.exchanges.serve(conn.sock):
                super().handleRequest(conn)
        except ChannelError as error:
            if not isinstance(error, ChannelEnded):
                self._tell(peer_of(conn), error)
            raise
        except Pyro5.errors.ConnectionClosedError as error:
            reason = error.__context__
            if isinstance(reason, ChannelError) and not isinstance(reason, ChannelEnded):
                self._tell(peer_of(conn), reason)
            raise
        except OSError:
            raise
        except Exception as error:
            self._tell(peer_of(conn), f"{type(error).__name__} in its message")
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
        with self._binding:
            alive = [i for i, (lifeline, _) in self._lifelines.items() if lifeline is conn]
        for process_id in alive:
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
            elif name == "attachClient":
                daemon.bind_process(result[0], result[1])
            elif name in ("unregisterProcess", "detachClient"):
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


def _object_id(label: str) -> str:
    return f"TaskManager.{quote(label, safe='')}"


class PyroServer:
    """Serves a task manager on a port until stopped."""

    def __init__(
        self,
        manager: TaskManager,
        host: str,
        port: int,
        key: bytes,
        handshake_s: float,
        *,
        share: bool = True,
    ) -> None:
        """Listen on `host`:`port` (0: any free port).

        `share`: share memory with clients of this host, for large buffers.

        Raises `ConnectionFailed` if that fails, `SettingsError` if TLS is asked for and its files
        cannot be used, or if Pyro is told to serve all connections with one thread.
        """
        if config.SERVERTYPE != "thread":  # calls wait in here, each in the thread of its peer
            raise SettingsError(f"PYRO_SERVERTYPE={config.SERVERTYPE!r}: must be 'thread'")
        if config.SSL:
            tls_context("SERVER")
        try:
            self._daemon = _Daemon(host, port, key, handshake_s)
        except OSError as error:
            raise ConnectionFailed(
                f"cannot listen on {join_address(host, port)}: {error.strerror or error}; "
                "another master may be using the port (MASTERSLAVE_PORT chooses another)"
            ) from error
        self._daemon.share = share
        self._daemon.exchanges = Exchanges(manager)
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
            sock = connect(address, "the task manager", timeout_s)
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
            raise kind(f"no task manager answers at {where}: {what_to_check(error)}") from error
        self.address = where  # ``host:port`` of the task manager
        self._label = label
        self._sock = sock
        self._sealed = sealed
        self._proxy = _proxy(_object_id(label), sealed)

    def share_memory(self) -> None:
        """Before the first call: have large buffers lent if the task manager is on this host."""
        self._sealed.share_memory(first=True)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Link.call`."""
        if method == "exchange" and not kwargs:
            self.begin_exchange(*args)
            return self.end_exchange()
        self._proxy._pyroClaimOwnership()
        left, places, parts = pieces.lift([args, kwargs])
        self._sealed.attach(parts)
        if parts:
            args, kwargs = (left, places), {}
        try:
            result = self._proxy._pyroInvoke(method, args, kwargs)
        except Pyro5.errors.CommunicationError as error:
            self.close()
            raise ConnectionFailed(f"the connection to {self.address} broke: {error}") from error
        except Pyro5.errors.DaemonError as error:
            raise self._another_label() from error
        if parts := self._sealed.take_pieces():
            left, places = result
            (result,) = pieces.restore(left, places, parts)
        return result

    def _another_label(self) -> LabelUnknown:
        return LabelUnknown(
            f"the task manager at {self.address} has another label than {self._label!r}; "
            "check the label and the port"
        )

    def begin_exchange(self, *args: Any) -> None:
        """Send a call of `exchange`; its answer is to be taken by `end_exchange`.

        Raises `ConnectionFailed`.
        """
        message, parts = pack(list(args), self._label)
        self._sealed.attach(parts)
        try:
            self._sealed.sendall(message)
        except OSError as error:
            raise self._broke(error) from error

    def answer_at_hand(self) -> Any:
        """The answer to `begin_exchange` if it has come, else None; does not wait.

        None as well when large pieces come first: then it is to be waited for. Raises as `call`.
        """
        try:
            message = self._sealed.exchange_at_hand()
        except OSError as error:
            raise self._broke(error) from error
        return None if message is None else self._answer(message)

    def end_exchange(self) -> Any:
        """The answer to `begin_exchange`; waits for it. Raises as `call` does."""
        try:
            message = self._sealed.next_exchange()
            if message is None:
                raise ChannelEnded("the task manager has ended it")
        except OSError as error:
            raise self._broke(error) from error
        return self._answer(message)

    def _answer(self, message: Piece) -> Any:
        try:
            return unpack_answer(message, self._sealed.take_pieces())
        except LabelUnknown as error:
            raise self._another_label() from error

    def _broke(self, error: OSError) -> ConnectionFailed:
        self.close()
        return ConnectionFailed(f"the connection to {self.address} broke: {error}")

    def fileno(self) -> int | None:
        """For a selector, which tells when there is an answer; None where none can (in TLS)."""
        return self._sock.fileno() if self._sealed.can_wait else None

    def close(self) -> None:
        """See `Link.close`."""
        end_connection(self._sock)
        self._sock.close()


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
