"""What WMT14 would run: the commands of all variants on all hardware, without data or fairseq."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {"mha": 4096, "gqa4": 4864, "gqa2": 5248, "mqa": 5440}  # Shazeer 2019 and between
PRESETS = ("cpu", "gpu1", "gpu4", "gpu8")

DRY_RUN = """
import sys
from experiments.run import main

sys.argv = ["run", "-m", "experiment=wmt14", "dry_run=true", *sys.argv[1:]]
status = main()
loaded = {name.split(".")[0] for name in sys.modules}
print("loaded:", *({"torch", "fairseq", "gqa_fairseq", "data_prep"} & loaded))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """The printed lines of each variant on each preset."""
    folder = tmp_path_factory.mktemp("dry")
    sweep = [f"attention={','.join(VARIANTS)}", f"hardware={','.join(PRESETS)}"]
    paths = [f"paths.data={folder}/data", f"paths.runs={folder}/runs"]
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, *sweep, *paths],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded:\n")
    assert not list(folder.iterdir())
    jobs = done.stdout.split("# wmt14: ")[1:]
    assert len(jobs) == len(VARIANTS) * len(PRESETS)
    keys = [(variant, preset) for variant in VARIANTS for preset in PRESETS]
    return dict(zip(keys, [job.split("\n") for job in jobs], strict=True))


def command(lines: list[str]) -> list[str]:
    (line,) = [line for line in lines if line.startswith("fairseq-train ")]
    return shlex.split(line)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_variants_differ_in_heads_and_folder_and_have_the_papers_widths(
    plans: dict[tuple[str, str], list[str]],
) -> None:
    for preset in PRESETS:
        mha = command(plans["mha", preset])
        for variant, d_ff in VARIANTS.items():
            lines = plans[variant, preset]
            assert lines[0] == f"{variant}, seed 1"
            assert f"d_ff {d_ff} (encoder) and {d_ff} (decoder)" in lines[2]
            assert lines[2].startswith("# 209,523,712 parameters")
            differing = {a for a, b in zip(mha, command(lines), strict=True) if a != b}
            heads, folder = option(mha, "--num-kv-heads"), option(mha, "--save-dir")
            assert differing == ({heads, folder} if variant != "mha" else set())


def test_an_update_is_32768_target_tokens_on_all_hardware(
    plans: dict[tuple[str, str], list[str]],
) -> None:
    for preset in PRESETS:
        arguments = command(plans["mqa", preset])
        assert option(arguments, "--target-tokens-per-update") == "32768"
        assert option(arguments, "--max-update") == "100000"
        devices = int(option(arguments, "--distributed-world-size"))
        assert devices == (int(preset.removeprefix("gpu")) if preset != "cpu" else 1)
        batch = 32768 / devices / int(option(arguments, "--update-freq"))
        assert batch * 1.5 <= int(option(arguments, "--max-tokens"))
        said = re.search(r"an update is (\d+) x ([\d,]+) on (\d+)", plans["mqa", preset][1])
        assert said is not None
        assert [int(number.replace(",", "")) for number in said.groups()] == [
            int(option(arguments, "--update-freq")), round(batch), devices,
        ]  # fmt: skip
        assert ("--bf16" in arguments) == (preset != "cpu")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A target of the Makefile in this environment; `-o setup`: nothing is installed."""
    binaries = Path(sys.executable).parent
    # `make test` would hand down its own options, and its level into the messages.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-s", "-o", "setup", f"BIN={binaries}", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, env=environment,
    )  # fmt: skip


def test_make_passes_on_what_it_is_given() -> None:
    done = make(
        "wmt14-sweep", "DRY_RUN=1", "SEEDS=2,3", "KV_HEADS=2", "PLACEMENT=decoder", "HARDWARE=gpu4",
        "MIRROR=/a folder", "ARGS=train.dropout=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert [line for line in lines if line.startswith("# wmt14: ")] == [
        "# wmt14: gqa2-dec, seed 2",
        "# wmt14: gqa2-dec, seed 3",
    ]
    trainings = [shlex.split(line) for line in lines if line.startswith("fairseq-train ")]
    assert [option(each, "--dropout") for each in trainings] == ["0.3", "0.3"]
    assert [option(each, "--distributed-world-size") for each in trainings] == ["4", "4"]
    assert "--mirror '/a folder'" in done.stdout
    assert lines[-2].endswith("--out outputs/report-wmt14")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wmt14-mqa", "HARDWARE=tpu"], "error: HARDWARE=tpu is unknown: choose one of cpu gpu1"),
        (["wmt14", "PLACEMENT=encoder"], "error: PLACEMENT=encoder is unknown: choose all or"),
        (["wmt14-sweep", "KV_HEADS=3"], "error: config: attention.num_kv_heads=3 does not divide"),
    ],
)
def test_make_refuses_with_one_line(arguments: list[str], message: str) -> None:
    done = make(*arguments, "DRY_RUN=1")
    assert done.returncode != 0
    assert done.stdout == ""
    first, *rest = done.stderr.strip().split("\n")
    assert first.startswith(message)
    assert [line.split(":")[0] for line in rest] == ["make"]
