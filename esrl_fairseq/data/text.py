"""Token ids to text, exactly as ``fairseq-generate`` prints it.

The lines of ``fairseq-generate`` and the functions that give them:

====  ===============================================================================
S-    ``source_text(ids, src_dict, post_process, decode)``
T-    ``reference_text(ids, tgt_dict, post_process, strip_ids, decode)``
H-    ``hypothesis_text(ids, tgt_dict, post_process, strip_ids)``
D-    ``hypothesis_text(ids, tgt_dict, post_process, strip_ids, decode)``
====  ===============================================================================

where ``post_process`` is ``--post-process``, ``decode`` the ``decode`` of the task's BPE and then
of its tokenizer, and ``strip_ids`` the generator's ``symbols_to_strip_from_output`` (EOS if it has
none). ``--replace-unk`` is not supported: it needs alignments and the raw data.

``fairseq-generate`` meets padding in sources and references only and strips it there; a batch of
samples is padded too, where ``Dictionary.string`` would print ``<pad>`` words. All functions here
strip padding, BOS and EOS wherever they stand; they do not cut at the first EOS, so a row must hold
nothing but padding after its own.

**Unknown words and rewards.** fairseq escapes an unknown word of a reference (``<<unk>>``) so that
it never matches one of a hypothesis (``<unk>``). The 13a, intl, char and zh tokenizers undo that:
they split both at ``<`` and ``>``, and ``unk`` matches ``unk``. fairseq's own ``--eval-bleu``
therefore uses two plain words, which have most of their characters in common, and so match under
chrF. Ours have none in common. Pass them as ``unk_string`` (``UNK_IN_HYPOTHESIS`` and
``UNK_IN_REFERENCE`` below) when the text goes to a reward; leave it None to get the printed line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from fairseq.data import Dictionary

# Plain letters, so that every tokenizer leaves one word of them, also in lower case. Q and X are
# the rarest capitals in most languages; XXXX would be a word: it hides names in some texts.
UNK_IN_HYPOTHESIS = "QQQQ"
UNK_IN_REFERENCE = "XXZX"
PRINTED_UNK = re.compile("<<unk>>|<unk>")
"""An unknown word as ``fairseq-generate`` prints it."""

Decode = Callable[[str], str]


def hypothesis_text(
    ids: Sequence[int],
    dictionary: Dictionary,
    post_process: str | None,
    strip_ids: set[int],
    decode: Decode | None = None,
    unk_string: str | None = None,
) -> str:
    """The text of one sampled row: the H- line, or the D- line with `decode`.

    Args:
        ids: [length] token ids as a list (or anything with ``tolist()``), padding allowed.
        dictionary: the target dictionary.
        post_process: as ``--post-process`` (``"@@ "``, ``"sentencepiece"``, None, …).
        strip_ids: ids that are not printed; padding, BOS and EOS never are.
        decode: turns the H- line into the D- line.
        unk_string: the word for an unknown token; None prints the dictionary's (``<unk>``).

    Returns:
        The text; ``""`` for a row without words.
    """
    return _text(ids, dictionary, post_process, strip_ids, decode, False, unk_string)


def reference_text(
    ids: Sequence[int],
    dictionary: Dictionary,
    post_process: str | None,
    strip_ids: set[int],
    decode: Decode | None = None,
    unk_string: str | None = None,
) -> str:
    """The text of one reference: the T- line, unknown words escaped as ``<<unk>>``.

    Arguments as in `hypothesis_text`; `unk_string` takes the place of ``<<unk>>``.
    """
    return _text(ids, dictionary, post_process, strip_ids, decode, True, unk_string)


def source_text(
    ids: Sequence[int],
    dictionary: Dictionary,
    post_process: str | None,
    decode: Decode | None = None,
    strip_ids: Iterable[int] = (),
) -> str:
    """The text of one source: the S- line; arguments as in `hypothesis_text`."""
    return _text(ids, dictionary, post_process, strip_ids, decode, False, None)


def _text(
    ids: Sequence[int],
    dictionary: Dictionary,
    post_process: str | None,
    strip_ids: Iterable[int],
    decode: Decode | None,
    escape_unk: bool,
    unk_string: str | None,
) -> str:
    # A Python list: iterating over a tensor makes one tensor per token, ten times as slow.
    text: str = dictionary.string(
        ids.tolist() if hasattr(ids, "tolist") else ids,
        post_process,
        escape_unk=escape_unk,
        extra_symbols_to_ignore={dictionary.pad(), *strip_ids},
        unk_string=unk_string,
    )
    return text if decode is None else decode(text)
