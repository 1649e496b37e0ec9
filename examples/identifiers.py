"""Which names do Python programmers use? Counts them in the standard library, a file per task.

Shows global state: the set of names to skip is the same for all tasks, so it is not a parameter
that is sent with each of them, but a value that every slave fetches once. Needs rich:

    python examples/identifiers.py              # all of the standard library
    python examples/identifiers.py --files 100  # some of it
"""

import argparse
import builtins
import keyword
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from masterslave import (
    GlobalStateValue,
    MasterProcess,
    SlaveProcess,
    TaskRaisedException,
    runJob,
)

LIBRARY = Path(sysconfig.get_path("stdlib"))
OTHER = {"site-packages", "test"}  # other people's code, and code with habits of its own


def arguments():
    parser = argparse.ArgumentParser(description="Count names in Python's standard library.")
    parser.add_argument("--files", type=int, help="at most so many files")
    parser.add_argument("--top", type=int, default=15, help="length of the table")
    return parser.parse_args()


class Master(MasterProcess):
    def run(self):
        args = arguments()
        files = sorted(LIBRARY.glob("*.py")) + sorted(LIBRARY.glob("[a-z]*/*.py"))
        files = [path for path in files if not OTHER.intersection(path.parts)][: args.files]

        skip = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins)}
        state = self.setGlobalState(skip=skip)
        skipped = GlobalStateValue(state, "skip")  # stands for the set among the parameters
        self.requestTasks("count", [(path, skipped) for path in files])

        uses, spread = Counter(), Counter()
        read = 0
        for _ in files:
            try:
                _, _, counts = self.retrieveResult("count")
            except TaskRaisedException as error:  # a file that is not Python, on purpose
                print(f"skipped: {error.exception}")
                continue
            uses.update(counts)
            spread.update(counts.keys())  # one per file
            read += 1
        self.deleteGlobalState(state)  # no task needs it any more

        table = Table("name", title=f"{len(uses)} names in {read} files")
        table.add_column("uses", justify="right")
        table.add_column("files", justify="right")
        for name, count in uses.most_common(args.top):
            table.add_row(name, str(count), str(spread[name]))
        Console().print(table)


class Reader(SlaveProcess):
    def do_count(self, path, skip):
        """How often each name that is not in `skip` stands in the file."""
        with tokenize.open(path) as file:
            tokens = tokenize.generate_tokens(file.readline)
            return Counter(
                token.string
                for token in tokens
                if token.type == tokenize.NAME and token.string not in skip
            )


if __name__ == "__main__":
    runJob("identifiers", Master, Reader, launch_slaves=2)
