"""Published results of other papers. They come from other setups and are labelled as such."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from peftprune.files import shipped

COLUMNS = ("method", "params", "model", "task", "metric", "value", "seeds", "source", "table", "note")
FOLDER = shipped("_published", "benchmarks/published")


def published_for(tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns the published results for these tasks, or all, that come with the package: one row per printed number.

    `method` as printed, `params` (trainable, rounded as printed; missing where not stated), `model`, `task` ("average"
    for a printed average), `metric`, `value` on the printed scale (percent), `seeds` (missing where not stated),
    `source`, `table`, `note`, and the `file`, one per printed table.
    """
    files = sorted(FOLDER.glob("*.csv"))
    found = [pd.read_csv(file, dtype=str, keep_default_na=False).assign(file=file.name) for file in files]
    frame = pd.concat([pd.DataFrame(columns=[*COLUMNS, "file"], dtype=str), *found], ignore_index=True)
    frame["value"] = pd.to_numeric(frame["value"])
    frame[["params", "seeds"]] = frame[["params", "seeds"]].apply(pd.to_numeric).astype("Int64")
    return frame if tasks is None else frame[frame["task"].isin(list(tasks))].reset_index(drop=True)
