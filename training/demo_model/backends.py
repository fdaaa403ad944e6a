"""Who answers: an OpenAI-compatible server, or transformers in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .cases import Case
from .chat_format import render

MAX_TOKENS = 320
Progress = Callable[[int], None]


class Server:
    """Greedy completions over HTTP, several at a time.

    The prompt goes as token ids, rendered here, and the answer comes back as plain text: so a server is asked what the
    model was trained on, whether or not it takes tools and parses their calls.
    """

    def __init__(
        self, url: str, model: str, tokenizer: Tokenizer, *, concurrency: int = 8, api_key: str | None = None
    ) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=url.rstrip("/") + "/", timeout=600, headers=headers)
        self._model, self._tokenizer, self._concurrency = model, tokenizer, concurrency

    def _ask(self, case: Case) -> str:
        body = {
            "model": self._model,
            "prompt": self._tokenizer.encode(render(case.messages, case.tools, generation_prompt=True)).ids,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        response = self._client.post("completions", json=body)
        if response.is_error:
            raise RuntimeError(f"{case.skill}: the server answered {response.status_code}: {response.text[:500]}")
        text: str = response.json()["choices"][0]["text"]
        return text

    def answers(self, asked: list[Case], progress: Progress) -> list[str]:
        """One answer a case, in order. Raises RuntimeError with the server's words if it refuses one."""
        out = []
        with ThreadPoolExecutor(self._concurrency) as pool:
            for answer in pool.map(self._ask, asked):
                out.append(answer)
                progress(1)
        return out


class Transformers:
    """Greedy generation with transformers' own Llama, in batches of like length."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self._model = model.to(self._device).eval()
        self._batch_tokens = 200_000 if self._device == "cuda" else 24_000

    def answers(self, asked: list[Case], progress: Progress) -> list[str]:
        """One answer a case, in order."""
        prompts = [self._tokenizer(render(c.messages, c.tools, generation_prompt=True))["input_ids"] for c in asked]
        # a batch runs until its longest answer ends: keep skills together, their answers are alike
        order = sorted(range(len(asked)), key=lambda i: (asked[i].skill, len(prompts[i])))
        out = [""] * len(asked)
        while order:
            skill = [i for i in order if asked[i].skill == asked[order[-1]].skill]
            size = max(1, min(len(skill), 256, self._batch_tokens // (len(prompts[order[-1]]) + MAX_TOKENS)))
            batch, order = order[-size:], order[:-size]
            for i, text in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                out[i] = text
            progress(len(batch))
        return out

    def _generate(self, prompts: list[list[int]], **sampling: Any) -> list[str]:
        torch = self._torch
        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._device)
        options = {"do_sample": False, "temperature": None, "top_p": None, **sampling}
        limit = max(1, min(MAX_TOKENS, self._model.config.max_position_embeddings - padded["input_ids"].shape[1]))
        with torch.inference_mode():
            ids = self._model.generate(**padded, max_new_tokens=limit, **options)
        texts: list[str] = self._tokenizer.batch_decode(
            ids[:, padded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts

    def sample(self, case: Case, count: int, temperature: float) -> list[str]:
        """Several sampled answers to one prompt, to be read by a person."""
        ids = self._tokenizer(render(case.messages, case.tools, generation_prompt=True))["input_ids"]
        return self._generate([ids] * count, do_sample=True, temperature=temperature, top_p=0.95)
