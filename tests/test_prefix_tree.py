"""Packing prompts so that each shared prefix stands in the sequence once."""

from hypothesis import given
from hypothesis import strategies as st

from pair_pm.engines.prefix_tree import PrefixTree, plant_tree, split_by_tokens

# Few tokens and a common beginning, so that prefixes of all lengths are shared.
PROMPTS = st.sets(
    st.builds(
        lambda start, rest: (*start, *rest),
        st.sampled_from([(), (1, 1, 1, 1), (1, 1, 1, 1, 2, 1)]),
        st.lists(st.integers(1, 2), min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=12,
).map(sorted)


def read_prompt(tree: PrefixTree, number: int) -> tuple[list[int], list[int]]:
    """Return the tokens and positions along a branch's path and its own part."""
    branch = tree.branches[number]
    places = [place for start, stop in (*branch.path, (branch.start, branch.stop)) for place in range(start, stop)]
    return [tree.tokens[place] for place in places], [tree.positions[place] for place in places]


@given(PROMPTS)
def test_each_branch_and_its_path_are_one_prompt_in_order(prompts):
    tree = plant_tree(prompts)
    for number, prompt in enumerate(prompts):
        assert read_prompt(tree, number) == (list(prompt), list(range(len(prompt))))
        assert tree.branches[number].depth == sum(stop - start for start, stop in tree.branches[number].path)
    own = [place for branch in tree.branches for place in range(branch.start, branch.stop)]
    assert own == list(range(len(tree.tokens)))


@given(PROMPTS)
def test_tokens_are_those_of_the_trie_but_for_prefixes_too_short_to_pay(prompts):
    nodes = len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})
    assert nodes <= len(plant_tree(prompts).tokens) <= nodes + 3 * (len(prompts) - 1)


@given(PROMPTS, st.integers(1, 40))
def test_runs_hold_all_prompts_in_order_within_the_limit(prompts, limit):
    runs = list(split_by_tokens(prompts, limit))
    assert [prompt for run in runs for prompt in run] == prompts
    for run, after in zip(runs, [*runs[1:], None], strict=True):
        assert len(run) == 1 or len(plant_tree(run).tokens) <= limit
        assert after is None or len(plant_tree([*run, after[0]]).tokens) > limit  # it is cut no sooner than need be


def test_both_orders_of_a_pair_by_hand():
    tree = plant_tree([(9, 8, 7, 6, 1, 2), (9, 8, 7, 6, 2, 1)])
    assert tree.tokens == [9, 8, 7, 6, 1, 2, 2, 1]
    assert tree.positions == [0, 1, 2, 3, 4, 5, 4, 5]
    assert [branch.path for branch in tree.branches] == [(), ((0, 4),)]
