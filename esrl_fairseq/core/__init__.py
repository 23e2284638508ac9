"""The mathematics of ESRL as pure functions on tensors and arrays; nothing here imports fairseq."""
