"""Inputs of a run: prompts, further references, batches, and the text of token ids."""
