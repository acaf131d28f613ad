from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "regression", "generation"]


@dataclass(frozen=True)
class KindFacts:
    """What a kind of task implies without data or model.

    With `has_classes` labels are class indices. With `writes_text` the model keeps its language-model head and
    generates text; otherwise it gets a fresh task head. `pipeline` is the hub's name of what such a model does.
    """

    name: Kind
    has_classes: bool = False
    writes_text: bool = False
    pipeline: str = "text-classification"

    def fits(self, num_labels: int) -> bool:
        """Returns whether a task head can have this number of outputs: 2 or more for classes, otherwise 1."""
        return self.writes_text or self.has_classes == (num_labels > 1)


KINDS: dict[str, KindFacts] = {
    facts.name: facts
    for facts in (
        KindFacts("classification", has_classes=True),
        KindFacts("regression"),
        KindFacts("generation", writes_text=True, pipeline="text-generation"),
    )
}
