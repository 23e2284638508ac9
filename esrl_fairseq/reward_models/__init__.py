"""Training a reward model on human judgements, and reading it from its checkpoint."""
