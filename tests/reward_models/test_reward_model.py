"""The reward model, its losses and its data; the command lines are in test_cli_reward_model.py."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from fairseq.models.roberta import RobertaModel
from helpers import ARCHS, EOS, PAD, SOURCE, TARGET, make_dataset, make_model

from esrl_fairseq.core.preferences import bradley_terry_loss, correlation, rating_loss, wins
from esrl_fairseq.data.text import UNK_IN_HYPOTHESIS
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.reward_models.criterion import PreferenceConfig, PreferenceCriterion
from esrl_fairseq.reward_models.data import (
    JudgedOutputs,
    collate_rows,
    read_preferences,
    read_ratings,
)
from esrl_fairseq.reward_models.model import RewardModel, encoder_of
from esrl_fairseq.reward_models.task import SubwordText

NAN = math.nan


def test_bradley_terry_by_hand():
    preferred = torch.tensor([0.0, 2.0, math.log(3), -1000.0], requires_grad=True)
    other = torch.tensor([0.0, 1.0, 0.0, 1000.0], requires_grad=True)
    loss = bradley_terry_loss(preferred, other)
    # -log of 1/2, 1/(1 + 1/e), 3/4, and of a probability too small for a float
    expected = [math.log(2), math.log(1 + math.exp(-1)), math.log(4 / 3), 2000.0]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)
    loss.sum().backward()
    lost = [1 / 2, 1 / (1 + math.e), 1 / 4, 1.0]  # d/d preferred = -P(the other wins)
    assert preferred.grad.tolist() == pytest.approx([-p for p in lost], rel=1e-6)
    assert other.grad.tolist() == pytest.approx(lost, rel=1e-6)


def test_bradley_terry_is_least_where_it_gives_the_shares_of_wins():
    """Three wins and one loss between the same two: P = 3/4, a difference of log 3."""
    difference = torch.tensor(math.log(3), requires_grad=True)
    zero = torch.tensor(0.0)
    (3 * bradley_terry_loss(difference, zero) + bradley_terry_loss(zero, difference)).backward()
    assert abs(float(difference.grad)) < 1e-6


def test_ratings_and_wins():
    assert rating_loss(torch.tensor([1.0, -2.0]), torch.tensor([3.0, -2.0])).tolist() == [4, 0]
    preferred, other = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])
    assert wins(preferred, other).tolist() == [1, 0, 0.5]


def test_correlation():
    x, y = np.random.default_rng(1).normal(size=(2, 50))
    moments = (x.mean(), y.mean(), (x**2).mean(), (y**2).mean(), (x * y).mean())
    assert correlation(*moments) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert math.isnan(correlation(1, 2, 1, 5, 2))  # x is 1 always


def file(tmp_path, text):
    path = tmp_path / "train.judged"
    path.write_text(text)
    return str(path)


def test_reading_judgements(tmp_path):
    ratings = read_ratings(file(tmp_path, "0.5\nnan\n-3e-1\n"), 3)
    np.testing.assert_array_equal(ratings, [0.5, NAN, -0.3])
    assert read_preferences(file(tmp_path, "2 1\n3 1\n"), 3).tolist() == [[1, 0], [2, 0]]
    gone = str(tmp_path / "gone")
    assert np.isnan(read_ratings(gone, 2)).all() and read_preferences(gone, 2).shape == (0, 2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("1\n2\n", "has 2 ratings, but the data have 3 lines"),
        ("1\ngood\n3\n", "line 2 of .*'good'.*a number"),
        ("1\n2\ninf\n", "line 3 of .*'inf'.*a number"),
    ],
)
def test_wrong_ratings(text, words, tmp_path):
    with pytest.raises(EsrlError, match=words):
        read_ratings(file(tmp_path, text), 3)


@pytest.mark.parametrize("line", ["1 1", "0 1", "4 1", "1", "1 2 3", "a b", "1 -1"])
def test_wrong_preferences(line, tmp_path):
    with pytest.raises(EsrlError, match=f"line 2 of .*{line!r}.*two different lines.*from 1 to 3"):
        read_preferences(file(tmp_path, f"2 1\n{line}\n"), 3)


def judged():
    """Four lines: 0 and 2 are rated, 1 is preferred to 0 and 3 to 2."""
    ratings = np.array([0.5, NAN, -1.0, NAN])
    return JudgedOutputs(make_dataset(4), ratings, np.array([[1, 0], [3, 2]]), PAD)


def test_batches_of_judgements():
    data = judged()
    lines = [torch.cat([data.pairs.src[i], data.pairs.tgt[i]]) for i in range(4)]
    assert [data.size(i) for i in range(4)] == [
        len(lines[0]),
        len(lines[2]),
        max(len(lines[1]), len(lines[0])),
        max(len(lines[3]), len(lines[2])),
    ]
    assert data.num_tokens(2) == 2 * data.size(2)
    with data_utils.numpy_seed(1):
        order = data.ordered_indices()
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert np.all(np.diff(data.sizes[order]) >= 0)
    batch = data.collater([data[2], data[1], data[3]])
    tokens, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    for row, line in enumerate([1, 0, 2, 3, 2]):
        assert lengths[row] == len(lines[line])
        assert torch.equal(tokens[row, : lengths[row]], lines[line])
        assert tokens[row, lengths[row] :].eq(PAD).all()
    assert batch["rated"].tolist() == [2] and batch["ratings"].tolist() == [-1]
    assert batch["preferred"].tolist() == [0, 3] and batch["other"].tolist() == [1, 4]
    assert batch["nsentences"] == 3 and batch["ntokens"] == lengths.sum()


def roberta(seed=1):
    args = Namespace(
        encoder_layers=2, encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2,
        max_positions=32,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = RobertaModel.build_model(args, Namespace(source_dictionary=SOURCE))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    return model


def reward_model(arch="transformer"):
    torch.manual_seed(2)
    model = roberta() if arch == "roberta" else make_model(arch)
    return RewardModel(encoder_of(model), PAD, EOS)


def random_rows(seed=5):
    draw = np.random.default_rng(seed)
    words = [SOURCE.index(word) for word in "uvw"]
    return [torch.tensor([*draw.choice(words, n), EOS]) for n in (3, 7, 1, 5, 7)]


@pytest.mark.parametrize("arch", [*ARCHS, "roberta"])
def test_scores_depend_on_nothing_but_the_row(arch):
    model = reward_model(arch).eval()
    rows = random_rows()
    together = model(**collate_rows(rows, PAD))
    alone = torch.cat([model(**collate_rows([row], PAD)) for row in rows])
    assert together.shape == (5,) and together.std() > 0.01
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    back = model(**collate_rows(rows[::-1], PAD)).flip(0)
    torch.testing.assert_close(together, back, rtol=0, atol=1e-6)


def test_padding_changes_nothing():
    model = reward_model().eval()
    batch = collate_rows(random_rows(), PAD)
    wider = torch.nn.functional.pad(batch["src_tokens"], (0, 4), value=PAD)
    scores = model(wider, batch["src_lengths"])
    torch.testing.assert_close(scores, model(**batch), rtol=0, atol=1e-6)


def test_score_by_hand():
    model = reward_model().eval()
    row = random_rows()[1]
    states = model.encoder(row[None], src_lengths=torch.tensor([len(row)]))["encoder_out"][0]
    expected = (states[:, 0].mean(0) * model.head.weight[0]).sum() + model.head.bias[0]
    torch.testing.assert_close(model(**collate_rows([row], PAD))[0], expected)


def test_rewards_are_standardised_by_the_scores_of_training():
    model = reward_model()
    batch = collate_rows(random_rows(), PAD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.spread.running_mean == 0 and model.spread.running_var == 1
    model.eval()
    scores = model(**batch)
    torch.testing.assert_close(model.reward(**batch), torch.sigmoid(scores / math.sqrt(1 + 1e-5)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    seen = []
    for _ in range(400):
        seen.append(model(**batch).detach())
    model(**collate_rows(random_rows()[:1], PAD))  # one row has no deviation
    seen = torch.cat(seen)
    m, d = model.spread.running_mean, model.spread.running_var.sqrt()
    assert abs(m - seen.mean()) < 0.3 * seen.std() and 0.8 < d / seen.std() < 1.4
    model.eval()
    expected = torch.sigmoid((scores - m) / (model.spread.running_var + 1e-5).sqrt())
    torch.testing.assert_close(model.reward(**batch), expected)


def test_an_encoder_starts_from_an_mle_model():
    mle, model = make_model(seed=9), reward_model()
    head = model.head.weight.clone()
    model.load_state_dict(mle.state_dict(), strict=True)
    for name, value in mle.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])
    assert torch.equal(model.head.weight, head)
    other = reward_model()
    torch.nn.init.zeros_(other.head.weight)
    model.load_state_dict(other.state_dict(), strict=True)  # a reward model's own: all of it
    assert not model.head.weight.any()
    broken = {key: value for key, value in other.state_dict().items() if key != "head.weight"}
    with pytest.raises(RuntimeError, match="head.weight"):
        model.load_state_dict(broken, strict=True)


def test_an_encoder_starts_from_roberta():
    """Its states are those that RoBERTa's heads see."""
    pretrained, model = roberta(seed=9).eval(), reward_model("roberta").eval()
    pretrained.register_classification_head("mine", num_classes=2)
    model.load_state_dict(pretrained.state_dict(), strict=True)
    row = random_rows()[1]
    features, _ = pretrained.encoder(row[None], features_only=True)
    expected = (features[0].mean(0) * model.head.weight[0]).sum() + model.head.bias[0]
    torch.testing.assert_close(model(**collate_rows([row], PAD))[0], expected)
    assert not any("lm_head" in name for name, _ in model.named_parameters())


def test_models_without_an_encoder():
    model = make_model().decoder
    with pytest.raises(EsrlError, match="TransformerDecoder.* is neither: choose an --arch such"):
        encoder_of(model)


def test_criterion():
    model, data = reward_model().eval(), judged()
    criterion = PreferenceCriterion(
        PreferenceConfig(rating_weight=2.0, preference_weight=0.5), None
    )
    batch = data.collater([data[i] for i in range(4)])
    loss, size, log = criterion(model, batch)
    lines = [torch.cat([data.pairs.src[i], data.pairs.tgt[i]]) for i in range(4)]
    s = [float(model(**collate_rows([line], PAD))) for line in lines]
    ratings = (s[0] - 0.5) ** 2 + (s[2] + 1) ** 2
    pairs = math.log(1 + math.exp(s[0] - s[1])) + math.log(1 + math.exp(s[2] - s[3]))
    assert float(loss) == pytest.approx(2 * ratings + 0.5 * pairs, rel=1e-5)
    assert size == log["sample_size"] == 4 and log["ratings"] == log["pairs"] == 2
    assert float(log["wins"]) == (s[1] > s[0]) + (s[3] > s[2])
    assert float(log["product"]) == pytest.approx(0.5 * s[0] - s[2], rel=1e-5)
    # Without one kind, the loss is the other's.
    loss, size, log = criterion(model, data.collater([data[2]]))
    assert float(loss) == pytest.approx(0.5 * math.log(1 + math.exp(s[0] - s[1])), rel=1e-5)
    assert size == 1 and log["ratings"] == 0
    with pytest.raises(EsrlError, match="--rating-weight is -1"):
        PreferenceCriterion(PreferenceConfig(rating_weight=-1.0), None)


CODES = "#version: 0.2\na b\nab c</w>\n"


def test_text_becomes_the_training_datas_tokens():
    dictionary = type(TARGET)()
    for word in ("a", "abc", "ab@@", "d", "a@@", "bc"):
        dictionary.add_symbol(word)
    text = SubwordText(dictionary, CODES)
    words = [dictionary[i] for i in text.ids("abc a abd").tolist()]
    assert words == ["abc", "a", "ab@@", "d", "</s>"]
    # What stands for unknown words stays one unknown word.
    assert text.ids(f"<unk> {UNK_IN_HYPOTHESIS} z").tolist() == [dictionary.unk()] * 3 + [EOS]
    assert text.agrees(text.ids("abd abc"))
    whole = torch.tensor([dictionary.index("ab@@"), dictionary.index("d"), EOS])
    assert text.agrees(whole)
    other = torch.tensor([dictionary.index("a@@"), dictionary.index("bc"), EOS])
    assert not text.agrees(other)
    plain = SubwordText(dictionary, "")
    assert [dictionary[i] for i in plain.ids("abc abd").tolist()] == ["abc", "<unk>", "</s>"]


def test_half_precision_keeps_the_scores_statistics():
    """As the trainer halves the model with --memory-efficient-fp16."""
    model = RewardModel(make_model().encoder, PAD, EOS).train().half()
    scores = torch.tensor([1000.25, 1000.75])
    model.spread(scores.unsqueeze(1))
    assert (
        model.spread.running_mean.dtype == torch.float32 and model.head.weight.dtype == torch.half
    )
    assert model.spread.running_mean.item() == pytest.approx(0.02 * 1000.5, rel=1e-6)
