"""The GPU's driver through the Triton kernel: run by test_gpu_search.py, in a process of its own.

KERNEL_DEVICE is `cpu` (with TRITON_INTERPRET=1) or `cuda`, as for kernel_reference.py. On a GPU the
steps are replayed as graphs, and half precision runs too.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from fairseq import utils
from plugin_models import build, dictionary, random_lines, randomize, source_batch

from gqa_fairseq.decoding.gpu import graphs
from gqa_fairseq.decoding.gpu.kernels import grouped_decode_attention
from gqa_fairseq.decoding.gpu.search import GpuSearch
from gqa_fairseq.decoding.search import GroupedQueryGenerator

DEVICE = torch.device(os.environ["KERNEL_DEVICE"])
VOCABULARY = dictionary()
WIDE = {"encoder_embed_dim": 128, "decoder_embed_dim": 128, "mha_ffn_embed_dim": 128}
on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")


def model_of(g: int, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = build(VOCABULARY, num_kv_heads=g, decoder_layers=1, **WIDE, **options)
    randomize(model, scale=1.5, seed=g)
    with torch.no_grad():  # some sentences end early
        model.decoder.output_projection.weight[VOCABULARY.eos()] *= 2
    return model.to(DEVICE, dtype)


def sample_of(count: int) -> dict[str, Any]:
    sample = source_batch(random_lines(count, VOCABULARY), VOCABULARY)
    return utils.move_to_cuda(sample) if DEVICE.type == "cuda" else sample


def generator_of(model: Any, beam: int, max_len: int, **options: Any) -> GroupedQueryGenerator:
    return GroupedQueryGenerator([model], VOCABULARY, beam_size=beam, max_len_b=max_len, **options)


@pytest.mark.parametrize(
    ("g", "beam", "sentences", "options"),
    [
        (1, 1, 3, {}),
        (2, 3, 2, {}),
        (8, 2, 1, {}),
        (2, 3, 2, {"decoder_window": 2, "decoder_head_dim": 32}),
    ],
)
def test_finds_what_the_cpu_path_finds(
    g: int, beam: int, sentences: int, options: dict[str, int]
) -> None:
    """In float32, against the other search in float64 on the CPU."""
    max_len = 4 if DEVICE.type == "cpu" else 60  # the interpreter takes its time
    model, sample = model_of(g, **options), sample_of(sentences)
    ours = generator_of(model, beam, max_len, driver="gpu")
    found = ours.generate([model], sample)
    driver = ours.gpu_search
    assert isinstance(driver, GpuSearch)
    assert driver.cache.attend is grouped_decode_attention
    assert driver.graphed.is_graphed == (DEVICE.type == "cuda")
    exact = model.double().cpu()
    expected = generator_of(exact, beam, max_len, driver="cpu").generate(
        [exact], utils.apply_to_sample(lambda x: x.cpu(), sample)
    )
    for a, b in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x["score"], y["score"], atol=1e-4, rtol=0)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beam", [1, 4])
def test_a_replayed_step_is_the_step(dtype: torch.dtype, beam: int) -> None:
    """Graphs over growing lengths and shrinking batches give what the same calls give."""
    model, sample = model_of(2, dtype), sample_of(40)
    found = []
    for is_graphed in (True, False):
        generator = generator_of(model, beam, 60)
        generator.generate([model], sample)  # compiles
        generator.gpu_search.graphed.is_graphed = is_graphed
        found.append(generator.generate([model], sample))
        assert generator.gpu_search.graphed.is_graphed == is_graphed
        assert any(generator.gpu_search.graphed._graphs.values())
    for a, b in zip(*found, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x["positional_scores"], y["positional_scores"])


@on_gpu
def test_graphs_are_captured_anew_when_all_were_let_go(monkeypatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 1)
    model = model_of(2, torch.bfloat16)
    generator = generator_of(model, 2, 60)
    stream = torch.cuda.current_stream()
    for count in (40, 8, 40, 8):  # the memory of the first batch serves all
        generator.generate([model], sample_of(count))
        driver = generator.gpu_search
        assert isinstance(driver, GpuSearch)
        assert driver.graphed.is_graphed
        assert torch.cuda.current_stream() == stream


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("g", [1, 8] if DEVICE.type == "cpu" else [1, 2, 4, 8])
def test_half_precision_scores_are_those_of_the_words(dtype: torch.dtype, g: int) -> None:
    """Each word's log-probability, by a full forward pass in float64 with the same weights."""
    count, max_len = (2, 4) if DEVICE.type == "cpu" else (12, 40)
    model, sample = model_of(g, dtype), sample_of(count)
    hypotheses = generator_of(model, 4, max_len, driver="gpu").generate([model], sample)
    exact = model.double().cpu()
    source = sample["net_input"]["src_tokens"].cpu()
    for row, best in enumerate(hypotheses):
        for hypothesis in best:
            words = hypothesis["tokens"][None]
            shifted = words.roll(1, 1)  # begins with </s>, as decoding does
            tokens = source[row : row + 1]
            with torch.no_grad():
                logits, _ = exact(tokens, tokens.ne(VOCABULARY.pad()).sum(1), shifted)
            expected = logits.log_softmax(-1).gather(2, words[:, :, None])[0, :, 0]
            error = (hypothesis["positional_scores"].double() - expected).abs().max()
            assert hypothesis["score"].dtype == torch.float32
            assert float(error) <= 30 * torch.finfo(dtype).eps
