"""A task manager that stays up, and two programs that use it at the same time, as its clients.

A long-lived task manager and its slaves are started once, in two terminals or by a batch system:

    task_manager serve words
    task_manager slave words -n 2

Any number of programs then join it, at once or one after the other, by attach=True. All else is as
with a task manager of their own, but they take turns: whoever comes with few tasks does not wait
behind the thousands of another one. To be seen in one go, this program starts all of it by itself:

    python examples/two_clients.py
"""

import subprocess
import sys
import threading
from pathlib import Path

from masterslave import initializeMasterProcess

TASK_MANAGER = [sys.executable, "-m", "masterslave"]
SCRIPT = Path(__file__).with_name("slave.py")


def client(name, number):
    """Have a number of texts counted."""
    master = initializeMasterProcess("words", slave_script=SCRIPT, attach=True)
    both_are_there.wait()
    master.requestTasks("count", [("a rose is a rose",)] * number)
    words = sum(count for _, _, (count, _) in master.results())
    print(f"{name}: {words} words in {number} texts")
    master.shutdown()  # lets go of this client's tasks only: the task manager and slaves stay


served = subprocess.Popen([*TASK_MANAGER, "serve", "words"])
slave = subprocess.Popen([*TASK_MANAGER, "slave", "-w", "words", "-n", "2"])
subprocess.run([*TASK_MANAGER, "show", "-w", "words"], check=True, stdout=subprocess.DEVNULL)

both_are_there = threading.Barrier(2)
first = threading.Thread(target=client, args=("the first client", 5000))
second = threading.Thread(target=client, args=("the second client", 10))
try:
    first.start()
    second.start()
    second.join()
    first.join()
finally:
    served.terminate()  # SIGTERM: its slaves leave, too
    slave.wait()
    served.wait()
