"""Sums over the processes of a communicator as nodes of the graph."""
