"""Whole runs: what is to be done, one photo after the other or several at once, resuming, watching, a cluster."""
