"""Adapters as files: reading, converting, merging, inspecting and pruning them, and carrying an arm's out of its study.

| file | purpose |
|---|---|
| `state.py` | what an adapter is once it is read: factors by site, and what came along |
| `read.py`, `files.py` | finding out what a path holds, safetensors with clear errors, folders written whole |
| `peft_format.py`, `native.py`, `loralib.py` | the three formats |
| `load.py`, `merge.py`, `base_check.py` | onto a model, into a model, and whether it is the right one |
| `inspection.py`, `pruning.py`, `conversion.py` | looking at an adapter, making it smaller, changing its format |
| `arm_export.py`, `choice.py`, `card.py`, `hub.py` | from a stored arm to a folder that serves |
"""
