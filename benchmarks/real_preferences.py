"""Whether soft targets and the symmetry term help on real votes: ukpconvarg1, by the public commands, from scratch.

    python benchmarks/real_preferences.py                           # three seeds, two arms: an hour and more
    python benchmarks/real_preferences.py --validate --seeds 1      # on debates out of the training file, to choose by

Five people voted which of two arguments in an online debate convinces more. The test file holds three whole debates;
the recipe was chosen on other debates, taken whole out of the training file, and the test file was scored once, at the
end. Each seed makes a tiny base model of random weights; from it `process_pair_data.py`, `prepare_model.py` and axolotl
make two judges:

    soft  vote shares as targets, ties with theirs, and the symmetry term
    hard  the winner as target, ties left out, no symmetry term

and `PairScorer` scores both. Beside them stand two rules that see no order: the longer response wins, and a logistic
regression on surface features. Intervals are 95% by bootstrap over prompts, because the pairs of one prompt share
responses; the test file has only six prompts. Accuracy leaves ties out; position consistency counts them, and stands
without them under a name of its own. An arm that was scored is not trained again while recipe and data are the same,
so that a run which was broken off goes on with the arm where it stopped.

The last line on stdout is one JSON object; accuracy and consistency are the soft arm's where nothing else is said,
means over seeds, and `minutes` is what a soft arm takes from random weights to scores.

What came out on the test file, means over three seeds with their intervals (9 to 12 minutes a soft arm on two busy
cores; longer-wins has an accuracy of 0.725, the logistic regression 0.739):

                            soft                    hard                    soft minus hard
    accuracy                0.719 (0.695 to 0.737)  0.728 (0.710 to 0.748)  -0.009 (-0.027 to 0.007)
      of like length        0.581 (0.535 to 0.649)  0.621 (0.553 to 0.696)  -0.040 (-0.077 to 0.001)
    position consistency    0.806 (0.680 to 0.941)  0.583 (0.386 to 0.789)   0.223 (0.151 to 0.294)
    nll against the votes   0.646 (0.625 to 0.664)  0.742 (0.703 to 0.789)  -0.096 (-0.152 to -0.050)

Soft targets with the symmetry term are better in likelihood and consistency, with no loss of accuracy that these six
prompts could show. Both aims are missed, accuracy (0.72) by a hair and consistency (0.95) by far. On two of the three
debates consistency is 0.95 to 0.99 for the first two seeds. On the third one slot is preferred by 0.25 to 0.43 in
log-odds, for all its pairs alike, and verdicts there survive the swap in 50 to 61% of pairs: 26 prompts seem too few to
learn that no prompt should sway the slot. The validation debates of the last two tries below held no such prompt; those
of earlier tries did, with less of it.

How the recipe was found: a plain loop on one thread, scored on held-out debates (two splits, each of three whole
debates), vote shares, ties in, hidden size 64, 2 layers; consistency without ties. "LM" is pretraining steps, on
responses alone (r), on prompts in both orders (p), or on prompts with a tossed answer (pa); "pairs" are those of a
step. Chance is 0.693 in nll. The logistic regression of this file has accuracy 0.741 on split 1 and 0.729 on split 2;
longer-wins 0.719 and 0.723.

    model               vocab heads LM        lr lambda decay pairs steps split seed min accuracy consist.   bias   nll
    Llama                2048     4 -      0.003   0.1  0.01    16  1264     1    0 2.1    0.697    0.693  0.295 0.658
    no positions         2048     4 -      0.003   0.1  0.01    16  1264     1    0 2.1    0.712    0.732  0.247 0.642
    no positions         2048     4 -      0.003     1  0.01    16   505     1    0 0.8    0.673    0.330  0.002 0.693
    Llama, 1e7           2048     4 -      0.003   0.1  0.01    16  1264     1    0 2.4    0.715    0.796  0.210 0.640
    no positions         2048     4 -      0.003   0.3  0.01    16   505     1    0 1.0    0.734    0.822  0.156 0.632
    no positions          512     4 -      0.003   0.3  0.01    16   505     1    0 1.7    0.724    0.935  0.000 0.638
    no pos., hidden 32   2048     4 -      0.003   0.3  0.01    16   505     1    0 0.7    0.715    0.849  0.146 0.638
    no positions         2048     4 -      0.006     1  0.01    16   505     1    0 1.0    0.623    0.146  0.000 0.693
    no pos., init 0.12   2048     4 -      0.003     1  0.01    16   505     1    0 0.8    0.688    0.437 -0.003 0.692
    no positions         2048     1 -      0.003   0.3  0.01    16   505     1    0 0.8    0.709    0.935  0.063 0.640
    no positions         2048     1 -      0.001     1  0.01    16   400     1    0 0.7    0.658    0.000  0.026 0.693
    no pos., beta2 0.999 2048     1 -      0.003     1  0.01    16   400     1    0 0.7    0.635    0.000  0.037 0.693
    no positions         2048     1 200r   0.003     1  0.01    16   400     1    0 0.7    0.519    0.000 -0.081 0.693
    no positions          512     1 -      0.003   0.3  0.01    16   758     1    0 2.5    0.725    0.869  0.144 0.637
    no positions          512     2 250p   0.003     1  0.01    16   505     1    0 1.7    0.729    0.996  0.000 0.637
    no positions         2048     2 300p   0.003     1  0.01    16   505     1    0 0.8    0.737    0.961  0.014 0.637
    no positions          512     2 250p   0.003     1  0.01    16   482     2    1 1.5    0.695    0.222  0.002 0.693
    no positions         1024     2 300p   0.003     1  0.01    16   603     2    1 1.7    0.730    0.989  0.010 0.638
    no positions         1024     2 300pa  0.003     1  0.01    16   603     2    1 1.5    0.729    0.841  0.197 0.634
    no positions         1024     2 300pa  0.003     1  0.01    16   632     1    2 2.2    0.721    0.750  0.270 0.640
    no positions         1024     2 300p   0.003     1  0.01    16   758     1    2 2.2    0.726    0.831  0.179 0.637
    no positions         1024     2 300pa 0.0015     3  0.01    16   603     2    1 2.8    0.725    0.911  0.034 0.660
    no positions         1024     2 300pa 0.0015     3   0.1    16  1011     1    2 3.7    0.731    0.978  0.026 0.641
    the hard arm         1024     2 300pa 0.0015     0   0.1    16   825     1    2 2.1    0.722    0.630  0.716 0.687
    no positions         1024     2 300pa 0.0015     3   0.1    16   964     2    1 2.1    0.726    0.923  0.085 0.636
    no positions         2048     2 600pa  0.001     3   0.1     8  1929     2    1 1.6    0.718    0.946  0.043 0.641
    no positions         1024     2 300pa  0.001     3   0.1     8  3618     2    1 3.5    0.714    0.987  0.015 0.644
    no positions         1024     2 300pa  0.001     3   0.1     8  2528     1    0 2.5    0.725    0.995  0.000 0.642

One seed a line, and few seeds in all: differences of 0.01 in accuracy mean nothing, and the minutes, without the LM's
half to two and a half, were measured while other work ran. The last line is the recipe below.

Without pretraining nothing is learnt at weight 1 in 400 to 500 steps; the likely reason is that the symmetry term
pushes back what is learnt of a response before the slots are told apart. Pretraining on whole prompts shortens that,
but not for every seed (the line with 0.222). What is left of the slot preference is mostly one amount for all pairs of
a prompt, and larger on unseen prompts than on those of training. More and smaller steps at a lower learning rate
brought it down without more compute. Three epochs of them had an accuracy of 0.714 on split 2, earlier tries 0.725 to
0.730, hence two; the recipe itself was tried on split 1 alone, with one seed.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clean clone, without installation
DATA = ROOT.parent / "shared" / "data"

# Whole debates, so that nothing of them is trained on; chosen by their place in the alphabet, before any training.
VALIDATION_DEBATES = (
    "Debate: Evolution vs. Creation",
    "Debate: Is it better to have a lousy father or to be fatherless?",
    "Debate: Should physical education be mandatory in schools?",
)

# ---- the recipe -----------------------------------------------------------------------------------------------------

RECIPE = {
    "vocab_size": 1024,
    "model": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "no_rope_layers": [0, 0],  # 0: this layer has no rotary positions
        "initializer_range": 0.05,
    },
    "pretraining_steps": 300,
    "training": {
        "micro_batch_size": 16,  # 8 pairs in both orders
        "gradient_accumulation_steps": 1,
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "warmup_steps": 50,
        "optimizer": "adamw_torch",
        "adam_beta2": 0.99,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    },
}
ARMS = {
    "soft": {"sees_votes": True, "ties": "votes", "symmetry_weight": 3.0},
    "hard": {"sees_votes": False, "ties": "drop", "symmetry_weight": 0.0},
}

# Each one token; content cannot forge them, because `neutralise` breaks them.
FORMAT_MARKS = ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]")

LENGTH_MATCHED = 1.25  # ratio of the longer to the shorter response, in characters
UNDECIDED = 0.05
RESAMPLES = 1000


# ---- data -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def split_rows(validate: bool) -> tuple[list[dict], list[dict]]:
    """Return the rows to train on and the rows to score, no debate in both."""
    rows = read_rows(DATA / "ukpconvarg1.train.jsonl.gz")
    if not validate:
        return rows, read_rows(DATA / "ukpconvarg1.test.jsonl.gz")
    is_held_out = [prompt_of(row).split("\n")[0] in VALIDATION_DEBATES for row in rows]
    return (
        [row for row, held_out in zip(rows, is_held_out, strict=True) if not held_out],
        [row for row, held_out in zip(rows, is_held_out, strict=True) if held_out],
    )


def prompt_of(row: dict) -> str:
    """Return the first user message."""
    return row["chosen"][0]["content"]


def responses_of(row: dict) -> tuple[str, str]:
    """Return the chosen and the rejected response."""
    return row["chosen"][-1]["content"], row["rejected"][-1]["content"]


def is_tie(row: dict) -> bool:
    """Return whether the row is labelled a tie."""
    return row.get("label") == "tie"


def write_arm_rows(rows: Sequence[dict], arm: str, path: Path) -> None:
    """Write the rows as an arm sees them: without the vote shares, a winner is certain and a tie names none."""
    hidden = () if ARMS[arm]["sees_votes"] else ("prob_chosen", "votes")
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            kept = {name: value for name, value in row.items() if name not in hidden}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


# ---- rules that see no order ----------------------------------------------------------------------------------------


def longer_wins(rows: Sequence[dict]) -> np.ndarray:
    """Return 1 where the chosen response is the longer one, 0 where the other is, 0.5 where neither."""
    lengths = np.array([[len(response) for response in responses_of(row)] for row in rows])
    return (np.sign(lengths[:, 0] - lengths[:, 1]) + 1) / 2


def measure_surface(text: str) -> list[float]:
    """Return 14 features of a response that say nothing of its sense."""
    words = re.findall(r"[A-Za-z']+", text)
    lowered, count = {word.lower() for word in words}, max(1, len(words))
    return [
        *(len(text), math.log1p(len(text)), len(words), math.sqrt(len(words))),
        *(len([sentence for sentence in re.split(r"[.!?]+", text) if sentence.strip()]), len(lowered)),
        *(sum(map(len, words)) / count, len(lowered) / count, sum(len(word) >= 7 for word in words) / count),
        *(text.count(mark) for mark in ",!?"),
        *(sum(map(str.isdigit, text)), sum(map(str.isupper, text)) / max(1, len(text))),
    ]


def fit_logistic(train: Sequence[dict], test: Sequence[dict]) -> np.ndarray:
    """Return P(chosen wins) for the test rows from a regression on feature differences of the training rows."""
    from sklearn.linear_model import LogisticRegression

    def differences(rows: Iterable[dict]) -> np.ndarray:
        return np.array([np.subtract(*map(measure_surface, responses_of(row))) for row in rows])

    features = differences(row for row in train if not is_tie(row))
    scale = features.std(axis=0)
    # Each pair both ways round, so that there is a class to tell from.
    model = LogisticRegression(fit_intercept=False, max_iter=2000)
    model.fit(np.vstack([features, -features]) / scale, np.repeat([1, 0], len(features)))
    return model.predict_proba(differences(test) / scale)[:, 1]


# ---- the base model -------------------------------------------------------------------------------------------------


def write_base_model(rows: Sequence[dict], folder: Path, seed: int) -> None:
    """Save a tokenizer trained on the prompts, and a tiny model that was pretrained on them for a minute.

    As a language model it must know at the end of a response whether `[RESPONSE B]` follows or the prompt ends: it
    learns in which slot it reads. Without that the symmetry term pushes back everything that is learnt of a response
    before the slots are told apart, and at weight 1 training does not start for five hundred steps.
    """
    sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
    from base_model import pretrain, train_tokenizer

    from pair_pm.tokens import PromptEncoder

    prompts = [prompt for row in rows for prompt in render_rows(row)]
    # A response stands in thirty rows: every seventh row shows all of them.
    texts = (f"user\n\n{prompt}assistant\n\nA" for prompt in prompts[::14])
    tokenizer = train_tokenizer(texts, RECIPE["vocab_size"], FORMAT_MARKS)
    model = build_model(tokenizer, seed)
    pretrain(model, answer_at_random(PromptEncoder(tokenizer), prompts, seed), seed, RECIPE["pretraining_steps"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def render_rows(row: dict) -> tuple[str, str]:
    """Return a row's prompts in both orders."""
    from pair_pm.scoring import render_both_orders

    return render_both_orders(row["chosen"][:-1], *responses_of(row))


def answer_at_random(encoder, prompts: Sequence[str], seed: int) -> list[list[int]]:
    """Return the ids of the prompts, each with "A" or "B" by the toss of a coin.

    What follows a prompt is then known, and which of the two is not: training starts without the jolt of learning the
    answer's form, which would shake up what the model has just learnt.
    """
    draw = random.Random(seed)
    return [[*ids, draw.choice(encoder.labels.label_ids)] for ids in encoder.encode(prompts)]


def build_model(tokenizer, seed: int):
    """Return a model of random weights that has no positions, so that both responses are read alike.

    A small vocabulary leaves no word that names one debate alone, so the judge has little to learn by heart.
    """
    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    torch.manual_seed(seed)
    config = SmolLM3Config(
        **RECIPE["model"],
        vocab_size=len(tokenizer),
        use_sliding_window=False,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    return SmolLM3ForCausalLM(config)


# ---- the public commands --------------------------------------------------------------------------------------------


def run_command(*command: object) -> None:
    """Run a command in the repository; its output goes to stderr, because stdout is data."""
    print("$", *command, file=sys.stderr, flush=True)
    subprocess.run([str(part) for part in command], cwd=ROOT, stdout=sys.stderr, check=True)


def write_config(arm: str, seed: int, pairs: Path, base: Path, folder: Path) -> Path:
    """Write the axolotl config of an arm, and return its path."""
    import yaml

    config = {
        "base_model": str(base),
        "plugins": ["pair_pm.training.PairPMPlugin"],
        "datasets": [{"path": str(pairs), "ds_type": "json", "type": "pair_pm.pair_rows"}],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(folder / "tokenized"),
        "dataset_num_proc": 1,
        "sequence_len": 2048,
        "excess_length_strategy": "drop",
        "sample_packing": False,
        **RECIPE["training"],
        "symmetry_weight": ARMS[arm]["symmetry_weight"],
        "seed": seed,
        **{"bf16": False, "fp16": False, "tf32": False, "attn_implementation": "sdpa"},
        **{"dataloader_num_workers": 0, "dataloader_pin_memory": False},
        **{"output_dir": str(folder / "model"), "save_strategy": "epoch", "save_only_model": True},
        **{"logging_steps": 25, "wandb_mode": "disabled"},
    }
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def train_arm(rows: Sequence[dict], arm: str, seed: int, folder: Path) -> None:
    """Make an arm's judge from a seed's random weights, by the public commands alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_arm_rows(rows, arm, folder / "rows.jsonl")
    write_base_model(rows, folder / "base", seed)
    data = ("--dataset", folder / "rows.jsonl", "--output", folder / "pairs.jsonl", "--both-orders")
    run_command(sys.executable, "process_pair_data.py", *data, "--ties", ARMS[arm]["ties"])
    run_command(sys.executable, "prepare_model.py", "--model", folder / "base", "--output", folder / "prepared")
    config = write_config(arm, seed, folder / "pairs.jsonl", folder / "prepared", folder)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1)
    run_command(*torchrun, "-m", "axolotl.cli.train", config)


def score_rows(model: Path, rows: Sequence[dict]) -> np.ndarray:
    """Return P(chosen wins) with the chosen response in slot A and in slot B, shape (rows, 2)."""
    from tqdm import tqdm

    from pair_pm import PairScorer

    scorer, found = PairScorer.from_pretrained(str(model)), []
    with tqdm(total=len(rows), unit=" pairs", desc="scoring", disable=None) as progress:
        for start in range(0, len(rows), 256):
            items = [(row["chosen"][:-1], *responses_of(row)) for row in rows[start : start + 256]]
            found += [(c.prob_first_in_a, c.prob_first_in_b) for c in scorer.compare_many(items)]
            progress.update(len(items))
    return np.array(found)


def judge(train: Sequence[dict], test: Sequence[dict], arm: str, seed: int, folder: Path) -> tuple[np.ndarray, float]:
    """Return an arm's probabilities for the test rows, and the minutes it took; both are kept in its folder."""
    kept, digest = folder / "scores.json", digest_arm(train, test, arm, seed)
    scores = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if scores.get("digest") != digest:
        began = time.monotonic()
        train_arm(train, arm, seed, folder)
        probabilities = score_rows(folder / "model", test).tolist()
        scores = {"digest": digest, "minutes": (time.monotonic() - began) / 60, "probabilities": probabilities}
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(scores), encoding="utf-8")
        unfinished.replace(kept)
    return np.array(scores["probabilities"]), scores["minutes"]


def digest_arm(train: Sequence[dict], test: Sequence[dict], arm: str, seed: int) -> str:
    """Return a digest of all that a run of an arm depends on, the program's own code apart."""
    parts = [RECIPE, FORMAT_MARKS, ARMS[arm], seed, train, test]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---- statistics -----------------------------------------------------------------------------------------------------

# Each is a mean over rows, so a row's part in it is computed once, and a bootstrap draws parts. NaN: not counted.


def verdict_parts(rows: Sequence[dict], prob_chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return each row's part in what is measured of the probability that the chosen response wins."""
    ties = np.array([is_tie(row) for row in rows])
    lengths = np.array([[len(response) for response in responses_of(row)] for row in rows])
    right = np.where(ties, np.nan, (np.sign(prob_chosen - 0.5) + 1) / 2)
    is_matched = lengths.max(axis=1) < LENGTH_MATCHED * lengths.min(axis=1)
    return {"accuracy": right, "length_matched_accuracy": np.where(is_matched, right, np.nan)}


def judge_parts(rows: Sequence[dict], in_a: np.ndarray, in_b: np.ndarray) -> dict[str, np.ndarray]:
    """Return each row's part in what is measured of a judge.

    Args:
        rows: The pairs.
        in_a: P(the chosen response wins) when it stands in slot A, shape (rows,).
        in_b: The same when it stands in slot B.
    """
    prob_chosen = (in_a + in_b) / 2
    votes = np.array([row["prob_chosen"] for row in rows])
    ties = np.array([is_tie(row) for row in rows])
    survives_swap = (np.sign(in_a - 0.5) == np.sign(in_b - 0.5)).astype(float)
    safe = np.clip(prob_chosen, 1e-9, 1 - 1e-9)

    def log_odds(p: np.ndarray) -> np.ndarray:
        return np.log(np.clip(p, 1e-9, 1)) - np.log(np.clip(1 - p, 1e-9, 1))

    return {
        **verdict_parts(rows, prob_chosen),
        "position_consistency": survives_swap,
        "consistency_without_ties": np.where(ties, np.nan, survives_swap),
        "order_bias": (log_odds(in_a) - log_odds(in_b)) / 2,  # both terms are log-odds of slot A
        "undecided": (np.abs(prob_chosen - 0.5) < UNDECIDED).astype(float),
        "nll_votes": -(votes * np.log(safe) + (1 - votes) * np.log(1 - safe)),
    }


def average_with_interval(parts: np.ndarray, prompts: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean of the parts that count and the 95% interval of it, by bootstrap over prompts."""
    names = sorted(set(prompts))
    place = np.array([names.index(prompt) for prompt in prompts])
    counts = ~np.isnan(parts)
    sums = np.bincount(place, np.where(counts, parts, 0.0), minlength=len(names))
    sizes = np.bincount(place, counts, minlength=len(names))
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    return sums.sum() / sizes.sum(), *np.percentile(means, (2.5, 97.5))


def print_statistics(title: str, parts: dict[str, np.ndarray], prompts: Sequence[str]) -> dict[str, float]:
    """Print each mean with its interval, and return the means by name."""
    print(f"\n{title}")
    means = {}
    for name, of_rows in parts.items():
        means[name], low, high = average_with_interval(of_rows, prompts)
        print(f"  {name:<26}{means[name]:>8.3f}  ({low:.3f} to {high:.3f})", flush=True)
    return means


# ---- the benchmark --------------------------------------------------------------------------------------------------


def measure_rules(train: Sequence[dict], test: Sequence[dict], prompts: Sequence[str]) -> dict[str, float]:
    """Print what the two rules reach, and return their accuracies."""
    rules: dict[str, Callable[[], np.ndarray]] = {
        "longer_wins": lambda: longer_wins(test),
        "logistic": lambda: fit_logistic(train, test),
    }
    return {
        name: print_statistics(name, verdict_parts(test, rule()), prompts)["accuracy"] for name, rule in rules.items()
    }


def measure_arm(
    arm: str, train: Sequence[dict], test: Sequence[dict], seeds: int, work_folder: Path
) -> tuple[dict[str, np.ndarray], float]:
    """Train and score an arm with each seed; return each row's parts, means over seeds, and the median of minutes."""
    prompts, parts, minutes = [prompt_of(row) for row in test], [], []
    for seed in range(seeds):
        probabilities, taken = judge(train, test, arm, seed, work_folder / f"{arm}-{seed}")
        parts.append(judge_parts(test, *probabilities.T))
        minutes.append(taken)
        print_statistics(f"{arm}, seed {seed}, {taken:.1f} minutes", parts[-1], prompts)
    mean_parts = {name: np.mean([of_seed[name] for of_seed in parts], axis=0) for name in parts[0]}
    return mean_parts, statistics.median(minutes)


def main() -> int:
    """Train what is not trained yet, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validate", action="store_true", help="score debates of the training file, not the test file")
    parser.add_argument("--work-folder", type=Path, default=ROOT / "benchmarks" / "real_preferences_run")
    arguments = parser.parse_args()
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # so small a model is slower on two threads than on one

    train, test = split_rows(arguments.validate)
    prompts = [prompt_of(row) for row in test]
    work_folder = arguments.work_folder.resolve() / ("validation" if arguments.validate else "test")
    figures = measure_rules(train, test, prompts)
    measured = {arm: measure_arm(arm, train, test, arguments.seeds, work_folder) for arm in ARMS}
    (soft_parts, minutes), (hard_parts, _) = measured["soft"], measured["hard"]
    soft = print_statistics(f"soft, {arguments.seeds} seeds", soft_parts, prompts)
    hard = print_statistics(f"hard, {arguments.seeds} seeds", hard_parts, prompts)
    gain = {name: soft_parts[name] - hard_parts[name] for name in soft_parts}
    print_statistics("soft minus hard, on the same prompts", gain, prompts)
    figures |= {name: soft[name] for name in ("accuracy", "length_matched_accuracy", "position_consistency")}
    figures |= {"accuracy_hard": hard["accuracy"], "position_consistency_hard": hard["position_consistency"]}
    figures |= {"nll_votes_soft": soft["nll_votes"], "nll_votes_hard": hard["nll_votes"], "minutes": minutes}
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
