"""Trains the demo model from a seed and exports it: `python -m training.demo_model.train --out DIR --minutes 9`.

Learning rate and mix of row lengths follow the share of the time (or of `--steps`) that has passed, so that a run
always ends annealed. Training and serving see the same thing: one conversation from position 0 on.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from .data import LEARN, Pool
from .export import export
from .model import Llama, Shape
from .optimizer import Muon
from .tokenizer import train_tokenizer

SEED = 8
WORKERS = {512: 6, 2048: 4, 4096: 2, 8192: 2}


def head_loss(hidden: Tensor, embeddings: Tensor, ids: Tensor, learn: Tensor) -> Tensor:
    """Mean cross-entropy over what the assistant wrote."""
    logits = F.linear(hidden[:, :-1], embeddings)
    each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    mask = learn[:, 1:].flatten().float()
    return (each * mask).sum() / mask.sum()


def length_for(progress: float, chance: float, fresh: bool) -> int:
    """The row length of a step: short ones first, the longest mostly in the second half. `fresh`: from scratch."""
    if fresh and progress < 0.2:
        return 512 if chance < 0.85 else 2048
    if fresh and progress < 0.5:
        return 512 if chance < 0.65 else 2048 if chance < 0.85 else 4096
    return 512 if chance < 0.52 else 2048 if chance < 0.7 else 4096 if chance < 0.84 else 8192


def rate_for(progress: float, step: int) -> float:
    """Warm-up over 100 steps, then constant, then linear to zero over the last 45 %."""
    return min(1.0, (step + 1) / 100, max(0.0, 1 - progress) / 0.45)


def build(arguments: argparse.Namespace, device: torch.device) -> tuple[Llama, Tokenizer]:
    """The model and its tokenizer: new, or those of `--init`."""
    torch.manual_seed(SEED)
    shape = Shape(layers=arguments.layers, hidden=arguments.hidden)
    model = Llama(shape).to(device)
    if arguments.init:
        model.load_state_dict({k: v.float() for k, v in load_file(arguments.init / "model.safetensors").items()})
        return model, Tokenizer.from_file(str(arguments.init / "tokenizer.json"))
    return model, train_tokenizer(arguments.tokenizer_conversations)


def train(model: Llama, pool: Pool, arguments: argparse.Namespace) -> None:
    """Runs until the time or the steps are over."""
    device = model.cos.device
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, arguments.rate)
    adam = torch.optim.AdamW(others, lr=arguments.rate * 0.2, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    loss_of = head_loss
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        loss_of = torch.compile(head_loss, dynamic=False)
    chance = random.Random(arguments.seed)
    begun = time.monotonic()
    step = seen = 0
    sums: dict[int, list[Tensor]] = {}
    while True:
        elapsed = time.monotonic() - begun
        progress = step / arguments.steps if arguments.steps else elapsed / (60 * arguments.minutes)
        if progress >= 1:
            break
        length = length_for(progress, chance.random(), fresh=not arguments.init)
        rows = pool.batch(length, arguments.batch_tokens // length)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            ids = (rows & (LEARN - 1)).long()
            loss = loss_of(model(ids), model.model.embed_tokens.weight, ids, (rows & LEARN) != 0)
        loss.backward()  # type: ignore[no-untyped-call]
        scale = rate_for(progress, step)
        muon.step(scale)
        for group in adam.param_groups:
            group["lr"] = arguments.rate * 0.2 * scale
        adam.step()
        adam.zero_grad()
        sums.setdefault(length, []).append(loss.detach())
        step += 1
        seen += arguments.batch_tokens
        if step % arguments.log_every == 0:
            means = "  ".join(f"{n}: {torch.stack(v).mean().item():.4f}" for n, v in sorted(sums.items()))
            elapsed = time.monotonic() - begun
            print(
                f"{elapsed:6.1f} s  step {step}  {seen / elapsed / 1e6:.2f} M tok/s  made {pool.tokens_made() / 1e6:.0f} M  rate {scale:.2f}  loss {means}",
                flush=True,
            )
            sums.clear()
    print(f"trained on {seen / 1e6:.0f} M tokens in {step} steps and {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    """Parses the command line, trains, exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this exported model")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--batch-tokens", type=int, default=131072)
    parser.add_argument("--rate", type=float, default=0.015)
    parser.add_argument("--seed", type=int, default=SEED, help="of the data")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--tokenizer-conversations", type=int, default=6000)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    model, tokenizer = build(arguments, device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    lengths = {n: max(1, round(w * arguments.workers / 14)) for n, w in WORKERS.items()}
    pool = Pool(
        tokenizer,
        lengths,
        arguments.seed,
        device,
        400_000_000 if device.type == "cuda" else 4_000_000,
        0 if arguments.init else 150,
    )
    try:
        train(model, pool, arguments)
    finally:
        pool.close()
    export(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
