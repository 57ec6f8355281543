"""Old name of `page`, until the vote's and the miniature's reports have moved."""

from collections.abc import Sequence

from .page import ONE_SEED as ONE_SEED
from .page import Cell as Cell
from .page import Page as Page
from .page import Table
from .page import plain as plain


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    return Table(columns, rows).markdown()
