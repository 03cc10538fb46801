"""The pair loss against the stock one, and its parts by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_tiny_model
from torch.nn import functional

from pair_pm.pair_loss import LabelOnlyHead, Targets, compute_pair_loss, find_label_positions

LABEL_IDS = torch.tensor([5, 6])
PAD = 0


def make_batch(lengths=(9, 14, 6, 14), padding_side: str = "right"):
    """Return ids, attention mask and labels of rows whose last token but one is a label."""
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    ids, mask = torch.full((len(lengths), width), PAD), torch.zeros(len(lengths), width, dtype=torch.long)
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        start = 0 if padding_side == "right" else width - length
        ids[row, start : start + length] = torch.randint(7, 40, (length,), generator=generator)
        mask[row, start : start + length] = 1
        ids[row, start + length - 2] = labels[row, start + length - 2] = LABEL_IDS[row % 2]
    return ids, mask, labels


def targets_of(labels: torch.Tensor, pair=None) -> Targets:
    answers = labels[labels != -100]
    return Targets((answers == LABEL_IDS[0]).float(), torch.arange(len(answers)) if pair is None else pair)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_stock(model, batch):
    ids, mask, labels = batch
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.item(), gradients(model)


def run_ours(model, batch):
    ids, mask, labels = batch
    model.zero_grad()
    positions = find_label_positions(labels)
    with LabelOnlyHead(model).at(positions):
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.shape[:2] == (1, len(positions))
    loss = compute_pair_loss(logits[0], LABEL_IDS, targets_of(labels)).rows.mean()
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_targets_give_the_stock_loss_and_its_gradients(family, padding_side):
    model = make_tiny_model(family)  # in evaluation mode: GPT-2 has dropout
    batch = make_batch(padding_side=padding_side)
    stock, stock_gradients = run_stock(model, batch)
    ours, our_gradients = run_ours(model, batch)
    assert ours == pytest.approx(stock, abs=1e-6)
    assert our_gradients.keys() == stock_gradients.keys()
    for name, gradient in stock_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_an_adapter_on_the_head_itself_trains_as_with_all_logits():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(make_tiny_model().train(), adapter)
    stock, stock_gradients = run_stock(model, make_batch())
    ours, our_gradients = run_ours(model, make_batch())
    assert ours == pytest.approx(stock, abs=1e-6)
    assert any("lm_head" in name for name in our_gradients)
    for name, gradient in stock_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model = make_tiny_model().train()
    plain, plain_gradients = run_ours(model, make_batch())
    model.gradient_checkpointing_enable()
    checkpointed, checkpointed_gradients = run_ours(model, make_batch())
    assert checkpointed == pytest.approx(plain, abs=1e-7)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient)


def test_the_head_computes_all_logits_again_once_the_block_is_left():
    model = make_tiny_model()
    ids, mask, labels = make_batch()
    head = LabelOnlyHead(model)
    with pytest.raises(KeyboardInterrupt), head.at(find_label_positions(labels)):
        raise KeyboardInterrupt
    assert model(input_ids=ids, attention_mask=mask).logits.shape[:2] == ids.shape


def test_a_model_without_a_head_of_its_own_is_known():
    model = make_tiny_model()
    assert LabelOnlyHead(model).is_supported
    model.get_output_embeddings = lambda: None
    assert not LabelOnlyHead(model).is_supported


def test_a_model_whose_logits_come_whole_all_the_same_is_read_at_the_labels_and_that_is_said_once(plugin_log):
    from axolotl.utils.dict import DictDefault

    from pair_pm.pair_trainer import PairTrainer

    trainer = PairTrainer.__new__(PairTrainer)
    trainer.axolotl_cfg, trainer.model = DictDefault(), make_tiny_model()
    trainer._head = LabelOnlyHead(trainer.model)
    logits, positions = torch.arange(24.0).reshape(2, 4, 3), torch.tensor([1, 6])
    for _ in range(2):
        assert trainer._pick_logits(logits, positions).tolist() == [[3, 4, 5], [18, 19, 20]]
    (record,) = plugin_log
    assert "LlamaForCausalLM computes logits of shape (2, 4, 3) all the same" in record.getMessage()


def test_positions_are_one_before_each_label_row_by_row():
    labels = torch.tensor([[-100, -100, 5, -100], [-100, 6, -100, 5]])
    assert find_label_positions(labels).tolist() == [1, 4, 6]
    # Nothing predicts a row's first token: the end of the row before has not seen it.
    assert find_label_positions(torch.tensor([[-100, -100], [5, -100]])).tolist() == []


# ---- soft targets ---------------------------------------------------------------------------------------------------


def loss_of(logits, prob_a, smoothing=0.0, pair=None):
    rows = len(prob_a)
    targets = Targets(torch.tensor(prob_a), torch.arange(rows) if pair is None else torch.tensor(pair))
    return compute_pair_loss(logits, LABEL_IDS, targets, smoothing)


def test_soft_target_by_hand():
    # Probabilities 0.5 for A, 0.25 for B, and 0.25 elsewhere; target 0.8.
    logits = torch.full((1, 8), -math.inf)
    logits[0, 5], logits[0, 6], logits[0, 0] = math.log(0.5), math.log(0.25), math.log(0.25)
    loss = loss_of(logits, [0.8])
    assert loss.rows.item() == pytest.approx(-(0.8 * math.log(0.5) + 0.2 * math.log(0.25)))
    assert loss.logprobs.exp().tolist()[0] == pytest.approx([0.5, 0.25])


@given(prob_a=st.floats(0, 1), seed=st.integers(0, 100))
def test_soft_loss_is_cross_entropy_of_the_two_labels_plus_what_leaves_them(prob_a, seed):
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed)).double()
    two = logits[0, LABEL_IDS].log_softmax(-1)
    mass = logits.softmax(-1)[0, LABEL_IDS].sum()
    expected = -(prob_a * two[0] + (1 - prob_a) * two[1]) - mass.log()
    assert loss_of(logits, [prob_a]).rows.item() == pytest.approx(expected.item(), abs=1e-5)


@given(prob_a=st.floats(0, 1), seed=st.integers(0, 100))
def test_any_target_presses_other_tokens_down_as_hard_as_a_hard_label_does(prob_a, seed):
    values = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed))
    pressure = []
    for target in (prob_a, 1.0):
        logits = values.clone().requires_grad_()
        loss_of(logits, [target]).rows.sum().backward()
        pressure.append(torch.cat([logits.grad[0, :5], logits.grad[0, 7:]]))
    torch.testing.assert_close(pressure[0], pressure[1])


def test_smoothing_is_a_softer_target():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    smoothed = loss_of(logits, [1.0, 0.0], smoothing=0.2).rows
    torch.testing.assert_close(smoothed, loss_of(logits, [0.9, 0.1]).rows)
    expected = functional.cross_entropy(logits, LABEL_IDS, reduction="none")
    torch.testing.assert_close(loss_of(logits, [1.0, 0.0]).rows, expected)


# ---- symmetric pairs ------------------------------------------------------------------------------------------------


def with_log_odds(*values: float) -> torch.Tensor:
    logits = torch.zeros(len(values), 9)
    logits[:, 5] = torch.tensor(values)
    return logits


def test_symmetry_by_hand():
    # Pair 7 stands at rows 0 and 2 with log-odds 1.5 and -0.5, pair 9 at 1 and 4 with 2 and -2; row 3 is alone.
    loss = loss_of(with_log_odds(1.5, 2, -0.5, 3, -2), [1.0, 1, 0, 1, 0], pair=[7, 9, 7, 8, 9])
    assert loss.pairs == 2
    assert loss.symmetry.item() == pytest.approx(1.0**2 + 0.0**2)


def test_a_verdict_that_does_not_depend_on_the_order_costs_nothing_and_has_no_gradient():
    logits = with_log_odds(1.25, -1.25).requires_grad_()
    loss = loss_of(logits, [1.0, 0.0], pair=[3, 3])
    assert loss.symmetry.item() == 0
    loss.symmetry.backward()
    assert logits.grad.abs().max() == 0


def test_a_batch_without_pairs_has_no_symmetry_term():
    loss = loss_of(with_log_odds(1, 2), [1.0, 0.0])
    assert (loss.pairs, loss.symmetry.item()) == (0, 0)
