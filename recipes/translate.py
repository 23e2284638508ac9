"""Translate TEXT, a sentence a line, by transformers or CTranslate2, with beam 5 and greedily.

The search is fairseq-generate's: lengths count in the mean of a hypothesis's words, and a beam is
over when as many hypotheses have ended.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

BEAMS = {"beam5": 5, "greedy": 1}
Translate = Callable[[list[str], int], list[str]]


def by_transformers(given: argparse.Namespace, tokenizer: Any) -> Translate:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForSeq2SeqLM.from_pretrained(given.model).to(device).eval()
    options: dict[str, Any] = {"max_length": given.longest + 2}  # with start and end
    if given.target_lang:
        options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(given.target_lang)

    def translate(texts: list[str], beam: int) -> list[str]:
        batch = tokenizer(texts, return_tensors="pt", padding=True).to(device)
        search = {"length_penalty": 1.0, "early_stopping": True} if beam > 1 else {}
        found = model.generate(**batch, num_beams=beam, do_sample=False, **options, **search)
        return tokenizer.batch_decode(found, skip_special_tokens=True)

    return translate


def by_ctranslate2(given: argparse.Namespace, tokenizer: Any) -> Translate:
    import ctranslate2

    model = ctranslate2.Translator(given.ctranslate2, intra_threads=torch.get_num_threads())

    def translate(texts: list[str], beam: int) -> list[str]:
        batch = [tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in texts]
        found = model.translate_batch(
            batch, beam_size=beam, max_decoding_length=given.longest, min_decoding_length=0
        )
        words = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
        return tokenizer.batch_decode(words, skip_special_tokens=True)

    return translate


def translated(texts: list[str], translate: Translate, beam: int, size: int) -> list[str]:
    """One line for each text."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # equal lengths together
    found: dict[int, str] = {}
    for start in range(0, len(order), size):
        places = order[start : start + size]
        found.update(zip(places, translate([texts[i] for i in places], beam)))
    return [" ".join(found[i].split()) for i in range(len(texts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub name")
    parser.add_argument("--ctranslate2", help="folder of CTranslate2 that was made of it")
    parser.add_argument("--source-lang", help="code of a model of several languages")
    parser.add_argument("--target-lang", help="the same of what it writes")
    parser.add_argument("--longest", type=int, default=200, help="most words of an output")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", help="the results, before .beam5.txt and .greedy.txt")
    given = parser.parse_args()
    languages = {"src_lang": given.source_lang} if given.source_lang else {}
    tokenizer = AutoTokenizer.from_pretrained(given.model, **languages)
    translate = (by_ctranslate2 if given.ctranslate2 else by_transformers)(given, tokenizer)
    texts = given.text.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for name, beam in BEAMS.items():
        with torch.inference_mode():
            lines = translated(texts, translate, beam, given.batch_size)
        out = Path(f"{given.out}.{name}.txt")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
