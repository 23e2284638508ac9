"""Models of the Hugging Face library as fairseq models (extra ``[hf]``).

``--arch hf_causal_lm``, ``--arch hf_seq2seq`` and ``--bpe hf_tokenizer`` are registered here;
transformers itself is imported when a model or a tokenizer is loaded. ``python -m
esrl_fairseq.huggingface`` makes data and writes trained models back.
"""

from esrl_fairseq.huggingface import bpe, model, seq2seq  # noqa: F401  (registration)
