"""LoRA adapters: injected into models, pruned in training, and read, written, merged, inspected and pruned as files."""
