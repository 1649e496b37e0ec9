"""Ways to reach a task manager: in the same process (`memory`) or across a network (`pyro`)."""
