"""Who answers: an OpenAI-compatible server, or transformers in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .cases import Case
from .chat_format import assistant_text, render

MAX_TOKENS = 320
Progress = Callable[[int], None]


def _as_sent(case: Case) -> list[dict[str, Any]]:
    """The messages as the OpenAI API wants them: call ids, arguments as a string."""
    sent = []
    for message in case.messages:
        message = dict(message)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])},
                }
                for i, c in enumerate(calls)
            ]
        if message["role"] == "tool":
            message["tool_call_id"] = "call_0"
        sent.append(message)
    return sent


class Server:
    """Greedy chat completions over HTTP, several at a time."""

    def __init__(self, url: str, model: str, concurrency: int, api_key: str | None = None) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=url.rstrip("/") + "/", timeout=600, headers=headers)
        self._model, self._concurrency = model, concurrency

    def _ask(self, case: Case) -> str:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _as_sent(case),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        if case.tools:
            body["tools"] = case.tools
        response = self._client.post("chat/completions", json=body)
        response.raise_for_status()
        message = response.json()["choices"][0]["message"]
        calls = [
            {"function": {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}}
            for c in message.get("tool_calls") or []
        ]
        return assistant_text({"content": message.get("content") or "", "tool_calls": calls})

    def answers(self, asked: list[Case], progress: Progress) -> list[str]:
        """One answer a case, in order."""
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
