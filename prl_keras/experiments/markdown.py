"""Tables and numbers in Markdown, for all the reports."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

NOTHING = "-"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of strings: the first column aligned left, the others right."""
    frame = pd.DataFrame(lines, columns=header)
    return frame.to_markdown(
        index=False, disable_numparse=True, colalign=["left"] + ["right"] * (len(header) - 1)
    )


def number(value: float | None, decimals: int) -> str:
    """The value with that many decimals; "-" for None and NaN, and never "-0.00"."""
    if value is None or np.isnan(value):
        return NOTHING
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"
