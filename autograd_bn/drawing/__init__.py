"""Pictures of graphs: graph, plain records, DOT, picture."""
