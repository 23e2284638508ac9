"""From the two repositories' files to four of JSON lines: DOWNLOADS → RAW.

mlqe-{train,dev,test}.jsonl: source, machine translation, its post-edit (all as tokenised there),
mean of the direct assessments and of their z-scores. mqm.jsonl: segment, system, source,
translation, and the mean MQM score of its raters, 0 for a translation without errors.
"""

import argparse
import csv
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any


def members(path: Path) -> dict[str, str]:
    """Contents of an archive's files, by what follows the last dot and 'tsv' for tables."""
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        return {
            name.rsplit(".", 1)[-1]: file.read().decode("utf-8")
            for name, file in files.items()
            if file is not None and name.endswith((".tsv", ".src", ".mt", ".pe"))
        }


def mlqe(downloads: Path, split: str) -> list[dict[str, Any]]:
    """Rows of the two archives; both have the same sentences in the same order."""
    table = members(downloads / f"direct-assessments-{split}.tar.gz")["tsv"]
    rated = csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    texts = members(downloads / f"post-editing-{split}.tar.gz")
    sides = [texts[side].rstrip("\n").split("\n") for side in ("src", "mt", "pe")]
    rows = []
    for (src, mt, pe), row in zip(zip(*sides, strict=True), rated, strict=True):
        scores = {"da_mean": float(row["mean"]), "da_z": float(row["z_mean"])}
        rows.append({"src": src, "mt": mt, "pe": pe, **scores})
    return rows


def mqm(downloads: Path) -> list[dict[str, Any]]:
    """One row for each scored translation, by segment and system; marks of errors taken out."""
    texts = {}
    for line in lines(downloads / "mqm_ted_ende.tsv"):
        system, _, _, segment, _, source, target, *_ = line.split("\t")
        system = "ref-A" if system == "ref" else system
        texts[int(segment), system] = (source, re.sub("</?v>", "", target))
    rows = []
    for line in lines(downloads / "mqm_ted_ende.avg_seg_scores.tsv"):
        system, score, segment = line.split()
        if score != "None":
            source, target = texts[int(segment), system]
            row = {"seg": int(segment), "system": system, "src": source, "mt": target}
            rows.append({**row, "mqm": float(score)})
    return sorted(rows, key=lambda row: (row["seg"], row["system"]))


def lines(path: Path) -> list[str]:
    """All but the head."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("raw", type=Path)
    args = parser.parse_args()
    sets = {f"mlqe-{split}": mlqe(args.downloads, split) for split in ("train", "dev", "test")}
    sets["mqm"] = mqm(args.downloads)
    for name, rows in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.raw / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"> {name}: {len(rows)} translations")


if __name__ == "__main__":
    main()
