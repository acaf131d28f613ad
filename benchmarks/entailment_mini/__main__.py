"""`python -m benchmarks.entailment_mini` writes the pairs again, byte for byte."""

from __future__ import annotations

import pandas as pd

from benchmarks.entailment_mini.generate import generate
from peftprune.tasks.load import ENTAILMENT_MINI

if __name__ == "__main__":
    splits = generate().items()
    frame = pd.concat([pd.DataFrame(pairs).assign(split=name) for name, pairs in splits])
    frame.to_parquet(ENTAILMENT_MINI, compression="zstd", index=False)
