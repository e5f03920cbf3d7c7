"""Questions of the papers that records answer, each with a table and a picture."""

from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.stability import stability
from experiments.report.groups import Group


def group_exhibits(group: Group) -> list[Exhibit]:
    """The exhibits that the group's records have the numbers for."""
    return [exhibit for make in (stability,) if (exhibit := make(group))]
