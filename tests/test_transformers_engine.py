"""The in-process engine against a slow reference: one prompt at a time, all of the model's own logits."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make_tiny_model

from pair_pm.engines.transformers_engine import TransformersEngine

LABEL_IDS = (33, 34)
VOCABULARY = 640
# One token, two of a length, shorter and far longer than the sliding windows of 16.
LENGTHS = (40, 1, 7, 90, 7, 17, 64, 3)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, VOCABULARY, size=length).tolist() for length in LENGTHS]


def score_slowly(model, prompts: list[list[int]]) -> np.ndarray:
    """Return the reference; call it before an engine takes the model's head."""
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0, -1].float() for prompt in prompts]
    return torch.stack([row.log_softmax(-1)[list(LABEL_IDS)] for row in logits]).double().numpy()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, prompts) -> tuple[str, np.ndarray, TransformersEngine]:
    """Each architecture's name, reference and engine."""
    model = make_tiny_model(request.param, vocab_size=VOCABULARY)
    reference = score_slowly(model, prompts)
    return request.param, reference, TransformersEngine(model, LABEL_IDS)


def test_logprobs_equal_the_slow_reference(family, prompts):
    _, reference, engine = family
    found = engine.label_logprobs(prompts)
    assert (found.dtype, found.shape) == (np.float64, (len(prompts), 2))
    assert np.ptp(reference[:, 0] - reference[:, 1]) > 0.5  # the model tells prompts apart, or this would show nothing
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5)


def test_logprobs_do_not_depend_on_the_company_or_order_of_prompts(family, prompts):
    _, _, engine = family
    together = engine.label_logprobs(prompts)
    np.testing.assert_allclose(engine.label_logprobs(prompts[::-1])[::-1], together, rtol=0, atol=1e-5)
    alone = np.concatenate([engine.label_logprobs([prompt]) for prompt in prompts])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_sliding_windows_are_shorter_than_the_prompts_and_matter(prompts):
    windowed = score_slowly(make_tiny_model("mistral", vocab_size=VOCABULARY), prompts)
    whole = score_slowly(make_tiny_model("mistral", vocab_size=VOCABULARY, sliding_window=None), prompts)
    differs = np.abs(windowed - whole).max(axis=1) > 1e-3
    assert differs.tolist() == [length > 16 for length in LENGTHS]


def test_cap_on_final_logits_is_applied(prompts):
    capped = TransformersEngine(make_tiny_model("gemma2", vocab_size=VOCABULARY), LABEL_IDS).label_logprobs(prompts)
    plain_model = make_tiny_model("gemma2", vocab_size=VOCABULARY, final_logit_softcapping=None)
    plain = TransformersEngine(plain_model, LABEL_IDS).label_logprobs(prompts)
    # All logits lie within -2 to 2, so log-odds within 4; uncapped, this model goes beyond.
    assert np.abs(capped[:, 0] - capped[:, 1]).max() <= 4
    assert np.abs(plain[:, 0] - plain[:, 1]).max() > 4


def test_bfloat16_log_odds_are_off_the_bfloat16_grid_and_near_float32(prompts):
    model = make_tiny_model("llama", vocab_size=VOCABULARY, initializer_range=0.6)
    model = model.to(torch.bfloat16)  # the same rounded weights in both types
    with torch.inference_mode():
        on_grid = [model(torch.tensor([prompt])).logits[0, -1, list(LABEL_IDS)] for prompt in prompts]
    grid_odds = torch.stack(on_grid).float().diff(dim=1).flatten().numpy()
    reference = score_slowly(make_float32(model), prompts)
    found = TransformersEngine(model, LABEL_IDS).label_logprobs(prompts)
    odds, exact = (np.diff(values, axis=1).flatten() for values in (found, reference))
    step = 2.0**-7  # of bfloat16 between 1 and 2: what its own head gives for logits of that size and more
    is_large = np.abs(torch.stack(on_grid).float().numpy()).min(axis=1) >= 1
    assert is_large.sum() >= 3
    assert np.all(grid_odds[is_large] % step == 0)
    assert np.all(np.abs(odds[is_large] / step - np.round(odds[is_large] / step)) > 0)
    # What is left is the body's rounding: about a hundredth of the size of the logits.
    assert np.abs(odds - exact).max() < 0.02 * np.abs(reference).max()


def make_float32(model):
    copy = type(model)(model.config).float().eval()
    copy.load_state_dict(model.state_dict())
    return copy


def test_close_labels_in_bfloat16_are_no_tie(prompts):
    # Two rows of the head that differ by less than bfloat16 shows in a logit near 8.
    model = make_tiny_model("llama", vocab_size=VOCABULARY).to(torch.bfloat16)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[LABEL_IDS[0]] *= 8 / head[LABEL_IDS[0]].abs().max()
        head[LABEL_IDS[0], 5] = 0
        head[LABEL_IDS[1]] = head[LABEL_IDS[0]]
        head[LABEL_IDS[1], 5] = 2**-7
    with torch.inference_mode():
        own = torch.stack([model(torch.tensor([prompt])).logits[0, -1, list(LABEL_IDS)] for prompt in prompts])
    assert (own[:, 0] == own[:, 1]).sum() >= 3  # false ties
    found = TransformersEngine(model, LABEL_IDS).label_logprobs(prompts)
    assert np.all(found[:, 0] != found[:, 1])


def test_token_limit_splits_batches_and_changes_no_number(prompts):
    widths = []

    def record(module, args, kwargs):
        widths.append(tuple(kwargs["input_ids"].shape))

    model = make_tiny_model("llama", vocab_size=VOCABULARY)
    model.register_forward_pre_hook(record, with_kwargs=True)
    together = TransformersEngine(model, LABEL_IDS).label_logprobs(prompts)
    assert widths == [(8, 90)]
    widths.clear()
    split = TransformersEngine(model, LABEL_IDS, max_batch_tokens=64).label_logprobs(prompts)
    # Longest first: 90 is beyond the limit and goes alone; 64 and 40 fill it alone; three of 17; the rest.
    assert widths == [(1, 90), (1, 64), (1, 40), (3, 17), (2, 3)]
    np.testing.assert_allclose(split, together, rtol=0, atol=1e-5)


def test_largest_batch_comes_first_so_that_memory_runs_out_at_once():
    model = make_tiny_model("llama", vocab_size=VOCABULARY)
    batches = list(TransformersEngine(model, LABEL_IDS, max_batch_tokens=20)._batches([[1] * n for n in (2, 9, 5, 4)]))
    assert batches == [[1, 2], [3, 0]]


def test_limit_on_tokens_is_the_models_positions():
    assert TransformersEngine(make_tiny_model("llama"), LABEL_IDS).max_prompt_tokens == 1024
    assert TransformersEngine(make_tiny_model("gpt2", max_position_embeddings=77), LABEL_IDS).max_prompt_tokens == 77


def test_head_runs_at_one_position_a_row(prompts):
    model = make_tiny_model("gemma", vocab_size=VOCABULARY)
    shapes = []
    engine = TransformersEngine(model, LABEL_IDS)
    model.get_output_embeddings().register_forward_hook(lambda head, args, logits: shapes.append(tuple(logits.shape)))
    engine.label_logprobs(prompts)
    assert shapes == [(len(prompts), 1, VOCABULARY)]


def test_equal_prompts_are_scored_once_and_get_the_very_same_numbers(prompts):
    widths = []
    model = make_tiny_model("llama", vocab_size=VOCABULARY)
    model.register_forward_pre_hook(
        lambda m, args, kwargs: widths.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    found = TransformersEngine(model, LABEL_IDS).label_logprobs([*prompts, *prompts])
    assert widths == [len(prompts)]
    assert np.array_equal(found[: len(prompts)], found[len(prompts) :])


def test_no_prompts_give_no_rows():
    assert TransformersEngine(make_tiny_model("llama"), LABEL_IDS).label_logprobs([]).shape == (0, 2)
