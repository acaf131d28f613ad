"""Writes the final ranks of a finished arm as configurations of plain LoRA: for PEFT, axolotl and LLaMA-Factory."""

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, indent
from typing import Any

from peftprune.adapters.formats.folder import check_out
from peftprune.adapters.formats.peft import ranked_config
from peftprune.adapters.save import METADATA_FILE
from peftprune.analysis.decomposition import controls
from peftprune.analysis.frames import Frames
from peftprune.analysis.runs import exempt
from peftprune.errors import UsageError
from peftprune.files import write_folder, write_json
from peftprune.report.export.choose import Chosen, choose
from peftprune.report.findings import cell_answer, cell_title
from peftprune.stats import Verdict
from peftprune.study.stored_study import StoredStudy

NO_EVIDENCE = "No evidence that these ranks are better than uniform ones"


@dataclass(frozen=True)
class Recommended:
    """A written folder: whose ranks it holds, the evidence for them, and what each tool requires, in words."""

    path: Path
    arm: dict[str, Any]
    evidence: str
    notes: list[str]


def recommend(
    study: StoredStudy, out: str | Path, *, method: str, overwrite: bool = False, **which: Any
) -> Recommended:
    """Writes an arm's final ranks as `adapter_config.json`, `lora_config.py`, `axolotl.yaml` and `llamafactory.yaml`.

    The arguments are those of `export`: seed, task and budget. A packed study has all that is read. Raises UsageError
    where no such arm exists, and where the arm has no LoRA ranks or shares adapters, which PEFT cannot express.
    """
    import yaml
    from peft import LoraConfig

    chosen = choose(study, method, **which)
    target, fields = check_out(Path(out), overwrite, study.path), _fields(chosen)
    found = evidence(study.only(task=chosen.key["task"], budget=chosen.key["budget"]), method)
    head = [f"The final ranks of {chosen.words}, for plain LoRA.", found]
    if fields["task_type"] != "CAUSAL_LM":
        head.append(
            f"The model is of type {fields['task_type']}; axolotl and LLaMA-Factory train causal language models."
        )
    config = LoraConfig(**fields)
    config.target_modules = fields["target_modules"]  # the order of PEFT's set changes from run to run
    call = "\n".join(f"{name}={json.dumps(value, indent=4)}," for name, value in fields.items() if value)
    tools = {"axolotl.yaml": _axolotl(**fields), "llamafactory.yaml": _llama_factory(**fields)}
    with write_folder(target) as aside:
        config.save_pretrained(str(aside))
        code = f"from peft import LoraConfig\n\nconfig = LoraConfig(\n{indent(call, '    ')}\n)\n"
        (aside / "lora_config.py").write_text(_comment(head) + code)
        for name, (note, options) in tools.items():
            text = yaml.safe_dump({n: value for n, value in options.items() if value}, sort_keys=False)
            (aside / name).write_text(_comment([*head, note]) + text)
        write_json(aside / METADATA_FILE, {**chosen.key, "format": "recommendation", "evidence": found})
    return Recommended(target, chosen.key, found, [*head[2:], *(note for note, _ in tools.values())])


def evidence(cell: StoredStudy, method: str) -> str:
    """Returns what a study of one task and budget says about a method's ranks against uniform LoRA's, in words.

    The transplant of the method stands for its ranks, where the study has one. The interval is corrected over all
    methods of the study.
    """
    uniform = next((k["method"] for k, _, r in cell.finished() if r["method"] == "lora" and not r["exemption"]), None)
    if uniform is None:
        return f"{NO_EVIDENCE}: the study has no uniform lora under this budget."
    side, frames = controls(cell, method).get("transplant", method), Frames(cell, uniform)
    finding = next((f for f in cell_answer(frames, cell).findings if f.method == side), None)
    if finding is None:
        return f"{NO_EVIDENCE}: nothing in the study compares {side} with uniform lora."
    unequal = side in exempt(frames.runs) or cell.budgets == ["paper"]
    size = f"{'not ' * unequal}at equal parameters, {finding.size}"
    said = f"{side} against {uniform} ({cell_title(cell)}; {size}): {finding.sentence}: {finding.words}."
    if side == method:
        said += f" This includes how {method} trains; transplant(of='{method}') would show its ranks alone."
    return f"{'Evidence' if finding.verdict is Verdict.BETTER else NO_EVIDENCE}: {said}"


def _fields(chosen: Chosen) -> dict[str, Any]:
    """Returns the fields of PEFT's `LoraConfig` with the arm's final ranks; sites without an adapter are left out."""
    result, method, settings = chosen.result, chosen.key["method"], chosen.result["settings"]
    of_arm = result["run_info"]["peft_config"] or {}
    if of_arm.get("peft_type") not in ("LORA", "ADALORA"):
        raise UsageError.of("method", method, "has no LoRA ranks", "Name a method that adapts layers by LoRA")
    tied = next((row for row in result["allocation"] if row["shared_with"]), None)
    if tied is not None:
        problem = f"shares one adapter between {tied['site']} and {tied['shared_with'][0]}, which PEFT cannot express"
        cure = f"Train transplant(of='{method}') in a study, or use `peftprune export`, which writes a copy for each"
        raise UsageError.of("method", method, problem, cure)
    ranks = {row["site"]: row["rank"] for row in result["allocation"] if row["rank"]}
    # PEFT repeats names of heads in its own list.
    head = {
        "task_type": of_arm["task_type"],
        "modules_to_save": [*dict.fromkeys(of_arm["modules_to_save"] or ())] or None,
    }
    return {**head, **ranked_config(ranks, settings["scaling"]), "lora_dropout": settings["lora_dropout"]}


def _axolotl(r: int, lora_alpha: float, alpha_pattern: dict[str, float], **fields: Any) -> tuple[str, dict[str, Any]]:
    """Returns a note and the options of axolotl."""
    note = "axolotl requires a version with lora_rank_pattern (its pull request 3673, July 2026)."
    if not _whole(lora_alpha, alpha_pattern):
        return f"{note} It takes only whole numbers as lora_alpha, so it cannot express this scaling.", {}
    options = {f"lora_{name}": fields[name] for name in ("target_modules", "modules_to_save", "rank_pattern")}
    options |= {"lora_alpha_pattern": alpha_pattern, "lora_dropout": fields["lora_dropout"]}
    return note, {"adapter": "lora", "lora_r": r, "lora_alpha": lora_alpha, **options}


def _llama_factory(
    r: int, lora_alpha: float, alpha_pattern: dict[str, float], **fields: Any
) -> tuple[str, dict[str, Any]]:
    """Returns a note and the options of LLaMA-Factory."""
    if alpha_pattern or not _whole(lora_alpha, {}):
        note = (
            "LLaMA-Factory has one lora_rank for all layers, so it cannot express this. It can train an adapter that "
            "exists: save an untrained one with get_peft_model(model, config).save_pretrained('untrained') and the "
            "config of lora_config.py."
        )
        return note, {"finetuning_type": "lora", "adapter_name_or_path": "untrained"}
    names = {"lora_target": fields["target_modules"], "additional_target": fields["modules_to_save"]}
    options = {name: ",".join(values or ()) for name, values in names.items()} | {
        "lora_dropout": fields["lora_dropout"]
    }
    note = "LLaMA-Factory can express these ranks, since all are equal."
    return note, {"finetuning_type": "lora", "lora_rank": r, "lora_alpha": lora_alpha, **options}


def _whole(alpha: float, pattern: dict[str, float]) -> bool:
    return all(isinstance(value, int) for value in (alpha, *pattern.values()))


def _comment(paragraphs: list[str]) -> str:
    return "\n#\n".join(fill(p, 110, initial_indent="# ", subsequent_indent="# ") for p in paragraphs) + "\n\n"
