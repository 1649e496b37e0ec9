"""``task_manager serve``: a task manager on its own, for clients that come and go."""

from __future__ import annotations

import argparse
import signal
import threading
from dataclasses import replace
from types import FrameType

from masterslave import slavecode
from masterslave.errors import SettingsError
from masterslave.service import Service
from masterslave.settings import Settings, check_label

#: Between two looks for a signal. Larger: the end begins later. Smaller: the process wakes up in
#: vain.
_LOOK_S = 1.0


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then have the slaves leave. A second signal ends it at once.

    With a journal, one that was killed is started again and knows what had finished.
    """
    check_label(options.label)
    if options.master is not None:
        raise SettingsError(
            "serve: -m names a master elsewhere; MASTERSLAVE_HOST is where to listen"
        )
    if options.port is not None:
        settings = replace(settings, port=options.port)
    told = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        told.set()

    before = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    # Slaves that come before any client has code for them call clients' functions.
    data = {slavecode.DEFAULT_NAME: slavecode.functions_record()}
    for number in before:  # before anybody can reach it, as whoever does must be told of the end
        signal.signal(number, on_signal)
    try:
        service = Service(
            options.label, settings, journal=options.journal, keep=options.keep, data=data
        )
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
    try:
        if options.verbose:
            print(f"task manager {options.label} at {service.address}", flush=True)
        while not told.wait(_LOOK_S):  # where another thread got the signal, this one slept on
            pass
        service.end_job(settings.shutdown_s)
    finally:
        service.stop()
    return 0
