"""Old name of `page`, until all have moved."""

from .page import ONE_SEED as ONE_SEED
from .page import Cell as Cell
from .page import Page as Page
from .page import markdown_table as markdown_table
from .page import plain as plain
