from typing import Any

from torch import Tensor, nn


class TokenCounter:
    """Counts examples and tokens of each step's forward passes. Only `tokens` waits for the device."""

    def __init__(self, model: nn.Module) -> None:
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._counting = False
        self._samples = self._padded = 0
        self._tokens: Tensor | int = 0

    def start(self) -> None:
        self._counting = True
        self._samples = self._padded = 0

    def stop(self) -> None:
        """Stops counting: the next forward pass may be an evaluation's."""
        self._counting = False

    def cost(self, step: int) -> tuple[int, int, int]:
        """Returns (examples, 0, tokens with padding) of this process's last step."""
        return max(1, self._samples), 0, self._padded

    def tokens(self) -> int:
        """Returns the tokens without padding since the last call."""
        found, self._tokens = int(self._tokens), 0
        return found

    def remove(self) -> None:
        self._handle.remove()

    def _count(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._counting:
            return
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
        if not isinstance(ids, Tensor):
            return
        padded = ids.shape[0] * ids.shape[1]
        mask = kwargs.get("attention_mask")
        self._samples += ids.shape[0]
        self._padded += padded
        real = mask.detach().sum() if isinstance(mask, Tensor) and mask.shape == ids.shape[:2] else padded
        self._tokens = self._tokens + real
