"""Checkpoints that cannot be lost: written whole or not at all, read only if they are whole."""
