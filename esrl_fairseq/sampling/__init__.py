"""Stage one: draws sequences, without a graph."""
