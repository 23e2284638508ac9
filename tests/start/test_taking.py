"""Which options a start model brings, and which it does not."""

from argparse import Namespace

import pytest
import torch
from test_reading import WHOLE

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.taking import architecture_of_start


def command(folder, **options):
    """What is known of a command line before its architecture is."""
    given = dict(restore_file="checkpoint_last.pt", save_dir=str(folder), finetune_from_model=None)
    return Namespace(**{**given, "checkpoint_suffix": "", "arch": None, **options})


def start(folder, name="checkpoint_last.pt", **options):
    cfg = {"model": Namespace(dropout=0.3, **options), "task": {"_name": "translation"}}
    torch.save({**WHOLE, "cfg": cfg}, folder / name)
    return str(folder / name)


def test_own_checkpoint_before_the_one_that_is_named(tmp_path):
    named = command(tmp_path, finetune_from_model=start(tmp_path, "mle.pt", arch="lstm"))
    assert architecture_of_start(named) == {"arch": "lstm", "dropout": 0.3}
    start(tmp_path, arch="lstm", encoder_layers=2)
    assert architecture_of_start(named)["encoder_layers"] == 2
    other = start(tmp_path, "other.pt", arch="lstm", encoder_layers=3)
    assert architecture_of_start(command(tmp_path, restore_file=other))["encoder_layers"] == 3


def test_nothing_where_an_architecture_is_given_or_not_asked_for(tmp_path):
    given = command(tmp_path, arch="transformer", finetune_from_model="gone.pt")
    assert architecture_of_start(given) == architecture_of_start(Namespace()) == {}


def test_files_of_before_training_are_left_out(tmp_path):
    start(tmp_path, arch="transformer", encoder_embed_path="gone.txt", encoder_layers=2)
    found = architecture_of_start(command(tmp_path))
    assert found == {"arch": "transformer", "dropout": 0.3, "encoder_layers": 2}


@pytest.mark.parametrize("learned", [True, False])
def test_lengths_of_learned_positions(learned, tmp_path):
    """The task's options in language models: they belong to the architecture there."""
    options = dict(tokens_per_sample=64, max_target_positions=64, decoder_learned_pos=learned)
    start(tmp_path, arch="transformer_lm", add_bos_token=True, **options)
    found = architecture_of_start(command(tmp_path))
    assert found.pop("add_bos_token") and found.pop("dropout") == 0.3
    assert found == {"arch": "transformer_lm", **(options if learned else {})}


def test_what_is_none(tmp_path):
    with pytest.raises(EsrlError, match="no --arch is given, and no model that has one: give --fi"):
        architecture_of_start(command(tmp_path))
    path = start(tmp_path, arch="elsewhere")
    with pytest.raises(EsrlError, match=f"{path} is of --arch elsewhere, which is not known here"):
        architecture_of_start(command(tmp_path))
    (tmp_path / "checkpoint_last.pt").write_text("text")
    with pytest.raises(EsrlError, match="last checkpoint of this run, .* text file, and no other"):
        architecture_of_start(command(tmp_path))
