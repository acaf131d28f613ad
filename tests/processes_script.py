"""Run by test_callback_processes, alone and under torchrun: trains and writes this process's adapter.

processes_script.py MODEL OUTPUT METHOD EXAMPLES_PER_PROCESS [ordered|free]
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

import peftprune
from peftprune.training.objectives import classification_loss
from tests.plain import adapted, arguments, examples, plain_trainer


def main(model: str, output: str, method: str, batch: str, order: str) -> None:
    """Train with the callback; process n writes n.safetensors and n.json."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    # Every process starts from values of its own, as an unseeded script does; the first one's must win.
    torch.manual_seed(100 + rank)
    folder, callback = Path(output), peftprune.PruningCallback(method, budget="rank=4")
    rows = peftprune.sampler(examples(), seed=0) if order == "ordered" else examples()
    made = adapted(Path(model))
    if order == "ordered":
        # The head is the wrapper's to broadcast; all draw it alike here, so that one process draws the same.
        torch.manual_seed(100)
        torch.nn.init.normal_(made.base_model.model.classifier.modules_to_save.default.weight, std=0.02)
        for module in made.modules():
            if hasattr(module, "lora_A") and rank == 0:
                torch.nn.init.uniform_(module.lora_A.default.weight, -0.2, 0.2)
    args = arguments(folder, per_device_train_batch_size=int(batch), disable_tqdm=True)
    trainer = plain_trainer(made, args, callback, rows=rows, compute_loss_func=classification_loss)
    trainer.train()
    state = {n: t.detach().clone().contiguous() for n, t in get_peft_model_state_dict(made).items()}
    save_file(state, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(callback.summary()))


if __name__ == "__main__":
    main(*sys.argv[1:])
