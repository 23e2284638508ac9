"""--compile-decoding from the command line: one option, and one sentence where it cannot work."""

import pytest
from command_lines import JOINED, MODEL, esrl_options

TRAIN = "--compile-decoding --num-samples 2 --disable-validation --max-update 1"


def test_other_models_are_refused_before_the_first_update(commands, corpus, tmp_path):
    lstm = "--arch lstm --encoder-embed-dim 8 --decoder-embed-dim 8 --decoder-out-embed-dim 8"
    command = ["fairseq-train", *esrl_options(corpus.data, tmp_path / "run"), lstm, TRAIN]
    result = commands.run(*command)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (last,) = result.stderr.strip().splitlines()[-1:]
    assert "--compile-decoding is for fairseq's own Transformer" in last and "leave it out" in last


@pytest.mark.long
def test_without_a_compiler_it_ends_in_a_sentence(commands, corpus, mle, tmp_path):
    """Before the first update; nothing is saved."""
    command = [
        *["fairseq-train", *esrl_options(corpus.data, tmp_path / "run"), MODEL, JOINED],
        *["--finetune-from-model", mle, TRAIN],
    ]
    nowhere = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = commands.start(*command, environment=nowhere).wait()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (last,) = result.stderr.strip().splitlines()[-1:]
    assert "--compile-decoding: torch" in last and "cannot compile the decoding step" in last
    assert not list((tmp_path / "run").glob("*.pt"))
