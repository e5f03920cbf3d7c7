"""Speed and memory of one job at fixed shapes, in a process that does nothing else.

    python -m experiments.job_benchmark outputs/runs/quickstart/mqa-seed1-0123456789ab

reads the job's config and writes benchmark.json: decoding, encoder and decoder apart, and training
updates. Work is warmed up, every raw sample is kept, and the tokens produced are counted: lengths
are forced, whatever comes out (Shazeer 2019, section 4.3, fixes lengths as well).
"""

import resource
import statistics
import sys
from pathlib import Path
from typing import Literal

import msgspec
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import DictConfig
from torch import Tensor

from experiments.config import SuiteConfig
from experiments.engines import TimedModel
from experiments.errors import ExperimentError
from experiments.evaluate import GENERATORS, load_trained
from experiments.layout import DataFolder, JobFolder, data_folder, run_on_job
from experiments.machine import now
from experiments.record_parts import (
    Benchmark,
    MemoryKind,
    Timing,
    TrainingTiming,
    median_us_per_token,
    search_name,
)
from experiments.stage import max_rss_bytes
from experiments.storage import write_json
from experiments.train import train_command
from gqa_fairseq.attention import cache_bytes
from gqa_fairseq.decoding.cpu.cache import DecoderCache
from gqa_fairseq.decoding.cpu.native import operators_name
from gqa_fairseq.decoding.gpu.cache import GpuCache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINING_SHAPE = (128, 128)


def benchmark(job: JobFolder) -> None:
    """Write the job's benchmark.json; raises ExperimentError when there is nothing to time."""
    config = job.read_config()
    data = data_folder(config)
    needed = max(max(shape) for shape in [*config.benchmark.shapes, TRAINING_SHAPE])
    weights: Literal["trained", "random"]
    if needed <= config.model.max_positions and job.trained.exists():
        weights = "trained"
        model, task = load_trained(job, data)
    else:
        # Time does not depend on the weights; positions that were never trained have none.
        weights = "random"
        longer = msgspec.structs.replace(
            config.model, max_positions=max(needed, config.model.max_positions)
        )
        config = msgspec.structs.replace(config, model=longer)
        model, task = _random_model(config, data)
    device = torch.device(config.hardware.device)
    model.to(device=device, dtype=DTYPES[config.hardware.precision]).eval()
    timings = [
        time_decoding(model, task, config, source, target, beam)
        for source, target in config.benchmark.shapes
        for beam in (1, config.decode.beam)
    ]
    peak, kind = _peak_memory(device)  # before training: decoding is what is compared
    training = time_training(model, task, config, data)
    result = Benchmark(
        device=config.hardware.device,
        precision=config.hardware.precision,
        threads=torch.get_num_threads(),
        operators=operators_name(next(model.parameters())),
        weights=weights,
        max_positions=config.model.max_positions,
        timings=timings,
        training=training,
        peak_memory_bytes=peak,
        peak_memory_kind=kind,
    )
    write_json(job.benchmark, result)


class WatchedModel(TimedModel):
    """Keeps the last cache as well."""

    def __init__(self, model: BaseFairseqModel) -> None:
        super().__init__(model)
        self.cache: DecoderCache | None = None
        start_cache = type(model.decoder).start_cache

        def start_and_keep(encoder_out: dict, beam: int) -> DecoderCache:
            self.cache = start_cache(model.decoder, encoder_out, beam)
            return self.cache

        model.decoder.start_cache = start_and_keep


def time_decoding(
    model: BaseFairseqModel,
    task: FairseqTask,
    config: SuiteConfig,
    source_tokens: int,
    target_tokens: int,
    beam: int,
) -> Timing:
    """Time `batch` random sources of `source_tokens`, each decoded to exactly `target_tokens`.

    Raises ExperimentError when the search stopped early or the cache is not the predicted size.
    """
    batch = config.benchmark.batch
    device = next(model.parameters()).device
    watched = WatchedModel(model)
    # A hypothesis of n - 1 tokens and the end of the sentence takes n steps, no more, no less.
    generator = GENERATORS[config.decode.engine](
        watched,
        task.target_dictionary,
        beam_size=beam,
        max_len_b=target_tokens - 1,
        min_len=target_tokens - 1,
    )
    sample = {"net_input": _random_source(task, batch, source_tokens, device)}
    encoder_s, decoder_s = [], []
    for run in range(config.benchmark.warmup_runs + config.benchmark.repeats):
        watched.encoder_s = 0.0
        started = now(device)
        hypotheses = generator.generate([model], sample)
        total_s = now(device) - started
        produced = sum(len(best[0]["tokens"]) for best in hypotheses)
        if produced != batch * target_tokens:
            raise ExperimentError(f"{produced} tokens decoded, not {batch} x {target_tokens}")
        if run >= config.benchmark.warmup_runs:
            encoder_s.append(watched.encoder_s)
            decoder_s.append(total_s - watched.encoder_s)
    us_per_token = median_us_per_token(decoder_s, produced)
    print(
        f"{search_name(beam)}, {source_tokens} source tokens: {us_per_token:.1f} us per token",
        flush=True,
    )
    return Timing(
        engine=config.decode.engine,
        beam=beam,
        batch=batch,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        tokens_produced=produced,
        warmup_runs=config.benchmark.warmup_runs,
        encoder_s=encoder_s,
        decoder_s=decoder_s,
        encoder_us_per_token=median_us_per_token(encoder_s, produced),
        decoder_us_per_token=us_per_token,
        kv_cache_bytes=_checked_cache_bytes(
            watched.cache or generator.gpu_search.cache,
            config,
            source_tokens,
            target_tokens,
            beam,
        ),
    )


def _checked_cache_bytes(
    cache: DecoderCache | GpuCache | None,
    config: SuiteConfig,
    source_tokens: int,
    target_tokens: int,
    beam: int,
) -> int:
    """Bytes of K and V by the formula; ExperimentError unless the tensors hold as many."""
    predicted = cache_bytes(
        batch=config.benchmark.batch,
        beam=beam,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        layers=config.model.decoder_layers,
        num_kv_heads=config.attention.num_kv_heads,
        head_dim=config.model.d_model // config.model.num_heads,
        bytes_per_element=DTYPES[config.hardware.precision].itemsize,
    )
    measured = cache.nbytes if cache else None
    if measured != predicted:
        raise ExperimentError(f"the KV cache holds {measured} bytes, predicted were {predicted}")
    return sum(predicted.values())


def time_training(
    model: BaseFairseqModel, task: FairseqTask, config: SuiteConfig, data: DataFolder
) -> TrainingTiming:
    """Time whole updates (forward, backward, optimizer) of fairseq's trainer at one shape."""
    source_tokens, target_tokens = TRAINING_SHAPE
    batch = config.benchmark.training_batch
    cfg = _fairseq_config(config, data)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    device = trainer.device
    source = _random_source(task, batch, source_tokens, device)
    target = _random_source(task, batch, target_tokens, device)["src_tokens"]
    sample = {
        "id": torch.arange(batch),
        "nsentences": batch,
        "ntokens": target.numel(),
        "net_input": {**source, "prev_output_tokens": target.roll(1, dims=1)},
        "target": target,
    }
    update_s = []
    for run in range(config.benchmark.warmup_runs + config.benchmark.training_repeats):
        started = now(device)
        trainer.train_step([sample])
        if run >= config.benchmark.warmup_runs:
            update_s.append(now(device) - started)
    print(f"training: {statistics.median(update_s):.3f} s an update", flush=True)
    return TrainingTiming(
        batch=batch,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        warmup_runs=config.benchmark.warmup_runs,
        update_s=update_s,
        us_per_target_token=median_us_per_token(update_s, batch * target_tokens),
    )


def _fairseq_config(config: SuiteConfig, data: DataFolder) -> DictConfig:
    """fairseq's own config of the job's training command, for this one process and device.

    Nothing is saved, so there is no folder either.
    """
    alone = msgspec.structs.replace(config.hardware, devices=1, nodes=1, node_rank=0, master=None)
    config = msgspec.structs.replace(config, hardware=alone)
    arguments = train_command(config, data.binarized, Path("unused"))[1:]
    parsed = options.parse_args_and_arch(options.get_training_parser(), arguments)
    return convert_namespace_to_omegaconf(parsed)


def _random_model(config: SuiteConfig, data: DataFolder) -> tuple[BaseFairseqModel, FairseqTask]:
    torch.manual_seed(config.seed)
    cfg = _fairseq_config(config, data)
    task = tasks.setup_task(cfg.task)
    return task.build_model(cfg.model), task


def _random_source(
    task: FairseqTask, batch: int, tokens: int, device: torch.device
) -> dict[str, Tensor]:
    """Unpadded sources [batch, tokens] of the vocabulary's ordinary symbols, always the same."""
    dictionary = task.source_dictionary
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(
        dictionary.nspecial, len(dictionary), (batch, tokens), generator=generator
    )
    source[:, -1] = dictionary.eos()
    lengths = torch.full((batch,), tokens)
    return {"src_tokens": source.to(device), "src_lengths": lengths.to(device)}


def _peak_memory(device: torch.device) -> tuple[int, MemoryKind]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda_allocated"
    return max_rss_bytes(resource.getrusage(resource.RUSAGE_SELF)), "process_rss"


if __name__ == "__main__":
    sys.exit(run_on_job(benchmark, "experiments.job_benchmark", __doc__))
