"""What RL remembers between updates, and what of it belongs to a checkpoint."""
