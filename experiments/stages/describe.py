"""What a job will do, said before it does it: updates, tokens, parameters, memory, commands.

Nothing here needs data, torch or fairseq. The parity arithmetic belongs to the plugin, whose import
brings fairseq along; its file needs nothing but Python, and is loaded alone.
"""

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType

from experiments.config import SuiteConfig
from experiments.corpus import prepare_command
from experiments.layout import data_folder, job_folder
from experiments.train import train_command

GIB = 2**30
# Of the stages that are not fairseq's own commands, in order.
MODULES = {"evaluate": "experiments.evaluate", "benchmark": "experiments.job_benchmark"}
PARITY = Path(__file__).resolve().parent.parent / "gqa_fairseq/parity/__init__.py"

# Bytes of training a parameter. fp32: weight, gradient and Adam's two moments. 16 bits: fairseq
# keeps weight and gradient twice, in 16 bits to compute and in fp32 for the optimizer.
BYTES_PER_PARAMETER = {"fp32": 4 * 4, "bf16": 2 * 2 + 4 * 4, "fp16": 2 * 2 + 4 * 4}
# What backward needs of one token, roughly: so many activations of d_model a layer, of d_ff (before
# and after the ReLU), and of the vocabulary (scores and their gradient as they are computed, and
# log-probabilities in fp32). Attention weights are left out: at lines of 30 tokens they are small.
ENCODER_D_MODELS, DECODER_D_MODELS, D_FFS = 10, 16, 2


def describe(config: SuiteConfig) -> list[str]:
    """Lines that say what training will take."""
    train, hardware = config.train, config.hardware
    widths, parameters = size(config)
    state, activations = memory_bytes(config)
    return [
        f"{train.max_updates:,} updates of {train.tokens_per_update:,} target tokens, "
        f"{train.max_updates * train.tokens_per_update:,} in all; an update is "
        f"{config.update_freq} x {config.target_tokens_per_batch:,.0f} on {config.world_size} "
        f"{hardware.device}",
        f"{parameters:,} parameters, d_ff {widths[0]} (encoder) and {widths[1]} (decoder)",
        f"memory of a device: about {state / GIB:.2g} GiB for parameters, gradients and Adam's "
        f"state ({BYTES_PER_PARAMETER[hardware.precision]} bytes a parameter), up to about "
        f"{activations / GIB:.2g} GiB for activations",
    ]


def commands(config: SuiteConfig) -> list[list[str]]:
    """What a job runs, in order. Its folder is named by its id, which depends on the data: ID."""
    job = job_folder(config, "ID")
    training = train_command(config, data_folder(config).binarized, job.checkpoints)
    stages = [[sys.executable, "-m", module, str(job.path)] for module in MODULES.values()]
    return [prepare_command(config), training, *stages]


def print_plan(config: SuiteConfig) -> None:
    """Print what a job would do and its commands, ready for a shell."""
    print(f"# {config.experiment_name}: {config.variant}, seed {config.seed}")
    for line in describe(config):
        print(f"# {line}")
    for command in commands(config):
        print(shlex.join(command))


def size(config: SuiteConfig) -> tuple[tuple[int, int], int]:
    """d_ff of encoder and decoder, and the parameters, by the parity arithmetic.

    fairseq's dictionary has one symbol more than the SentencePiece vocabulary.
    """
    parity, attention = _parity(), config.attention
    shape = parity.Shape(**config.model.parity_shape, vocab_size=config.data.vocab_size + 1)
    variant = (shape, attention.num_kv_heads, attention.placement)
    widths = parity.matched_widths(*variant)
    return (widths.encoder_d_ff, widths.decoder_d_ff), parity.parameter_count(*variant)


def memory_bytes(config: SuiteConfig) -> tuple[int, int]:
    """Estimates for one device: what the parameters take, and the activations of a large batch.

    bytes a parameter * parameters, and tokens with padding * (bytes an element * (encoder layers *
    (10 d_model + 2 d_ff) + decoder layers * (16 d_model + 2 d_ff)) + vocabulary * (scores)).
    """
    model, hardware = config.model, config.hardware
    (encoder_d_ff, decoder_d_ff), parameters = size(config)
    element = 4 if hardware.precision == "fp32" else 2
    encoder = ENCODER_D_MODELS * model.d_model + D_FFS * encoder_d_ff
    decoder = DECODER_D_MODELS * model.d_model + D_FFS * decoder_d_ff
    scores = config.data.vocab_size * (2 * element + 2 * 4)
    per_token = element * (model.encoder_layers * encoder + model.decoder_layers * decoder) + scores
    return (
        parameters * BYTES_PER_PARAMETER[hardware.precision],
        config.padded_tokens_per_batch * per_token,
    )


def _parity() -> ModuleType:
    name = "experiments.plan.parity"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PARITY)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
