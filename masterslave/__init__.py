"""Master-slave computing: turn a program into a master and any number of slaves.

A subclass of `MasterProcess`, one of `SlaveProcess`, and a call of `runJob` are a whole program;
see the README. Names are loaded when first used, so that worker processes start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masterslave.allocation import Allocation, allocate, masterHost
    from masterslave.callcore import BrokenCluster
    from masterslave.client import ClientThread
    from masterslave.errors import (
        AuthenticationError,
        ConnectionFailed,
        DataNotFound,
        FolderInUse,
        ForeignProtocol,
        FunctionError,
        IllegalTransition,
        InitializerFailed,
        JournalDamaged,
        JournalError,
        JournalFull,
        JournalInUse,
        LabelInUse,
        LabelUnknown,
        LauncherError,
        MasterSlaveError,
        PayloadError,
        QueueFull,
        RemoteException,
        ResultTimeout,
        SettingsError,
        SlaveError,
        StartError,
        TaskFailure,
        TaskLost,
        TaskManagerTermination,
        TaskOutOfMemory,
        TaskRaisedException,
        TaskTimedOut,
        UnknownProcess,
        UnknownTask,
        WorkerCrashed,
    )
    from masterslave.executor import ClusterExecutor
    from masterslave.hooks import Observer
    from masterslave.jobs import initializeMasterProcess, runJob
    from masterslave.manager import TaskManager
    from masterslave.master import MasterProcess
    from masterslave.records import GlobalStateValue, getMachineInfo
    from masterslave.settings import Settings
    from masterslave.slave import SlaveProcess, startSlaveProcess
    from masterslave.starting import start
    from masterslave.stopping import stop

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(
        (
            "AuthenticationError",
            "ConnectionFailed",
            "DataNotFound",
            "FolderInUse",
            "ForeignProtocol",
            "FunctionError",
            "IllegalTransition",
            "InitializerFailed",
            "JournalDamaged",
            "JournalError",
            "JournalFull",
            "JournalInUse",
            "LabelInUse",
            "LabelUnknown",
            "LauncherError",
            "MasterSlaveError",
            "PayloadError",
            "QueueFull",
            "RemoteException",
            "ResultTimeout",
            "SettingsError",
            "SlaveError",
            "StartError",
            "TaskFailure",
            "TaskLost",
            "TaskManagerTermination",
            "TaskOutOfMemory",
            "TaskRaisedException",
            "TaskTimedOut",
            "UnknownProcess",
            "UnknownTask",
            "WorkerCrashed",
        ),
        "errors",
    ),
    "BrokenCluster": "callcore",
    "ClientThread": "client",
    "ClusterExecutor": "executor",
    "Allocation": "allocation",
    "GlobalStateValue": "records",
    "MasterProcess": "master",
    "Observer": "hooks",
    "Settings": "settings",
    "SlaveProcess": "slave",
    "TaskManager": "manager",
    "allocate": "allocation",
    "getMachineInfo": "records",
    "initializeMasterProcess": "jobs",
    "masterHost": "allocation",
    "runJob": "jobs",
    "start": "starting",
    "startSlaveProcess": "slave",
    "stop": "stopping",
}

__all__ = [
    "Allocation",
    "AuthenticationError",
    "BrokenCluster",
    "ClientThread",
    "ClusterExecutor",
    "ConnectionFailed",
    "DataNotFound",
    "FolderInUse",
    "ForeignProtocol",
    "FunctionError",
    "GlobalStateValue",
    "IllegalTransition",
    "InitializerFailed",
    "JournalDamaged",
    "JournalError",
    "JournalFull",
    "JournalInUse",
    "LabelInUse",
    "LabelUnknown",
    "LauncherError",
    "MasterProcess",
    "MasterSlaveError",
    "Observer",
    "PayloadError",
    "QueueFull",
    "RemoteException",
    "ResultTimeout",
    "Settings",
    "SettingsError",
    "SlaveError",
    "SlaveProcess",
    "StartError",
    "TaskFailure",
    "TaskLost",
    "TaskManager",
    "TaskManagerTermination",
    "TaskOutOfMemory",
    "TaskRaisedException",
    "TaskTimedOut",
    "UnknownProcess",
    "UnknownTask",
    "WorkerCrashed",
    "allocate",
    "getMachineInfo",
    "initializeMasterProcess",
    "masterHost",
    "runJob",
    "start",
    "startSlaveProcess",
    "stop",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
