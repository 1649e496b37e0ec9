"""Answers the exchanges of slaves, on connections that Pyro's daemon has accepted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from masterslave.errors import LabelUnknown
from masterslave.records import frame_bytes
from masterslave.transports.channel import SealedSocket, end_connection
from masterslave.transports.exchanges import pack, pack_error, unpack_question
from masterslave.transports.remote import check_call
from masterslave.waiters import Parked

if TYPE_CHECKING:
    from masterslave.manager import TaskManager  # slaves and clients do without

log = logging.getLogger(__name__)

#: Tasks up to this size are sent to a parked slave by the thread that has them for it: they fit
#: into the buffers of a connection on which nothing is on its way. Larger: it might have to wait.
#: Smaller: a thread is started for each message.
_AT_ONCE_BYTES = 8192


class Exchanges:
    """Answers the exchanges of slaves, each in the thread of its connection.

    A call that waits is parked: its thread only looks whether the connection breaks or the time is
    over, and who has a task for the slave sends it.
    """

    def __init__(self, manager: TaskManager) -> None:
        self._manager = manager

    def serve(self, sealed: SealedSocket) -> bool:
        """Answer the next message if it is an exchange; blocks. False: it is Pyro's, or the end.

        Raises `OSError`, and anything else for what is no exchange.
        """
        message = sealed.next_exchange()
        if message is None:
            return False
        args, label = unpack_question(message, sealed.take_pieces())
        try:
            if label != self._manager.label:
                raise LabelUnknown(label)
            check_call("exchange", args, {})
            if sealed.can_wait:
                answer = self._manager.exchangeOrPark(_sender(sealed), *args)
            else:
                answer = self._manager.exchange(*args)
        except Exception as error:
            sealed.attach(())
            sealed.sendall(pack_error(error))
            return True
        if isinstance(answer, Parked):
            del message
            timeout_s = args[4]
            del args
            if not sealed.wait(timeout_s):
                self._manager.endParked(answer)
        else:
            _send(sealed, answer)
        return True


def _send(sealed: SealedSocket, answer: list[Any]) -> None:
    message, parts = pack(answer)
    sealed.attach(parts)
    sealed.sendall(message)


def _sender(sealed: SealedSocket) -> Callable[[list[Any]], None]:
    """What sends an answer to a parked call, from any thread, without waiting for the slave."""

    def answer(reply: list[Any]) -> None:
        if sum(frame_bytes(task.frame) for task in reply[0]) > _AT_ONCE_BYTES:
            sender = threading.Thread(
                target=_send_large, args=(sealed, reply), name="pyro-answer", daemon=True
            )
            try:
                sender.start()
            except RuntimeError:  # Python 3.12 and later: the interpreter ends
                _send_large(sealed, reply)
            return
        try:
            sealed.send_now(pack(reply)[0])
        except OSError as error:  # its thread sees that, too, and what it held is run elsewhere
            log.debug("an answer could not be sent: %s", error)
            end_connection(sealed)

    return answer


def _send_large(sealed: SealedSocket, answer: list[Any]) -> None:
    try:
        _send(sealed, answer)
    except OSError as error:
        log.debug("an answer could not be sent: %s", error)
        end_connection(sealed)
