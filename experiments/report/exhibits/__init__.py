"""Questions of the papers that records answer, each with a table and a picture."""

from experiments.report.exhibits.alpha import alpha
from experiments.report.exhibits.conversion import conversion
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.kv_heads import kv_heads
from experiments.report.exhibits.predicted import predicted
from experiments.report.exhibits.stability import stability
from experiments.report.groups import Group

MAKERS = (kv_heads, predicted, conversion, alpha, stability)


def group_exhibits(group: Group) -> list[Exhibit]:
    """The exhibits that the group's records have the numbers for."""
    return [exhibit for make in MAKERS if (exhibit := make(group))]
