"""The memory bill: numbers worked out by hand, and what is refused."""

from dataclasses import replace

import pytest

from octavo_common.memory import (
    DoesNotFit,
    MeasuredMemory,
    MemoryLimits,
    context_length,
    default_batched_tokens,
    human_bytes,
    memory_bill,
)
from octavo_common.model_config import ModelConfig
from octavo_common.rope_config import RopeScaling

MIB, GIB = 2**20, 2**30

# Llama 3.1 8B: 8,030,261,248 parameters, 128 KiB of KV cache per token in 16 bits.
LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    hidden_act="silu",
    tie_word_embeddings=False,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_window=(None,) * 32,
    dtype="bfloat16",
    rope=RopeScaling(theta=500_000.0, kind="llama3", factor=8.0, original_max_position_embeddings=8192),
)
GPU = MemoryLimits(device="cuda", dtype="bfloat16", total_bytes=80 * GIB)
CPU = MemoryLimits(device="cpu", dtype="float32")


def test_an_8b_model_on_a_gpu_of_80_gib_is_billed_to_the_byte() -> None:
    bill = memory_bill(LLAMA_8B, GPU)
    assert bill.weights_bytes == 2 * 8_030_261_248
    assert bill.kv_bytes_per_token == 128 * 1024
    left = int(80 * GIB * 0.9) - bill.weights_bytes - bill.workspace_bytes
    assert bill.num_blocks == left // (16 * 128 * 1024)
    assert bill.budget_bytes == 72 * GIB
    assert bill.kv_cache_bytes + bill.weights_bytes + bill.workspace_bytes <= 72 * GIB
    assert bill.max_model_len == 131_072
    assert bill.full_length_requests == pytest.approx(bill.kv_cache_tokens / 131_072, rel=1e-3)
    assert bill.warnings == ()


def test_on_the_cpu_the_cache_is_one_gib_at_most() -> None:
    bill = memory_bill(LLAMA_8B, CPU)
    assert bill.kv_cache_bytes == GIB  # 256 KiB a token in float32
    assert bill.max_model_len == 4096
    (warning,) = bill.warnings
    assert "131072" in warning and "4096" in warning and "--max-model-len" in warning


def test_on_the_cpu_the_cache_is_no_larger_than_all_requests_need() -> None:
    small = replace(LLAMA_8B, num_layers=2, max_position_embeddings=100)
    bill = memory_bill(small, replace(CPU, max_num_seqs=3))
    assert bill.num_blocks == 3 * 7  # 100 tokens are 6 pages and a quarter
    assert bill.full_length_requests == 3.0
    assert bill.max_model_len == 100 and bill.warnings == ()


def test_a_single_request_whose_length_is_no_multiple_of_the_page_fits() -> None:
    bill = memory_bill(LLAMA_8B, replace(CPU, max_num_seqs=1, max_model_len=1001))
    assert (bill.num_blocks, bill.max_model_len) == (63, 1001)


def test_pages_asked_for_win_over_bytes_and_bytes_over_the_default() -> None:
    assert memory_bill(LLAMA_8B, replace(CPU, num_gpu_blocks_override=7, kv_cache_memory_bytes=GIB)).num_blocks == 7
    assert memory_bill(LLAMA_8B, replace(CPU, kv_cache_memory_bytes=3 * GIB)).kv_cache_bytes == 3 * GIB
    assert memory_bill(LLAMA_8B, replace(GPU, kv_cache_memory_bytes=3 * GIB)).kv_cache_bytes == 3 * GIB
    assert memory_bill(LLAMA_8B, replace(GPU, num_gpu_blocks_override=9000)).num_blocks == 9000


def test_what_was_measured_stands_in_the_place_of_what_was_estimated() -> None:
    bill = memory_bill(LLAMA_8B, GPU, MeasuredMemory(17 * GIB, 3 * GIB))
    assert (bill.weights_bytes, bill.workspace_bytes) == (17 * GIB, 3 * GIB)
    assert bill.num_blocks == (72 - 20) * GIB // (16 * 128 * 1024)
    assert dict(bill.rows())["workspace (measured)"] == "3.0 GiB"
    assert "workspace (estimate)" in dict(memory_bill(LLAMA_8B, GPU).rows())
    with pytest.raises(DoesNotFit, match=r"room for 0 B"):
        memory_bill(LLAMA_8B, GPU, MeasuredMemory(17 * GIB, 60 * GIB))


@pytest.mark.parametrize(
    ("limits", "swap"),
    [
        (GPU, 4 * GIB),
        (replace(GPU, host_bytes=10 * GIB), 10 * GIB // 4),
        (replace(GPU, host_bytes=100 * GIB), 4 * GIB),
        (replace(GPU, swap_space=0.0, host_bytes=GIB), 0),
        (replace(GPU, swap_space=0.25, host_bytes=GIB), GIB // 4),
        (replace(GPU, swap_space=20.0, host_bytes=20 * GIB), 20 * GIB),
        (CPU, 0),
        (replace(CPU, swap_space=1.5), 3 * GIB // 2),
    ],
)
def test_the_swap_space_is_as_asked_or_4_gib_of_what_the_host_of_a_gpu_has(limits: MemoryLimits, swap: int) -> None:
    bill = memory_bill(LLAMA_8B, limits)
    assert bill.swap_bytes == swap
    assert bill.num_host_blocks == swap // bill.page_bytes
    assert dict(bill.rows())["swap space on the host"] == human_bytes(swap)
    assert f"swap space on the host            {human_bytes(swap)}" in bill.table()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            replace(CPU, max_model_len=8192),
            ["8192", "2.0 GiB", "1.0 GiB", "4096", f"--kv-cache-memory-bytes to {2 * GIB}"],
        ),
        (
            replace(CPU, max_model_len=8192, num_gpu_blocks_override=10),
            ["160 tokens", "--num-gpu-blocks-override to 512"],
        ),
        (replace(GPU, total_bytes=24 * GIB, max_model_len=131_072), ["16.0 GiB", "--gpu-memory-utilization"]),
        (replace(GPU, total_bytes=16 * GIB), ["0 tokens", "GPU with more memory"]),
        (replace(CPU, max_model_len=200_000), ["--max-model-len 200000", "131072 tokens"]),
        (replace(GPU, swap_space=8.0, host_bytes=5 * GIB), ["--swap-space 8", "5.0 GiB", "5.00 or less"]),
        (replace(GPU, swap_space=0.001), ["--swap-space 0.001", "2.0 MiB", "0.001953"]),
        (replace(GPU, swap_space=0.0, disk_cache=True), ["--disk-cache-dir", "--swap-space above 0"]),
        (replace(GPU, swap_space=0.004, disk_cache=True), ["--disk-cache-dir", "6.0 MiB", "0.005859 or more"]),
        (replace(CPU, preemption_mode="swap"), ["--preemption-mode swap", "--swap-space above 0"]),
        (replace(GPU, swap_space=0.0, preemption_mode="swap"), ["--preemption-mode swap", "--swap-space above 0"]),
        (
            replace(CPU, kv_cache_memory_bytes=1000),
            ["a page of 16 tokens", f"--kv-cache-memory-bytes to {4 * MIB} or more"],
        ),
        (replace(CPU, disk_cache=True), ["--disk-cache-dir", "--swap-space above 0"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers_and_the_flags(limits: MemoryLimits, words: list[str]) -> None:
    with pytest.raises(DoesNotFit) as caught:
        memory_bill(LLAMA_8B, limits)
    assert all(word in str(caught.value) for word in words), caught.value


def test_following_the_advice_of_a_refusal_works() -> None:
    memory_bill(LLAMA_8B, replace(CPU, max_model_len=8192, kv_cache_memory_bytes=2 * GIB))
    memory_bill(LLAMA_8B, replace(CPU, max_model_len=8192, num_gpu_blocks_override=512))
    memory_bill(LLAMA_8B, replace(CPU, max_model_len=4096))
    assert memory_bill(LLAMA_8B, replace(CPU, kv_cache_memory_bytes=4 * MIB)).max_model_len == 16
    with pytest.raises(DoesNotFit):
        memory_bill(LLAMA_8B, replace(CPU, kv_cache_memory_bytes=4 * MIB - 1))
    assert memory_bill(LLAMA_8B, replace(GPU, swap_space=0.00586, disk_cache=True)).num_host_blocks == 1


def test_with_a_disk_the_pages_that_only_pass_through_host_memory_are_told_apart() -> None:
    bill = memory_bill(LLAMA_8B, replace(GPU, swap_space=1.0, disk_cache=True))
    assert bill.num_host_blocks + bill.num_spare_blocks == GIB // bill.page_bytes
    rows = dict(bill.rows())
    assert rows["pages in swap space"] == f"{bill.num_host_blocks:,}" != f"{GIB // bill.page_bytes:,}"
    assert rows["pages on their way to the disk"] == f"{bill.num_spare_blocks:,} more"
    assert "pages on their way to the disk" not in dict(memory_bill(LLAMA_8B, GPU).rows())


def test_more_than_the_gpu_allows_is_served_as_asked_but_warned_of() -> None:
    (warning,) = memory_bill(LLAMA_8B, replace(GPU, num_gpu_blocks_override=40_000)).warnings
    assert "--gpu-memory-utilization" in warning and "72.0 GiB" in warning


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (RopeScaling(), 32_768),
        (RopeScaling(kind="llama3", factor=8.0, original_max_position_embeddings=8192), 32_768),
        (RopeScaling(kind="linear", factor=2.0), 65_536),
        (RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=32_768), 131_072),
        (RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=8192), 32_768),
    ],
)
def test_the_context_is_as_long_as_the_rotary_embedding_reaches(rope: RopeScaling, length: int) -> None:
    assert context_length(replace(LLAMA_8B, max_position_embeddings=32_768, rope=rope)) == length


@pytest.mark.parametrize(
    ("gpu_bytes", "parameters", "tokens"),
    [(None, 8e9, 512), (80 * GIB, 8e9, 8192), (80 * GIB, 0.6e9, 2048), (24 * GIB, 8e9, 2048)],
)
def test_long_steps_are_for_large_models_on_large_gpus(gpu_bytes: int | None, parameters: float, tokens: int) -> None:
    assert default_batched_tokens(gpu_bytes, int(parameters)) == tokens


def test_the_workspace_grows_with_what_a_step_may_hold() -> None:
    base = memory_bill(LLAMA_8B, GPU).workspace_bytes
    assert memory_bill(LLAMA_8B, replace(GPU, max_num_batched_tokens=8192)).workspace_bytes > base
    assert memory_bill(LLAMA_8B, replace(GPU, max_num_seqs=512)).workspace_bytes > base


def test_the_table_says_everything_in_units_people_read() -> None:
    rows = dict(memory_bill(LLAMA_8B, GPU).rows())
    assert rows["memory"] == "80.0 GiB" and rows["weights"] == "15.0 GiB" and rows["KV cache per token"] == "128.0 KiB"
    assert "memory" not in dict(memory_bill(LLAMA_8B, CPU).rows())
    assert [human_bytes(count) for count in (0, 1023, 1536, 5 * MIB, 3000 * GIB)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3,000.0 GiB",
    ]
