"""The slave's code: kept in the task manager by the master, loaded by each worker.

| kind        | is                                                 | made by                     |
|-------------|----------------------------------------------------|-----------------------------|
| `script`    | the text of a script, run as ``__main__``          | `runJob`, `slave_script=`   |
| `module`    | a module's name; its ``do_`` functions are handlers| `slave_module=`             |
| `object`    | a pickled slave class or handlers                  | where no script can be run  |
| `functions` | nothing: clients send functions                    | `ClusterExecutor`           |

Besides, a record holds the master's working directory and import path, which workers take over as
far as they exist there.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from masterslave import payload
from masterslave.errors import SlaveError
from masterslave.records import SLAVE_CODE

#: Name of the data item in the task manager.
DATA_NAME = SLAVE_CODE

#: What slaves load where there is none of that name; a served task manager has it.
DEFAULT_NAME = "slave_code_default"

#: Name of the data item that tells slaves of the folder to use when the network fails them.
FAILOVER_NAME = "failover_folder"

Record = dict[str, Any]


def _surroundings() -> Record:
    return {
        "cwd": os.getcwd(),
        "sys_path": [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)],
        "argv": list(sys.argv),
    }


def running_script() -> Record | None:
    """The record of the script that is this process's ``__main__``.

    None when there is none: an interactive session, a notebook, or a program like a test runner
    that belongs to the Python installation and not to the user.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if not path or not os.path.isfile(path) or _belongs_to_python(path):
        return None
    if "IPython" in sys.modules and hasattr(main, "get_ipython"):
        return None
    spec = getattr(main, "__spec__", None)
    try:
        return script_record(path, package=spec.parent if spec is not None else None)
    except SlaveError:  # compiled, or not Python: there is no text to run again
        return None


def script_record(path: str | os.PathLike[str], package: str | None = None) -> Record:
    """The record of the script at `path`. Raises `SlaveError` when it cannot be read.

    The maker adds ``shared_main=True`` when the master runs the same script.
    """
    full = os.path.abspath(path)
    try:
        source = importlib.util.decode_source(Path(full).read_bytes())
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise SlaveError(f"cannot read the slave's script {full}: {error}") from error
    return {
        "kind": "script",
        "source": source,
        "path": full,
        "package": package,
        "main_id": payload.script_id(source),
        **_surroundings(),
    }


def module_record(name: str) -> Record:
    """The record of a module that defines ``do_`` functions."""
    return {"kind": "module", "module": name, **_surroundings()}


def object_record(value: Any) -> Record:
    """The record of a slave class, or of anything else that `load` hands to its `start`."""
    return {"kind": "object", "frame": payload.Codec().encode(value), **_surroundings()}


def guest_record(slave_class: type, watchdog_period: float | None) -> Record:
    """The record of a slave class for workers that never run the master's script.

    Beside the class stand the classes and functions of the script that it refers to, so that they
    are the same on both sides. Raises `PayloadError`.
    """
    main = running_script()
    value = (slave_class, watchdog_period, payload.named_in_main(slave_class))
    record = object_record(value)
    return record if main is None else {**record, "main_id": main["main_id"]}


def run_script(record: Record, namespace: dict[str, Any]) -> None:
    """Run a script in a namespace of its own; the process's ``__main__`` stays what it is."""
    path, source = record["path"], record["source"]
    directory = os.path.dirname(path)
    if os.path.isdir(directory) and directory not in sys.path:
        sys.path.append(directory)
    namespace.update(
        __name__="__main__",
        __file__=path,
        __package__=record.get("package"),
        __builtins__=__builtins__,
    )
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    exec(compile(source, path, "exec", dont_inherit=True), namespace)


def functions_record() -> Record:
    """The record of workers that call clients' functions, and nothing else."""
    return {"kind": "functions"}


def _belongs_to_python(path: str) -> bool:
    full = os.path.realpath(path)
    homes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    parts = Path(full).parts
    inside = any(full.startswith(os.path.realpath(home) + os.sep) for home in homes)
    return (
        "site-packages" in parts
        or (inside and parts[-2] in ("bin", "Scripts"))
        or (full.startswith(os.path.dirname(os.path.realpath(os.__file__)) + os.sep))
    )


def load(record: Record, start: Callable[[Any], None]) -> None:
    """Load the code in this process, which is a worker from now on.

    A script starts its slave itself when it is run; what is not a script is given to `start`: the
    namespace of the module, the object, or None where there are functions only.
    """
    if record["kind"] != "functions":  # each function brings its surroundings along
        take_over(record)
    if record["kind"] == "script":
        _run_as_main(record)
    elif record["kind"] == "module":
        start(vars(importlib.import_module(record["module"])))
    elif record["kind"] == "functions":
        start(None)
    else:
        start(payload.Codec().decode(record["frame"]))


def take_over(record: Record) -> None:
    """Take over the master's working directory, import path and arguments."""
    try:
        os.chdir(record["cwd"])
    except OSError as error:
        print(
            f"masterslave: the master's working directory {record['cwd']} is not here: "
            f"{error.strerror}",
            file=sys.stderr,
        )
    sys.argv[:] = record["argv"]
    known = set(sys.path)
    sys.path += [
        entry for entry in record["sys_path"] if entry not in known and os.path.exists(entry)
    ]


def _run_as_main(record: Record) -> None:
    path, source = record["path"], record["source"]
    directory = os.path.dirname(path)
    if os.path.isdir(directory) and record.get("package") is None:
        sys.path.insert(0, directory)
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__package__ = record.get("package")
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    payload.set_main_id(record["main_id"])
    # So that tracebacks show the lines even where the file is not.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
