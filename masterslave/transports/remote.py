"""Which methods of a task manager may be called from other processes."""

REMOTE_METHODS = frozenset(
    (
        "activeProcessInfo",
        "activeProcesses",
        "addTaskRequest",
        "addTaskRequests",
        "announceSlave",
        "announceTags",
        "cancelTask",
        "deleteData",
        "exchange",
        "getAnyResult",
        "getAnyTask",
        "getResultWithTag",
        "getResults",
        "getTaskWithTag",
        "numberOfActiveProcesses",
        "numberOfTasks",
        "outstandingTasks",
        "ping",
        "registerProcess",
        "reportFailure",
        "retrieveData",
        "returnTask",
        "status",
        "storeData",
        "storeException",
        "storeResult",
        "terminate",
        "unregisterProcess",
    )
)
