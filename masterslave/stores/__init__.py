"""Where a journal's entries are kept: in memory (`memory`) or in one file (`sqlite`)."""
