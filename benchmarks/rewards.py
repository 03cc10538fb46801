"""What the rewards do to a policy: GRPO by TRL, on the CPU, with the judge of the quickstart.

    python examples/quickstart/run_demo.py      once: makes the judge
    python benchmarks/rewards.py
    python benchmarks/rewards.py --steps 20

The policy is the quickstart's base model, after some more pretraining on chosen and rejected answers alike: it answers
well and badly. It is trained on the quickstart's training questions, eight groups of eight completions a step, which
`GroupReward` compares. Before, after 20 steps and after the last one it answers 200 questions that it was not trained
on, and the judge compares each answer with one of the start policy, in both orders. The mean verdict is near 0.5 where
nothing was learned, and 0.75 where each answer is as good as the good half of the start's. It is the judge's own
opinion of what it trained: a check of the machinery, not of the quality of a policy.

The last line on stdout is one JSON object: `verdict_start`, `verdict_20`, `verdict_last` (the mean verdicts, the first
on two samples of the start policy), `deviation_in_groups` (standard deviation of a group's rewards, its mean),
`groups_that_vary` (share of all groups), `order_agreement` (share of the checked groups whose rewards order them as
the offline ranking by the same method does), `seconds_a_step`, `reward_share` (of a step's time).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples/quickstart"
GENERATIONS, GROUPS = 8, 8
COMPLETION_TOKENS = 24
HELD_OUT = 200
SPOILING_STEPS = 150

sys.path[:1] = [str(ROOT), str(QUICKSTART)]  # not this folder, whose vllm.py TRL would take for the package

from base_model import pretrain  # noqa: E402

from pair_pm import PairScorer  # noqa: E402
from pair_pm.ranking import rank  # noqa: E402
from pair_pm.rewards import GroupReward  # noqa: E402


class RecordedReward(GroupReward):
    """Keeps what it was called with, and how long it took."""

    def __call__(self, prompts, completions, **columns):
        """Return the rewards."""
        started = time.perf_counter()
        rewards = super().__call__(prompts, completions, **columns)
        self.calls = [*getattr(self, "calls", []), (prompts, completions, rewards, time.perf_counter() - started)]
        return rewards


def read_rows(path: Path) -> list[dict]:
    """Return the ordinary rows of a quickstart file, without those that test filters."""
    ordinary = ('{"id": "train', '{"id": "held')
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith(ordinary)]


def read_prompts(path: Path, count: int) -> list[list[dict]]:
    """Return the first different conversations of a quickstart file."""
    prompts = {json.dumps(row["chosen"][:-1]): row["chosen"][:-1] for row in read_rows(path)}
    return list(prompts.values())[:count]


def make_start_policy(base: Path, folder: Path):
    """Write and return the policy that is trained, and its tokenizer: the base model, taught bad answers as well."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    policy = AutoModelForCausalLM.from_pretrained(base)
    rows = read_rows(QUICKSTART / "data/preferences.jsonl")
    answered = [row[side] for row in rows for side in ("chosen", "rejected")]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in answered]
    pretrain(policy, tokenizer(texts, add_special_tokens=False)["input_ids"], seed=0, steps=SPOILING_STEPS)
    policy.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return policy, tokenizer


def sample_answers(model, tokenizer, prompts: list[list[dict]], seed: int) -> list[str]:
    """Return one answer of the policy to each prompt, drawn as training draws them."""
    import torch

    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    torch.manual_seed(seed)
    with torch.inference_mode():
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            max_new_tokens=COMPLETION_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def train(policy: Path, judge: RecordedReward, prompts: list[list[dict]], steps: int, **options: float):
    """Train with GRPO, and return the weights after 20 steps and after the last one, and the seconds it took."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    reached = []

    class Keep(TrainerCallback):
        """Keeps the weights of two steps."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            """Copy them."""
            if state.global_step in (20, steps):
                reached.append({name: weight.detach().clone() for name, weight in model.state_dict().items()})

    config = GRPOConfig(
        str(policy.parent / "run"),
        per_device_train_batch_size=GROUPS * GENERATIONS,
        num_generations=GENERATIONS,
        max_completion_length=COMPLETION_TOKENS,
        max_steps=steps,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **options,
    )
    data = Dataset.from_dict({"prompt": prompts})
    trainer = GRPOTrainer(model=str(policy), reward_funcs=judge, args=config, train_dataset=data, callbacks=[Keep()])
    started = time.perf_counter()
    trainer.train()
    return reached, time.perf_counter() - started


def check_order(scorer: PairScorer, calls: list) -> list[bool]:
    """Return for the first group of every tenth step whether it stands in the order of the offline ranking."""
    agrees = []
    for prompts, completions, rewards, _ in calls[::10]:
        members = [place for place, prompt in enumerate(prompts) if prompt == prompts[0]]
        said = {completions[place][-1]["content"]: rewards[place] for place in members}
        answers = [answer for answer in said if answer.strip()]
        order = rank(scorer, prompts[0], answers, method="circular").order
        agrees.append(order == sorted(range(len(answers)), key=lambda index: -round(said[answers[index]], 6)))
    return agrees


def main() -> None:
    """Train, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=QUICKSTART / "run/model", help="a trained preference model")
    parser.add_argument("--policy", type=Path, default=QUICKSTART / "run/prepared", help="the base model of the policy")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--beta", type=float, default=0.05, help="pull to the start policy: 0 lets it please the judge")
    arguments = parser.parse_args()
    if not (arguments.judge / "pair_pm.json").is_file():
        raise SystemExit(f"{arguments.judge}: no trained judge; python examples/quickstart/run_demo.py makes one")

    training, held_out = (
        read_prompts(QUICKSTART / f"data/{name}.jsonl", count)
        for name, count in (("preferences", 2000), ("heldout", HELD_OUT))
    )
    scorer = PairScorer.from_pretrained(str(arguments.judge))
    judge = RecordedReward(scorer)
    with tempfile.TemporaryDirectory() as folder:
        policy, tokenizer = make_start_policy(arguments.policy, Path(folder) / "start")
        starts = sample_answers(policy, tokenizer, held_out, seed=1)

        def judge_answers(name: str) -> float:
            answers = sample_answers(policy, tokenizer, held_out, seed=2)
            items = [
                item for item in zip(held_out, answers, starts, strict=True) if item[1].strip() and item[2].strip()
            ]
            verdict = statistics.mean(comparison.prob_first for comparison in scorer.compare_many(items))
            print(f"{name:14} {verdict:.3f}   {held_out[0][-1]['content']!r} -> {answers[0]!r}", flush=True)
            return verdict

        figures = {"verdict_start": judge_answers("verdict_start")}
        options = {"learning_rate": arguments.learning_rate, "beta": arguments.beta}
        reached, seconds = train(Path(folder) / "start", judge, training, arguments.steps, **options)
    for name, weights in zip(("verdict_20", "verdict_last"), (reached[0], reached[-1]), strict=True):
        policy.load_state_dict(weights)
        figures[name] = judge_answers(name)
    groups = [
        rewards[i : i + GENERATIONS] for _, _, rewards, _ in judge.calls for i in range(0, len(rewards), GENERATIONS)
    ]
    deviations = [statistics.pstdev(group) for group in groups]
    agrees = check_order(scorer, judge.calls)
    figures |= {
        "deviation_in_groups": statistics.mean(deviations),
        "groups_that_vary": statistics.mean(deviation > 1e-3 for deviation in deviations),
        "order_agreement": statistics.mean(agrees),
        "seconds_a_step": seconds / arguments.steps,
        "reward_share": sum(call[-1] for call in judge.calls) / seconds,
    }
    print(f"{len(judge.calls)} steps, {dict(judge.counts)} counted, order checked in {len(agrees)} groups")
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
