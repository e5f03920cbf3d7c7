"""The entry point: Hydra composes every job first, then each one runs.

    python -m experiments.run experiment=quickstart attention=mqa
    python -m experiments.run -m experiment=quickstart attention.num_kv_heads=1,2,4,8 seed=1,2,3

Composing is apart from running, so that a bad value in the last job of a sweep is found before
the first one works. Neither torch nor fairseq nor the plugin is imported here: fairseq would put
a config of its own into Hydra's store.
"""

import signal
import sys

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import SuiteConfig, parse_config
from experiments.errors import ExperimentError
from experiments.jobs import run_job
from experiments.plan import print_plan
from experiments.provenance import hardware
from experiments.tracking import check_account


def compose_jobs() -> list[SuiteConfig]:
    """The jobs that the command line asks for; raises ExperimentError when one is refused.

    Hydra reads the command line; it ends the process itself, with its own message, for unknown
    keys and for --help and --cfg.
    """
    composed: list[DictConfig] = []
    hydra.main(version_base="1.3", config_path="../conf", config_name="suite")(composed.append)()
    return [resolve(config) for config in composed]


def resolve(composed: DictConfig) -> SuiteConfig:
    """The checked config of a composed one; raises ExperimentError, one line."""
    try:
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = str(error).split("\n")[0]
        raise ExperimentError(f"config: {problem} (set {error.full_key}=...)") from error
    return parse_config(resolved)


def check_gpus(config: SuiteConfig) -> None:
    """Raise ExperimentError when the machine lacks the GPUs: fairseq would fall back to the CPU."""
    wanted = config.hardware.devices if config.hardware.device == "cuda" else 0
    if wanted and len(hardware().gpus) < wanted:
        raise ExperimentError(
            f"hardware.devices={wanted} GPUs are wanted, nvidia-smi shows {len(hardware().gpus)} "
            "(use hardware=cpu)"
        )


def main() -> int:
    """Run the jobs of the command line, or say what they would do; returns the exit code."""
    failed = 0
    try:
        jobs = compose_jobs()
        if any(config.dry_run for config in jobs):
            for config in jobs:
                print_plan(config)
            return 0
        for config in jobs:
            check_account(config.tracking.mode)
            check_gpus(config)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for config in jobs:
        try:
            run_job(config)
        except ExperimentError as error:
            # The others do not depend on this one.
            print(f"error: {error}", file=sys.stderr)
            failed += 1
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            return 130
    return 2 if failed else 0


if __name__ == "__main__":
    # Ends the stage that runs as well, as an interrupt from the keyboard does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
