"""TLS below the signed channel, where Pyro is configured for it."""

from __future__ import annotations

import functools
import os
import socket
import ssl

from masterslave.errors import SettingsError
from masterslave.transports.channel import ChannelError


@functools.cache  # of what was found good
def check_certificates(
    role: str, certificate: str, key: str, password: str, authorities: str
) -> None:
    """Raise `SettingsError` unless these files can be used by a "SERVER" or "CLIENT".

    To be asked before Pyro loads them: that would ask for a missing password at the terminal, and
    keep a context that failed half way, to use it at the next attempt.
    """
    names = {f"{role}CERT": certificate, f"{role}KEY": key, "CACERTS": authorities}
    for name, path in names.items():
        if path and not os.path.exists(path):
            raise SettingsError(f"PYRO_SSL_{name}={path!r}: there is no such file")
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if role == "SERVER" else ssl.PROTOCOL_TLS_CLIENT
    )
    culprit = f"PYRO_SSL_{role}CERT={certificate!r} with PYRO_SSL_{role}KEY={key!r}"
    hint = ", or the key has another password" if password else ", or the key needs a password"
    try:
        if certificate:
            context.load_cert_chain(certificate, key or None, lambda: password)
        culprit, hint = f"PYRO_SSL_CACERTS={authorities!r}", ""
        if os.path.isdir(authorities):
            context.load_verify_locations(capath=authorities)
        elif authorities:
            context.load_verify_locations(cafile=authorities)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{culprit} cannot be used: {tls_reason(error)}{hint}") from error


def tls_reason(error: Exception) -> str:
    """What went wrong, in OpenSSL's words without its decoration."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, str):
        return reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)


def server_tls(sock: socket.socket, timeout_s: float) -> None:
    """The TLS handshake that was left out when `sock` was accepted; nothing without TLS.

    Blocks for `timeout_s` seconds at most. Raises `OSError`.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(timeout_s)
        try:
            sock.do_handshake()
        except ssl.SSLError as error:
            raise ChannelError(f"no TLS: {tls_reason(error)}") from error
