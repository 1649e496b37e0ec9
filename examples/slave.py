"""Master and slave in two scripts: this is the slave of master.py, which starts it by itself.

A slave script defines or imports functions do_<tag>, and its last line is a call of
startSlaveProcess. Started by the master, or by `task_manager slave words`, it knows for which
master it is to work.

To start the script itself by hand, on another machine for instance, give the label in that call,
and the master's host where no name server is used:

    startSlaveProcess("words")
    startSlaveProcess("words", "node3:7766")
"""

from masterslave import startSlaveProcess


def do_count(text):
    """How many words the text has, and how many different ones."""
    words = text.split()
    if not words:
        raise ValueError("there are no words in this text")
    return len(words), len(set(words))


startSlaveProcess()
