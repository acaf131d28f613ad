"""A study in a few small files: everything that its tables need, without adapters and checkpoints.

<packed>/study.json      the request
<packed>/arms.parquet    one row per arm that finished, failed or paused: its files, with logits as 16-bit numbers
<packed>/tuning/         the same of the trials, if the study was tuned
"""

import io
import json
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peftprune.errors import UsageError
from peftprune.files import shipped, write_atomically, write_folder
from peftprune.study.paths import located
from peftprune.study.store import PAUSED, TRIALS, ArmFolder, StudyFolder
from peftprune.study.stored_study import StoredStudy

EXAMPLE = shipped("_example", "benchmarks/results/tournament/sst2")
"""The packed study that `peftprune example` writes."""
_ARMS = "arms.parquet"
_TEXTS = ("config.json", "history.jsonl", "allocation.jsonl", "error.json", PAUSED, "result.json")
"""Files of an arm that are stored as they are; the result comes last, since it makes an arm a finished one."""


def pack(study: Path, out: Path) -> int:
    """Writes the packed form of a study and returns the number of its arms, trials included.

    `out` is replaced if it is a packed study. Raises UsageError if `study` holds none, or `out` is anything else.
    """
    if os.path.exists(out) and not is_packed(out):
        raise UsageError.of("out", str(out), "exists and is not a packed study", "Name a new folder")
    parts = {".": study} | ({TRIALS: study / TRIALS} if os.path.exists(study / TRIALS) else {})
    stored = {part: StoredStudy.load(path) for part, path in parts.items()}
    packed = {part: (_anywhere(found.request), _rows(found)) for part, found in stored.items()}
    with write_folder(out) as folder:
        for part, (request, rows) in packed.items():
            StudyFolder(folder / part).write_request(json.loads(request))
            frame = pd.DataFrame(rows, columns=["folder", *_TEXTS, "predictions"])
            frame.to_parquet(folder / part / _ARMS, index=False, compression="zstd")
    return sum(len(rows) for _, rows in packed.values())


def _anywhere(request: Mapping[str, Any], text: str = "") -> str:
    """Returns a request as JSON, or a text of its study, without the folders of this machine."""
    data = request["data_dir"] and str(Path(located(request, Path())["data_dir"]).absolute())
    whole = {name: value for name, value in request.items() if name != "place"} | {"data_dir": None}
    text = (text or json.dumps(whole)).replace(sysconfig.get_path("purelib") + os.sep, "")
    return text.replace(data, "$PEFTPRUNE_DATA") if data else text


def is_packed(folder: Path) -> bool:
    """Returns whether a folder holds a packed study."""
    return os.path.isfile(folder / _ARMS)  # False for a name that is too long


def unpack(packed: Path, study: Path, *, request: bool = False) -> None:
    """Writes the arms of a packed study into the folder of a study; an arm that is finished there stays as it is.

    `request` writes `study.json` too. Raises UsageError if `packed` holds no packed study.
    """
    if not is_packed(packed):
        raise UsageError.of("packed", str(packed), f"holds no {_ARMS}", "Name a folder that peftprune pack wrote")
    for part in (".", TRIALS):
        if not is_packed(packed / part):
            continue
        StudyFolder(study / part).prepare()
        for row in pd.read_parquet(packed / part / _ARMS).to_dict("records"):
            _unpack_arm(row, ArmFolder(study / part / "arms" / Path(str(row["folder"])).name))
        if request:
            StudyFolder(study / part).write_request(StudyFolder(packed / part).read_request())


def studies_in(folder: Path) -> list[Path]:
    """Returns the folders of the studies in a folder; the folder itself where it is one, or holds none."""
    inside = [] if os.path.exists(folder / "study.json") else sorted(f.parent for f in folder.glob("*/study.json"))
    return inside or [folder]


def readable(study: Path, folder: Path) -> Path:
    """Returns the folder of a study that may be a packed one, which is then written to `folder`."""
    if not is_packed(study):
        return study
    unpack(study, folder, request=True)
    return folder


def _unpack_arm(row: dict[Any, Any], arm: ArmFolder) -> None:
    if arm.result() is not None:
        return
    if isinstance(row["predictions"], bytes):
        write_atomically(arm.predictions, row["predictions"])
    for name in _TEXTS:
        if isinstance(text := row.get(name), str):  # pandas may read what is missing as NaN
            write_atomically(arm.path / name, text.encode())


def _rows(study: StoredStudy) -> list[dict[str, Any]]:
    rows = []
    for _, arm in study.arms():
        texts = {n: file.read_text() if (file := arm.path / n).is_file() else None for n in _TEXTS}
        if done := arm.result() is not None:
            texts["result.json"] = _anywhere(study.request, texts["result.json"] or "")
        if done or any(texts[name] is not None for name in ("error.json", PAUSED)):
            rows.append({"folder": arm.path.name, **texts, "predictions": _small(arm) if done else None})
    return rows


def _small(arm: ArmFolder) -> bytes:
    """Returns an arm's predictions as parquet, with logits of 16 bits, which no statistic reads."""
    frame = arm.read_predictions()
    if "logits" in frame:
        frame["logits"] = pd.Series([np.asarray(row, dtype=np.float16) for row in frame["logits"]], frame.index)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
