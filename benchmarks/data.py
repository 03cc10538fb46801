"""How fast and in how much memory process_pair_data.py's work runs, beside the plain way that people publish.

    python benchmarks/data.py                  # 100,000 and 400,000 generated rows; about 17 minutes on two cores
    python benchmarks/data.py --rows 2000      # the same in small, to see that it runs

The plain way is `datasets.load_dataset("json")`, `.map` of one row at a time through the published Jinja template with
`np.random` for the side, and `.to_json`; it checks nothing. Both ways read the same file, write a file, use the same
number of processes and take turns. Each measurement is a process of its own, timed after its imports; memory is
`ru_maxrss` of that process, workers apart, as it stands. The last line on stdout is one JSON object.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clean clone, without installation

# The published template, verbatim, and the prompt that goes with it.
PLAIN_TEMPLATE = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}{% else %}"
    "\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
PLAIN_PROMPT = "[CONTEXT] {context} [RESPONSE A] {response_A} [RESPONSE B] {response_B} \n"
# A chat template as models have them, for the lengths of whole training sequences.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else 'user') + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
SYLLABLES = "ka lo mi ren tus ber an dol fi gra he is jon ver sta qui pol or nen sal tra ul we xi yon ze".split()
RARE_WORDS = ("naïve", "Grüße", "世界", "Привет", "été", "🙂", "x[0]", "<b>", "#1")
BATCH = 1000


# ---- input ----------------------------------------------------------------------------------------------------------


def generate(path: str, rows: int) -> None:
    """Write standard-format rows of 1 to 1.5 KB: one to three turns, some text that is not ASCII, 1% repeats."""
    rng = random.Random(20240513)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(5000)]

    def write_text(length: int) -> str:
        text = rng.choices(words, k=length)
        if rng.random() < 0.3:
            text[rng.randrange(length)] = rng.choice(RARE_WORDS)
        return " ".join(text) + "."

    repeatable = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            if repeatable and rng.random() < 0.01:
                row = rng.choice(repeatable)
            else:
                contents = [write_text(rng.randint(5, 25)) for _ in range(rng.choice((1, 1, 3, 5)))]
                context = [
                    {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)
                ]
                row = {
                    side: [*context, {"role": "assistant", "content": write_text(rng.randint(15, 50))}]
                    for side in ("chosen", "rejected")
                }
                if number % 100 == 0:
                    repeatable.append(row)
            file.write(json.dumps({"id": str(number), "source": "generated", **row}, ensure_ascii=False) + "\n")


def generate_evaluation(path: str, rows: int = 2985) -> None:
    """Write as many rows as RewardBench has, about as long as its own, in words of their own order."""
    rng = random.Random(7)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(5000)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            lengths = {"prompt": 50, "chosen": 200, "rejected": 200}
            row = {column: " ".join(rng.choices(words, k=length)) for column, length in lengths.items()}
            file.write(json.dumps({**row, "subset": "math-prm", "id": number}) + "\n")


def train_tokenizer(data: str, folder: str) -> None:
    """Train a byte-level BPE of 8,000 tokens on the first rows and save it with a chat template."""
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    with open(data, encoding="utf-8") as file:
        texts = [message["content"] for line in islice(file, 5000) for message in json.loads(line)["chosen"]]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)


# ---- what is measured, each in a process of its own -----------------------------------------------------------------


def run_ours(
    data: str, output: str, num_proc: int, tokenizer: str | None = None, evaluation: str | None = None
) -> float:
    """Convert from file to file with every check, against evaluation data if asked; return the seconds."""
    from pair_pm.pair_conversion import ConversionOptions
    from pair_pm.pair_dataset import build_pair_dataset

    if tokenizer:
        from transformers import AutoTokenizer  # noqa: F401  not part of what is timed
    options = ConversionOptions(
        tokenizer=tokenizer,
        max_length=2048 if tokenizer else None,
        decontaminate_against=(evaluation,) if evaluation else (),
    )
    began = time.perf_counter()
    build_pair_dataset([data], output, options, num_proc=num_proc)
    return time.perf_counter() - began


def run_plain(data: str, output: str, num_proc: int, tokenizer: str) -> float:
    """Convert the plain way, without a check; return the seconds."""
    import datasets
    import numpy as np
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    plain = AutoTokenizer.from_pretrained(tokenizer)
    plain.chat_template = PLAIN_TEMPLATE

    def convert(row: dict) -> dict:
        context = plain.apply_chat_template(row["chosen"][:-1], tokenize=False)
        responses = [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
        chosen_position = np.random.randint(2)
        prompt = PLAIN_PROMPT.format(
            context=context, response_A=responses[chosen_position], response_B=responses[1 - chosen_position]
        )
        label = "AB"[chosen_position]
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]}

    workers = num_proc if num_proc > 1 else None
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache, num_proc=workers)
        rows = rows.map(convert, remove_columns=rows.column_names, num_proc=workers)
        rows.to_json(output, num_proc=workers, force_ascii=False)
        return time.perf_counter() - began


def run_tokenizer(pairs: str, tokenizer: str) -> float:
    """Tokenise whole training sequences in batches and nothing else; return the seconds."""
    from transformers import AutoTokenizer

    from pair_pm.tokens import render_chat

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    with open(pairs, encoding="utf-8") as file:
        prompts = [json.loads(line)["messages"][0]["content"] for line in file]
    texts = [render_chat(loaded, prompt, "A") for prompt in prompts]
    began = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        loaded(texts[start : start + BATCH], add_special_tokens=False)
    return time.perf_counter() - began


WORK = {
    "generate": generate,
    "generate_evaluation": generate_evaluation,
    "train_tokenizer": train_tokenizer,
    "ours": run_ours,
    "plain": run_plain,
    "tokenizer": run_tokenizer,
}


def measure(work: str, *arguments: object) -> dict[str, float]:
    """Return the seconds and the peak memory in MB of one piece of work in a fresh process.

    The process that calls this must stay small: a child's `ru_maxrss` starts at what its parent held.
    """
    command = [sys.executable, __file__, "--measure", json.dumps([work, *arguments])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# ---- the benchmark --------------------------------------------------------------------------------------------------


def compare(data: Path, rows: int, folder: Path, tokenizer: str, repeats: int) -> dict[int, float]:
    """Return the ratio of rows a second, ours over plain, by number of processes."""
    ratios = {}
    for num_proc in (1, 2):
        seconds = {"ours": [], "plain": []}
        for _ in range(repeats):
            seconds["ours"].append(measure("ours", str(data), str(folder / "ours.jsonl"), num_proc)["seconds"])
            plain = measure("plain", str(data), str(folder / "plain.jsonl"), num_proc, tokenizer)
            seconds["plain"].append(plain["seconds"])
        speeds = {way: rows / statistics.median(taken) for way, taken in seconds.items()}
        ratios[num_proc] = speeds["ours"] / speeds["plain"]
        print(f"{num_proc} processes: {speeds['ours']:,.0f} rows/s, plain {speeds['plain']:,.0f} rows/s", flush=True)
    return ratios


def decontaminate(data: Path, folder: Path, repeats: int) -> tuple[float, float]:
    """Return the ratio of rows a second with evaluation data to without, and the index's bytes an evaluation row."""
    evaluation, output = str(folder / "evaluation.jsonl"), folder / "ours.jsonl"
    measure("generate_evaluation", evaluation)
    seconds = {None: [], evaluation: []}
    for _ in range(repeats):
        for against, taken in seconds.items():
            taken.append(measure("ours", str(data), str(output), 1, None, against)["seconds"])
    held_against = json.loads((folder / "ours.summary.json").read_text())["held_against"]
    ratio = statistics.median(seconds[None]) / statistics.median(seconds[evaluation])
    return ratio, held_against["index_bytes"] / sum(held_against["rows"].values())


def main() -> int:
    """Generate the input, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of the smaller input; the larger has four times")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing; the median counts")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what `measure` starts
    arguments = parser.parse_args()
    if arguments.measure:
        work, *rest = json.loads(arguments.measure)
        seconds = WORK[work](*rest)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}))
        return 0
    rows = arguments.rows
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        small, large, tokenizer = folder / "small.jsonl", folder / "large.jsonl", str(folder / "tokenizer")
        measure("generate", str(small), rows)
        measure("generate", str(large), 4 * rows)
        measure("train_tokenizer", str(small), tokenizer)
        print(f"{small.stat().st_size / rows:,.0f} bytes a row", flush=True)
        peaks = [measure("ours", str(data), str(folder / "ours.jsonl"), 1)["peak_mb"] for data in (small, large)]
        large.unlink()
        bytes_per_row = (peaks[1] - peaks[0]) * 2**20 / (3 * rows)
        print(f"peak memory: {peaks[0]:.0f} MB, four times the rows {peaks[1]:.0f} MB, {bytes_per_row:.0f} bytes a row")
        ratios = compare(small, rows, folder, tokenizer, arguments.repeats)
        timed = {"ours": [], "tokenizer": []}
        for _ in range(arguments.repeats):
            timed["ours"].append(measure("ours", str(small), str(folder / "ours.jsonl"), 1, tokenizer)["seconds"])
            timed["tokenizer"].append(measure("tokenizer", str(folder / "ours.jsonl"), tokenizer)["seconds"])
        with (folder / "ours.jsonl").open("rb") as file:
            pairs = sum(1 for _ in file)
        decontaminated_ratio, index_bytes = decontaminate(small, folder, arguments.repeats)
    figures = {
        "rows_per_second_ratio": round(min(ratios.values()), 2),
        "peak_mb_100k": round(peaks[0]),
        "peak_mb_400k": round(peaks[1]),
        "bytes_per_row": round(bytes_per_row, 1),
        "max_length_rows_per_second": round(rows / statistics.median(timed["ours"])),
        "tokenizer_rows_per_second": round(pairs / statistics.median(timed["tokenizer"])),
        "decontaminated_ratio": round(decontaminated_ratio, 2),
        "index_bytes_per_evaluation_row": round(index_bytes),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
