"""Plans arms whose allocation comes from another stored study."""

from pathlib import Path
from tempfile import TemporaryDirectory

from peftprune.errors import UsageError
from peftprune.strategy.budget import Outcome
from peftprune.study.packed import readable
from peftprune.study.planning import ArmPlan
from peftprune.study.stored_study import StoredStudy


def after_elsewhere(plan: ArmPlan, seed: int, budget: str) -> ArmPlan:
    """Returns the plan with ranks from the arm of this seed in another study or packed study, whatever its task.

    `budget` selects among several arms. Raises UsageError, naming the method, where the study, its method or a finished
    arm of the seed is missing, several remain, or the studies do not adapt the same sites.
    """
    try:
        return plan.after(_outcome(plan, seed, budget))
    except UsageError as error:
        raise UsageError(f"{plan.label}: {error}") from None


def _outcome(plan: ArmPlan, seed: int, budget: str) -> Outcome:
    folder, method = str(plan.method.elsewhere), str(plan.method.depends_on)
    with TemporaryDirectory() as temporary:
        study = StoredStudy.load(readable(Path(folder), Path(temporary) / "study")).only(method=method)
        arms = list(study.finished())
    found = [(key["budget"], result) for key, _, result in arms if key["seed"] == seed]
    found = [arm for arm in found if arm[0] == budget] or found
    if not found:
        seeds = ", ".join(map(str, sorted({key["seed"] for key, _, _ in arms}))) or "none"
        raise UsageError.of("seeds", seed, f"has no finished arm of {method} in {folder}", f"Finished seeds: {seeds}")
    if len(found) > 1:
        problem = f"holds {len(found)} arms of {method} with seed {seed}"
        raise UsageError.of("of", folder, problem, "Name a study of one task, with this budget or a single one")
    taken = Outcome.of(found[0][1])
    if differing := sorted({shape.name for shape in plan.shapes} ^ taken.ranks.keys()):
        problem = "is adapted in one of the two studies only"
        raise UsageError.of("site", differing[0], problem, f"Adapt the layers of {folder}: model and target_modules")
    return taken
