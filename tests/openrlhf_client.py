"""What OpenRLHF sends to a remote reward model, and what becomes of the answer, in our own words.

Read in the repository OpenRLHF/OpenRLHF:
- openrlhf/utils/agent.py at 04655bc3 (SingleTurnAgentExecutor; with several URLs all but the first get empty lists);
- what was merged into it in September 2026: pull request 1325 (empty lists are not sent any more; its
  tests/test_agent.py at 50510407) and 1329 (URLs take turns from call to call);
- openrlhf/trainer/ppo_utils/samples_generator.py at 03912e47: the answer's values become tensors;
- openrlhf/utils/remote_rm_utils.py at 9b8641c1: the client before agents, one request for a whole batch.

aiohttp and requests build the bytes here as they do there.
"""

import asyncio
import itertools
from collections.abc import Sequence


class OpenRLHFClient:
    """Asks reward servers as a rollout worker does.

    Args:
        urls: With `user:password@` before the host they carry a key, as Basic authorization.
        sends_empty_lists: As the client did until September 2026.
        tries: Whatever the status of an answer is, the client asks again, 5 times in all.
        pause_s: Between tries: 1.
    """

    def __init__(self, urls: Sequence[str], sends_empty_lists: bool = False, tries: int = 5, pause_s: float = 1.0):
        self.urls = urls
        self.sends_empty_lists = sends_empty_lists
        self.tries = tries
        self.pause_s = pause_s
        self._next_urls = itertools.cycle(urls)

    async def reward_sample(self, tokenizer, prompt: str, response_ids: Sequence[int], label="") -> dict:
        """Return the tensors that become of the first server's answer for one sample.

        Args:
            tokenizer: The policy's.
            prompt: As its template rendered it.
            response_ids: Generated; the token that ended the turn is one of them.
            label: The data set's column of --data.label_key, whatever it holds; "" without that flag.
        """
        answers = await self.fetch_rewards([make_query(tokenizer, prompt, response_ids)], [prompt], [label])
        return read_answer(answers[0])

    async def fetch_rewards(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence) -> list[dict]:
        """Return the JSON of all answers; a batch is spread over the servers."""
        size = -(-len(queries) // len(self.urls))
        shards = [slice(index * size, (index + 1) * size) for index in range(len(self.urls))]
        bodies = [{"query": queries[s], "prompts": prompts[s], "labels": labels[s]} for s in shards]
        if self.sends_empty_lists:
            asked = zip(self.urls, bodies, strict=True)
        else:
            asked = [(next(self._next_urls), body) for body in bodies if body["query"]]
        return await asyncio.gather(*(self._post(url, body) for url, body in asked))

    async def _post(self, url: str, body: dict) -> dict:
        import aiohttp

        for _ in range(self.tries):
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as session,
                    session.post(url, json=body) as response,
                ):
                    response.raise_for_status()
                    return await response.json()
            except aiohttp.ClientError as error:
                last = error  # it holds the status, not the body: what the server says reaches nobody
            await asyncio.sleep(self.pause_s)
        raise RuntimeError(f"no reward in {self.tries} tries") from last


def make_query(tokenizer, prompt: str, response_ids: Sequence[int]) -> str:
    """Return what prompt and response decode to: a prompt need not come back from its tokens as it was."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return tokenizer.decode([*prompt_ids, *response_ids], skip_special_tokens=False)


def read_answer(answer: dict) -> dict:
    """Return the tensors of an experience; whatever is no number, or no list of numbers, fails here."""
    import torch

    rewards, scores = answer["rewards"], answer.get("scores")
    values = {"rewards": rewards, "scores": rewards if scores is None else scores, **(answer.get("extra_logs") or {})}
    tensors = {name: torch.tensor([value]) for name, value in values.items()}
    assert tensors["scores"][0].numel() == 1, answer  # dynamic filtering takes its item()
    return tensors


def post_batch(url: str, queries: Sequence[str], prompts: Sequence[str], labels: Sequence) -> dict:
    """Return the JSON that a server answers to the client before agents."""
    import requests

    body = {"query": queries, "prompts": prompts, "labels": labels}
    response = requests.post(url=url, json=body, headers={"Content-Type": "application/json"}, timeout=180)
    response.raise_for_status()
    return response.json()
