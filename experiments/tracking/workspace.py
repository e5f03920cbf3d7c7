"""The saved view of a project: BLEU over latency by variant, the curves by variant, the table.

wandb-workspaces, which makes it, is no requirement of the suite: without an account it is no use.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from experiments.arguments import Parser, command
from experiments.errors import ExperimentError
from experiments.tracking.means import TABLE
from experiments.tracking.runs import PROJECT, has_account, one_line

PACKAGE = "wandb-workspaces"
NAME = "Quality against time"
SEARCHES = ("beam4", "greedy")
# Title and key of what is drawn over the updates.
CURVES = (
    ("Dev loss (nats per token)", "dev/nll_nats_per_token"),
    ("Train loss (nats per token)", "train/nll_nats_per_token"),
    ("Learning rate", "train/learning_rate"),
    ("Gradient norm", "train/grad_norm"),
    ("Target tokens per second", "train/target_tokens_per_s"),
)


def make_workspace(workspaces: Any, reports: Any, entity: str, project: str) -> Any:
    """The view, not saved yet; the first two are modules of wandb-workspaces."""
    scatters = [
        reports.ScatterPlot(
            title=f"BLEU over decoder latency, {search}",
            x=f"decode/us_per_token_{search}",
            y=f"test/bleu_{search}",
            legend_template="${config:variant}, seed ${config:seed}",
        )
        for search in SEARCHES
    ]
    curves = [
        reports.LinePlot(
            title=title,
            x="Step",
            y=[key],
            title_x="update",
            groupby="variant",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            legend_template="${config:variant}",
        )
        for title, key in CURVES
    ]
    tables = [
        reports.WeavePanelSummaryTable(table_name=name) for name in (TABLE, "test/hypotheses")
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name="Quality against time", panels=scatters, is_open=True),
            workspaces.Section(name="Training", panels=curves, is_open=True),
            workspaces.Section(name="Means and translations", panels=tables, is_open=True),
        ],
    )


def save_workspace(entity: str | None, project: str) -> str:
    """Save the view on wandb's server; returns its address.

    Raises ExperimentError, one line, when the package or the account is missing, or the server
    refuses.
    """
    try:
        workspaces = importlib.import_module("wandb_workspaces.workspaces")
        reports = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise ExperimentError(
            f"the view needs {PACKAGE}: run {sys.executable} -m pip install {PACKAGE}"
        ) from error
    if not has_account():
        raise ExperimentError("the view lies on wandb's server (run `wandb login` first)")
    try:
        import wandb

        owner = entity or wandb.Api().default_entity
        if owner is None:
            raise ExperimentError("the account has no default entity (give --entity NAME)")
        view = make_workspace(workspaces, reports, owner, project)
        view.save()
        return str(view.url)
    except ExperimentError:
        raise
    except Exception as error:  # whatever wandb, its package or its server raise
        raise ExperimentError(f"wandb: {one_line(error)}") from error


@command()
def main(arguments: list[str] | None = None) -> int:
    """Save the view; returns the exit code."""
    parser = Parser(prog="python -m experiments.tracking workspace", description=__doc__)
    parser.add_argument("--entity", help="account or team (default: the account's own default)")
    parser.add_argument("--project", default=PROJECT, help="wandb's project (%(default)s)")
    options = parser.parse_args(arguments)
    print(save_workspace(options.entity, options.project))
    return 0
