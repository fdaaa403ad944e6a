"""The last layer computes the tokens whose hidden states are wanted, and those alone."""

import pytest
import torch

from octavo_common.model_config import read_model_config
from octavo_server.worker.models.decoder import Decoder, load_decoder
from paged_loop import PagedLoop, Sequence
from tiny_models import config_json, write_checkpoint


@pytest.fixture(scope="module", params=["Qwen3ForCausalLM", "Qwen2ForCausalLM"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, config_json(request.param))
    return load_decoder(folder, read_model_config(folder), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("wanted", [[4], [8, 0, 4], []])
def test_rows_are_those_of_the_whole_pass_and_all_keys_are_stored(decoder: Decoder, wanted: list[int]) -> None:
    loops = [PagedLoop(decoder, num_blocks=16, block_size=8) for _ in range(2)]
    batches = [loop._forward_batch([(Sequence(), [1, 2, 3, 4, 5]), (Sequence(), [9, 8, 7, 6])]) for loop in loops]
    rows = torch.tensor(wanted, dtype=torch.int64)
    whole = decoder.forward(batches[0], loops[0].kv_cache)
    found = decoder.forward(batches[1], loops[1].kv_cache, rows=rows)
    torch.testing.assert_close(found, whole[rows], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(loops[1].kv_cache, loops[0].kv_cache, strict=True):
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), equal_nan=True)
