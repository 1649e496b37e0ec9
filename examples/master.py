"""Master and slave in two scripts: this is the master, slave.py beside it is the slave.

Use this form when an existing program is to hand out some of its work: it need not be turned into
a class. Run it with

    python examples/master.py

The task manager keeps a copy of slave.py, so further slaves may join from anywhere while the job
runs, whether the script is there or not:

    task_manager slave words
"""

from pathlib import Path

from masterslave import TaskRaisedException, initializeMasterProcess

TEXTS = [
    "a rose is a rose is a rose",
    "to be or not to be",
    "",
    "the quick brown fox jumps over the lazy dog",
]

master = initializeMasterProcess("words", slave_script=Path(__file__).with_name("slave.py"))
master.launchSlaveJobs(2)

# Request everything first, then retrieve: the slaves work at the same time.
text_of = {master.requestTask("count", text): text for text in TEXTS}

for _ in TEXTS:
    try:
        task_id, _, (words, different) = master.retrieveResult("count")
        print(f"{words} words, {different} different: {text_of[task_id]}")
    except TaskRaisedException as error:
        print(f"failed: {error.exception}")

# The job ends, and its slaves with it, when this program does.
