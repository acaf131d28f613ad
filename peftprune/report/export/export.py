"""Writes a stored arm as an adapter or a merged model."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from safetensors.torch import save

from peftprune.adapters.formats.adapter import Adapter
from peftprune.adapters.formats.folder import check_out, folder_bytes, read_json
from peftprune.adapters.formats.native import native_contents, write_native
from peftprune.adapters.formats.peft import CONFIG_FILE, peft_contents, read_peft, write_peft
from peftprune.adapters.merge import adapted_model, write_merged
from peftprune.adapters.save import METADATA_FILE, WEIGHTS_FILE
from peftprune.errors import RunError, UsageError
from peftprune.files import write_folder, write_json
from peftprune.models.bundled import HUB_NAMES
from peftprune.models.quiet import quiet_loading
from peftprune.report.export.base_model import auto_class, load_base, num_labels
from peftprune.report.export.choose import Chosen, choose
from peftprune.report.export.hub_results import write_eval_results
from peftprune.report.export.model_card import write_card
from peftprune.study.stored_study import StoredStudy

ExportFormat = Literal["peft", "native", "merged"]
FORMATS = ("peft", "native", "merged")


@dataclass(frozen=True)
class Exported:
    """The result of an export: folder, `arm` (task, budget, method and seed), and why it was `chosen`, in words.

    `sizes` are bytes of weights on disk by format, of a merged model only where one was written; `notes` say what use
    requires and its limits; `difference` is the largest between the outputs of merged and adapted model, None for other
    formats; `url` is the repository on the hub, if it was pushed.
    """

    path: Path
    arm: dict[str, Any]
    chosen: str
    format: str
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()
    difference: float | None = None
    url: str | None = None


@dataclass
class _Written:
    """What one format reports: code that loads it, sizes, notes for the user, facts for the metadata."""

    how: str
    sizes: dict[str, int]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def export(
    study: StoredStudy,
    out: str | Path,
    *,
    method: str,
    seed: int | str = "best",
    format: ExportFormat = "peft",
    task: str | None = None,
    budget: str | None = None,
    uniform: bool = False,
    head: bool = True,
    overwrite: bool = False,
    push_to_hub: str | None = None,
) -> Exported:
    """Writes one finished arm as an adapter or a merged model, with a model card and its score as the hub reads it.

    Args:
        out: folder to write; it is written completely or not at all.
        method: a label, or "best": the method with the best mean of the primary metric over its finished seeds.
        seed: a seed, or "best" by the primary metric.
        format: "peft", which plain PEFT loads; "native", where shared sites are stored once; "merged", a plain
            transformers model.
        task, budget: required where the study has several.
        uniform: for "peft": pads every site with zeros to the largest rank.
        head: for "peft" and "native": False leaves the trained head out.
        overwrite: replaces a folder that an earlier export wrote.
        push_to_hub: OWNER/NAME of a repository to upload to.

    Raises UsageError where the arm cannot be exported as requested, with nothing written, and RunError where the merged
    model's outputs are wrong, so that it is not kept, or the upload failed.
    """
    if format not in FORMATS:
        raise UsageError.of("format", format, "is unknown", f"Formats: {', '.join(FORMATS)}")
    if uniform and format != "peft":
        raise UsageError.of("uniform", uniform, f"has no meaning for {format}", "Leave it out, or use the format peft")
    if not head and format == "merged":
        raise UsageError.of("head", head, "has no meaning for merged: a model has a head", "Keep the head")
    chosen = choose(study, method, seed, task=task, budget=budget)
    target = check_out(Path(out), overwrite, study.path)
    source = chosen.folder.adapter
    if not (source / METADATA_FILE).is_file():
        cure = f"Delete {str(source.parent)!r} and run the same compare again, without reuse"
        problem = "is incomplete" if source.is_dir() else "is missing, as in the example and in packed studies"
        raise UsageError.of("adapter", str(source), problem, cure)
    write = {"peft": _peft, "native": _native, "merged": _merged}[format]
    with write_folder(target) as aside:
        done = write(chosen, aside, uniform, head)
        targets = read_json(source / METADATA_FILE).get("targets")
        if targets and head and not targets["in_head"]:
            done.notes.append(
                "Labels were standardised in training, and the head has no bias to hold their mean: a prediction is "
                f"the output times {targets['deviation']:.6g}, plus {targets['mean']:.6g}."
            )
        facts = {**read_json(source / METADATA_FILE), **chosen.key, "format": format, **done.facts}
        write_json(aside / METADATA_FILE, facts)
        write_card(chosen, aside, form=format, how=done.how, facts=done.notes)
        write_eval_results(chosen, aside)
    url = None if push_to_hub is None else push(target, push_to_hub)
    notes, difference = tuple(done.notes), done.facts.get("largest_output_difference")
    return Exported(target, chosen.key, chosen.words, format, done.sizes, notes, difference, url)


def push(folder: Path, repo: str) -> str:
    """Uploads a folder to the repository OWNER/NAME, created if missing, and returns its URL; requires a token.

    Raises RunError if the upload failed; the folder is unchanged.
    """
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with peftprune")
    except Exception as error:
        # The client raises many types for network, token, permission and name errors.
        reason = str(error).strip().split("\n")[0]
        raise RunError(
            f"push_to_hub: {repo!r} cannot be written ({type(error).__name__}: {reason}). Log in with `hf auth "
            f"login` and export again, or upload the folder yourself; it is complete: {folder}"
        ) from error
    return str(url)


def _peft(chosen: Chosen, folder: Path, uniform: bool, head: bool) -> _Written:
    source = chosen.folder.adapter
    if not (source / CONFIG_FILE).exists():
        raise _no_format(chosen, "peft")
    if not _is_lora(source):
        if uniform or not head:
            option, value = ("uniform", uniform) if uniform else ("head", head)
            kind = read_json(source / CONFIG_FILE).get("peft_type")
            raise UsageError.of(option, value, f"is for LoRA, and {chosen.key['method']} is {kind}", "Leave it out")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / name, folder / name)
        return _Written(_load_with_peft(chosen), {"peft": (folder / WEIGHTS_FILE).stat().st_size})
    adapter = read_peft(source)
    write_peft(*peft_contents(adapter, uniform=uniform, head=head), folder)
    notes = _about_head(adapter, head)
    if uniform:
        rank = max(f.rank for f in adapter.sites.values())
        notes.append(
            f"Every layer is padded with zeros to rank {rank}, the largest of the method's ranks, for engines that "
            "ignore PEFT's rank_pattern. The model's outputs are unchanged."
        )
    facts = {"uniform": uniform, "head": head and bool(adapter.head)}
    return _Written(_load_with_peft(chosen), sizes_of(adapter), notes, facts)


def _native(chosen: Chosen, folder: Path, uniform: bool, head: bool) -> _Written:
    source = chosen.folder.adapter
    if not (source / CONFIG_FILE).exists() or not _is_lora(source):
        raise _no_format(chosen, "native")
    adapter = read_peft(source)
    write_native(native_contents(adapter, head=head), folder)
    how = f"{_base_code(chosen)}\nimport peftprune\n\nmodel = peftprune.load_adapter(FOLDER, base)"
    notes = [
        *_about_head(adapter, head),
        "Layers that share factors are stored once. `peftprune convert FOLDER --out DIR` makes a PEFT adapter of it.",
    ]
    return _Written(how, sizes_of(adapter), notes, {"head": head and bool(adapter.head)})


def _merged(chosen: Chosen, folder: Path, uniform: bool, head: bool) -> _Written:
    source = chosen.folder.adapter
    base = load_base(chosen)
    adapted = adapted_model(source, base.model)
    with quiet_loading():
        done = write_merged(adapted, base.tokenizer, folder, base.dtype, base.reload)
    adapter = read_peft(source) if (source / CONFIG_FILE).exists() and _is_lora(source) else None
    sizes = {} if adapter is None else sizes_of(adapter)
    note = (
        f"Merged in float32 and stored as {done.dtype}, like the base model. On a fixed batch the outputs differ by at "
        f"most {done.difference:.2g} from the adapted model's in float32 (largest output: {done.output:.2g})."
    )
    name = base.auto.__name__
    how = (
        f"from transformers import AutoTokenizer, {name}\n\n"
        f"model = {name}.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)"
    )
    facts = {"largest_output_difference": done.difference, "largest_output": done.output, "dtype": done.dtype}
    return _Written(how, sizes | {"merged": folder_bytes(folder)}, [note], facts)


def sizes_of(adapter: Adapter) -> dict[str, int]:
    """Returns the bytes of the weights file in each adapter format that the adapter supports, head included."""
    contents: dict[str, Callable[[], Any]] = {
        "peft": lambda: (peft_contents(adapter)[1], {"format": "pt"}),
        "peft, uniform": lambda: (peft_contents(adapter, uniform=True)[1], {"format": "pt"}),
        "native": lambda: native_contents(adapter),
    }
    sizes = {}
    for name, make in contents.items():
        with suppress(UsageError):
            sizes[name] = len(save(*make()))
    return sizes


def _is_lora(folder: Path) -> bool:
    return read_json(folder / CONFIG_FILE).get("peft_type") == "LORA"


def _no_format(chosen: Chosen, form: str) -> UsageError:
    method = chosen.result["method"]
    possible = "merged" if form == "peft" or not (chosen.folder.adapter / CONFIG_FILE).exists() else "peft or merged"
    return UsageError.of("format", form, f"is not possible for {method}, which is not plain LoRA", f"Use {possible}")


def _about_head(adapter: Adapter, head: bool) -> list[str]:
    if head or not adapter.head:
        return []
    modules = ", ".join(adapter.config["modules_to_save"])
    return [
        f"The trained head ({modules}) is left out: the loaded model has the base model's own head, or an untrained "
        "one, so its predictions for this task mean nothing until a head is supplied."
    ]


def _base_code(chosen: Chosen) -> str:
    count, name, auto = num_labels(chosen), chosen.cell.request["model"], auto_class(chosen).__name__
    names = chosen.cell.request["tasks"][0].get("label_names")
    labels = f", id2label={dict(enumerate(names))}" if names else f", num_labels={count}" if count else ""
    arguments = f"{HUB_NAMES.get(name, name)!r}{labels}"
    return f"from transformers import {auto}\n\nbase = {auto}.from_pretrained({arguments})"


def _load_with_peft(chosen: Chosen) -> str:
    return f"from peft import PeftModel\n{_base_code(chosen)}\nmodel = PeftModel.from_pretrained(base, FOLDER)"
