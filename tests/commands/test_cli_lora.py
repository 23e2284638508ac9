"""--lora-rank by fairseq's commands: KL without a second copy, resumed runs, small checkpoints,
generation, and the merged folder."""

import shutil

import pytest
import torch
from command_lines import USER_DIR
from test_cli_huggingface import options, prompts  # noqa: F401 (a fixture)
from test_cli_language_model import refused
from test_cli_resume import comparable, load, same_model
from tiny_causal_lm import DICTIONARY, make_prompts, save

from esrl_fairseq.huggingface.__main__ import export_model
from esrl_fairseq.huggingface.adapters import belongs
from esrl_fairseq.huggingface.model import HfCausalLM, HfCausalLMConfig

pytest.importorskip("peft", reason="extra lora is not installed")

LORA = "--lora-rank 2 --kl-weight 0.05 --max-update 8 --save-interval-updates 4"


@pytest.fixture(scope="module")
def trained(commands, prompts, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("lora")
    return folder, commands.succeed(*options(prompts, folder, LORA))


def test_checkpoints_hold_adapters_alone(commands, prompts, trained):  # noqa: F811
    folder, result = trained
    assert f"in {prompts.model}: this one with its adapters off" in result.stdout
    training = result.logged("train_inner")
    assert training[0]["kl"] == 0 and training[-1]["kl"] > 0
    state = load(folder / "checkpoint_last.pt")
    adapters = [name for name in state["model"] if belongs(name)]
    assert set(state["model"]) == {*adapters, "adapted"} and len(adapters) == 28
    assert len(state["last_optimizer_state"]["state"]) == 28
    written = commands.succeed(
        *["fairseq-generate", prompts.data, "--user-dir", USER_DIR, "--add-bos-token"],
        *["--path", folder / "checkpoint_last.pt", "--task esrl_language_modeling"],
        "--gen-subset test --beam 2 --max-len-b 12 --required-batch-size-multiple 1",
    )
    assert len(written.lines("H-")) == 20


@pytest.mark.long
def test_resumed_equals_uninterrupted(commands, prompts, trained, tmp_path):  # noqa: F811
    (tmp_path / "resumed").mkdir()
    checkpoint = next(trained[0].glob("checkpoint_*_4.pt"))
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    other = save(tmp_path / "other", seed=5)
    given = options(prompts, tmp_path / "resumed", LORA)
    assert "for another model than" in refused(commands, *given, "--hf-model", other)
    resumed = commands.succeed(*given)
    expected = comparable(trained[1], 4)
    assert len(expected) >= 4 and comparable(resumed, 4) == expected
    assert same_model(trained[0], tmp_path / "resumed")


def test_the_merged_folder_has_the_same_scores(prompts, trained, tmp_path):  # noqa: F811
    checkpoint = trained[0] / "checkpoint_last.pt"
    export_model(str(checkpoint), None, tmp_path / "out")
    own = HfCausalLM(HfCausalLMConfig(hf_model=prompts.model, lora_rank=2), DICTIONARY)
    own.load_state_dict(load(checkpoint)["model"])
    merged = HfCausalLM(HfCausalLMConfig(hf_model=str(tmp_path / "out")), DICTIONARY)
    data = make_prompts()
    given = data.collater([data[i] for i in range(len(data))])["net_input"]["src_tokens"]
    with torch.no_grad():
        scores = [model.eval()(given)[0] for model in (own, merged)]
        with own.without_adapters():
            start = own(given)[0]
    assert torch.allclose(*scores, atol=1e-5) and not torch.allclose(start, scores[0], atol=1e-3)
