"""What a run starts from, and the checks of it before the first update."""
