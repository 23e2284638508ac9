"""Refusals and warnings that fairseq does not make, one sentence each."""
