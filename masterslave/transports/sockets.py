"""Sockets between processes, within TLS if Pyro's configuration says so.

Pyro's configuration is global to the process. Here only the size of its thread pool is set, which
would otherwise refuse the 81st connection, and compression switched off; everything else, TLS
included, is the user's. TLS is for every connection of the process or for none: to task managers
and to the name server.
"""

from __future__ import annotations

import socket
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
    SettingsError,
)
from masterslave.settings import join_address
from masterslave.transports.channel import (
    end_connection,
    keep_alive,
)
from masterslave.transports.tls import check_certificates, tls_reason

#: Connections that a task manager serves at a time; two per slave. Larger costs nothing until they
#: come. Smaller refuses slaves.
config.THREADPOOL_SIZE = max(config.THREADPOOL_SIZE, 4096)

#: Compressed messages are refused (see `channel.check_message`), so none may be sent.
config.COMPRESSION = False


_CONNECT_S = 5.0  # longest time to connect to an address

_tls_lock = threading.Lock()  # Pyro shows its context to other threads before it is complete


def tls_context(role: str) -> ssl.SSLContext:
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


def accept_at_once(daemon: Pyro5.server.Daemon) -> None:
    """Have the one thread that accepts connections leave TLS handshakes to `server_tls`."""
    if config.SSL:
        daemon.sock.do_handshake_on_connect = False  # inherited by what is accepted


def connect(address: tuple[str, int], who: str, timeout_s: float) -> socket.socket:
    """A connected socket, within TLS if Pyro's configuration says so. `who`: should answer there.

    Raises `AuthenticationError` for a certificate that is not trusted, `ConnectionFailed` if TLS
    fails otherwise, `SettingsError` if it cannot be tried, `OSError` when nothing answers.
    """
    context = tls_context("CLIENT") if config.SSL else None
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


def what_to_check(error: Exception) -> str:
    """What went wrong with a connection before it was in use, and what to do about it."""
    if isinstance(error, ssl.SSLError):  # the server looks at the client's certificate last of all
        return f"it ended TLS: {tls_reason(error)}; check PYRO_SSL_CLIENTCERT if it wants one"
    if isinstance(error, TimeoutError):
        return f"{error}; check the port"
    return f"{error}; check the port, and that PYRO_SSL is on for both sides or for neither"


def end(conn: Any) -> None:
    """End one of Pyro's connections, whoever waits for it."""
    end_connection(conn.sock)


def peer_of(conn: Any) -> str:
    """Where one of Pyro's connections comes from, for people."""
    try:
        return join_address(*conn.sock.getpeername()[:2])
    except OSError:
        return "a peer that has gone"
