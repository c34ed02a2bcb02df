"""Pictures: a graph becomes plain records, the records become DOT, and Graphviz draws it."""
