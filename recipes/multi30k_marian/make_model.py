"""An untrained Marian model with a tokenizer of its own: TEXTS → OUT, a Hugging Face folder.

One SentencePiece model is learnt from all texts, for both sides. Layers and widths are those of the
configuration file; words and special tokens are added to it here.
"""

import argparse
import json
import tempfile
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    MarianTokenizer,
    PreTrainedConfig,
)

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"
LONGEST = 200  # of an output, in words: fairseq-generate's --max-len-b


def learn_pieces(texts: list[Path], folder: Path, size: int) -> Path:
    """A SentencePiece model in ``folder`` that leaves every character as it is."""
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)),
        model_prefix=str(folder / "pieces"),
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,  # so that the result is always the same
        minloglevel=1,
    )
    return folder / "pieces.model"


def make_tokenizer(pieces: Path, source: str, target: str) -> MarianTokenizer:
    """As those of trained Marian models: the end token first, and padding last."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    own = [model.id_to_piece(i) for i in range(len(model)) if not model.is_control(i)]
    words = dict.fromkeys([END, UNKNOWN, *own, PAD])
    vocabulary = pieces.with_name("vocab.json")
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    return MarianTokenizer(
        str(pieces), str(pieces), str(vocabulary), source_lang=source, target_lang=target
    )


def complete(path: Path, tokenizer: MarianTokenizer) -> PreTrainedConfig:
    """The configuration of the file, with the tokenizer's words."""
    options = json.loads(path.read_text(encoding="utf-8"))
    kind = options.pop("model_type")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    # Padding begins texts: its embedding is 0, and stays so, since nothing ever writes it.
    return AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), eos_token_id=end, forced_eos_token_id=end,
        pad_token_id=pad, decoder_start_token_id=pad, **options,
    )  # fmt: skip


def search(config: PreTrainedConfig) -> GenerationConfig:
    """``generate`` searches as fairseq-generate does. What is forbidden has no probability: without
    the last option a beam would count that of padding as lost."""
    return GenerationConfig(
        num_beams=5, length_penalty=1.0, early_stopping=True,
        max_length=LONGEST + 2,  # with start and end
        bad_words_ids=[[config.pad_token_id]], renormalize_logits=True,
        eos_token_id=config.eos_token_id, forced_eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, required=True, help="pieces of both sides")
    parser.add_argument("--seed", type=int, default=1, help="of the weights")
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("texts", type=Path, nargs="+")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pieces = learn_pieces(given.texts, Path(folder), given.vocabulary)
        tokenizer = make_tokenizer(pieces, given.source, given.target)
        tokenizer.save_pretrained(given.out)
    torch.manual_seed(given.seed)
    model = AutoModelForSeq2SeqLM.from_config(complete(given.config, tokenizer))
    model.generation_config = search(model.config)
    model.save_pretrained(given.out)
    print(f"> {len(tokenizer)} words, {model.num_parameters() / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
