"""Checkpoints: written whole or not at all, read only if they are whole and hold no code."""
