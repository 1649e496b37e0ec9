"""The way between master and slaves that needs no network: a directory that they share."""
