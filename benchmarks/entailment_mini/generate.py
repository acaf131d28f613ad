"""`entailment-mini`: a natural-language-inference task that needs no download.

A pair is (premise, hypothesis); the label says whether the hypothesis must be true whenever the premise is. Labels are
computed. Each family of sentences has a small set of *worlds* (who did what), a sentence form is true in some of them,
and

    premise entails hypothesis  <=>  every world that makes the premise true makes the hypothesis true

which is decided by enumerating all worlds. Pairs whose label depends on whether "every dog" implies that there are
dogs (existential import) are left out, since readers differ about them.

The data offer no shortcuts:
    1. Pairs of forms are weighted so that each form is the hypothesis of as many entailments as non-entailments, and
       the premise of as many of each. Neither sentence alone predicts the label.
    2. Words are drawn independently of the label.
    3. Each sentence belongs to one *scene* (which nouns, which verb), and a scene to one split, so that no sentence
       occurs in two splits.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peftprune.errors import UsageError

Split = Literal["train", "validation", "test"]
Words = dict[str, str]
"""Slots of a form and their words, such as {"narrow": "poodle", "past": "slept"}."""

LEXICON: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))
"""The words, and the templates of sentences under quantifiers.

`nouns` are trees of three levels: every leaf is a kind of its middle noun and every middle noun a kind of the root. No
other relation may hold between nouns of one tree (no leaf under two middles), since labels are computed from the tree.
`verbs` have a modifier that narrows them ("slept" / "slept in the garden"), or a participle; none of the latter is
symmetric (no "met", no "married"). `name_pairs` are pairs, so that a sentence about one name belongs to one pair only.
"""

SIZES: dict[Split, int] = {"train": 3000, "validation": 500, "test": 1000}
SHARES: dict[Split, float] = {"train": 0.66, "validation": 0.12, "test": 0.22}
"""Split to its share of the scenes."""

SYNONYM_WEIGHT = 0.7
"""Weight of pairs of synonymous forms, relative to others; too many of them make the task trivial."""

MAX_DIFFERENCES = 2
"""Traits (quantifier, noun, modifier) in which the two forms of a pair may differ."""

TRIES = 50
"""Draws per pair after which the lexicon counts as exhausted."""


class Pair(NamedTuple):
    """One example. `label` indexes `LABEL_NAMES`; `phenomenon` is the name of its family."""

    premise: str
    hypothesis: str
    label: int
    phenomenon: str


@dataclass(frozen=True)
class Form:
    """A sentence with slots, and the worlds of its family in which it is true (bit i is world i).

    `traits` are the choices that made the form; pairs of forms that differ in too many of them are not used.
    """

    template: str
    truth: int
    traits: tuple[object, ...]

    def render(self, words: Words) -> str:
        """Returns the sentence, with its first letter in upper case and a full stop."""
        text = self.template.format_map(words)
        return text[0].upper() + text[1:] + "."


WeightedPairs = dict[int, tuple[list[tuple[Form, Form]], list[float]]]
"""label -> pairs of (premise, hypothesis) forms, and as many weights."""


@dataclass(frozen=True)
class Family:
    """Forms over common worlds, the scenes that fill them, and how words are drawn for a scene."""

    name: str
    forms: tuple[Form, ...]
    plain_worlds: int  # the worlds in which every noun has instances
    scenes: tuple[object, ...]
    draw: Callable[[Any, random.Random], Words]
    share: float

    def label(self, premise: Form, hypothesis: Form) -> int | None:
        """Returns 0 for entailment, 1 for none, and None where it depends on existential import."""
        broken = premise.truth & ~hypothesis.truth
        always, usually = broken == 0, broken & self.plain_worlds == 0
        return None if always != usually else int(not always)


def _truth(worlds: Iterable[object], holds: Callable[..., bool]) -> int:
    return sum(1 << index for index, world in enumerate(worlds) if holds(world))


# --- nouns and verb phrases under quantifiers -------------------------------------------------------------------------
# An individual is (how narrow a noun fits it, what it did): 0 outside the middle noun, 1 the middle noun, 2 the narrow
# one; 0 did not, 1 did, 2 did in the modified way. A world says which of the nine sorts of individual exist.
_INDIVIDUALS = tuple(itertools.product(range(3), range(3)))
_NOUN_WORLDS = tuple(
    frozenset(kept) for size in range(len(_INDIVIDUALS) + 1) for kept in itertools.combinations(_INDIVIDUALS, size)
)
_NOUN_LEVELS = ("wide", "middle", "narrow")


def _noun_truth(quantifier: str, level: int, modified: int) -> int:
    def holds(world: frozenset[tuple[int, int]]) -> bool:
        did = [deed > modified for kind, deed in world if kind >= level]
        return {"some": any(did), "no": not any(did), "every": all(did), "not every": not all(did)}[quantifier]

    return _truth(_NOUN_WORLDS, holds)


def _noun_forms(place: str) -> tuple[Form, ...]:
    forms = []
    templates = LEXICON["templates"][place].items()
    for (quantifier, texts), level, modified in itertools.product(templates, range(3), range(2)):
        truth, noun = _noun_truth(quantifier, level, modified), _NOUN_LEVELS[level]
        for text in texts:
            filled = text.replace("<noun>", f"{{{noun}}}").replace("<a noun>", f"{{a_{noun}}}")
            forms.append(Form(filled + (" {modifier}" if modified else ""), truth, (text, level, modified)))
    return tuple(forms)


def article(noun: str) -> str:
    """Returns "a" or "an"; correct for these nouns, which have no silent h and no "u" read as "you"."""
    return "an" if noun[0] in "aeio" else "a"


def plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return "people" if noun == "person" else noun + "s"


def _draw_subject(scene: tuple[str, Words], rng: random.Random) -> Words:
    root, verb = scene
    tree = LEXICON["nouns"][root]
    middle = rng.choice(list(tree))
    narrow = rng.choice(tree[middle])
    words = dict(verb)
    for level, noun in zip(_NOUN_LEVELS, (root, middle, narrow), strict=True):
        words |= {level: noun, f"a_{level}": f"{article(noun)} {noun}", f"{level}s": plural(noun)}
    return words


def _draw_object(scene: tuple[str, str, Words], rng: random.Random) -> Words:
    name, root, verb = scene
    return {"name": name} | _draw_subject((root, verb), rng)


_SUBJECT_SCENES = tuple((root, verb) for root in ("animal", "person") for verb in LEXICON["verbs"][root])
_NAMES = tuple(itertools.chain.from_iterable(LEXICON["name_pairs"]))
_OBJECT_SCENES = tuple(itertools.product(_NAMES, ("animal", "vehicle", "plant"), LEXICON["verbs"]["object"]))
_PLAIN_NOUN_WORLDS = _truth(_NOUN_WORLDS, lambda world: any(kind == 2 for kind, _ in world))


# --- counting ---------------------------------------------------------------------------------------------------------
# A world is (how many there are, how many of them did it).
_COUNT_WORLDS = tuple((total, did) for total in range(2, 13) for did in range(total + 1))
_PARTS: dict[str, Callable[..., bool]] = {
    "all of the {middles} {past}": lambda total, did: did == total,
    "most of the {middles} {past}": lambda total, did: 2 * did > total,
    "at least one of the {middles} {past}": lambda total, did: did >= 1,
    "some of the {middles} {past}": lambda total, did: did >= 1,
    "none of the {middles} {past}": lambda total, did: did == 0,
    "not all of the {middles} {past}": lambda total, did: did < total,
}
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "at least {} {{middles}} {{past}}": lambda did, number: did >= number,
    "more than {} {{middles}} {{past}}": lambda did, number: did > number,
    "exactly {} {{middles}} {{past}}": lambda did, number: did == number,
    "at most {} {{middles}} {{past}}": lambda did, number: did <= number,
    "fewer than {} {{middles}} {{past}}": lambda did, number: did < number,
}


def _fixed_forms(texts: dict[str, Callable[..., bool]], worlds: Sequence[tuple[Any, ...]]) -> tuple[Form, ...]:
    return tuple(
        Form(text, _truth(worlds, lambda world, holds=holds: holds(*world)), (text,)) for text, holds in texts.items()
    )


def _number_forms() -> tuple[Form, ...]:
    return tuple(
        Form(
            text.format(LEXICON["numbers"][number]),
            _truth(_COUNT_WORLDS, lambda world, holds=holds, number=number: holds(world[1], number)),
            (text, number),
        )
        for text, holds in _NUMBERS.items()
        for number in range(2, 7)
    )


# --- who did it to whom -----------------------------------------------------------------------------------------------
_PAIR_WORLDS = tuple(itertools.product((False, True), repeat=2))


def _role_forms() -> tuple[Form, ...]:
    texts = {
        "the {doer} {past} the {other}": True,
        "the {other} was {participle} by the {doer}": True,
        "the {doer} did not {base} the {other}": False,
        "the {other} was not {participle} by the {doer}": False,
    }
    return tuple(
        Form(
            text.replace("doer", doer).replace("other", other),
            _truth(_PAIR_WORLDS, lambda world, index=index, value=value: world[index] == value),
            (text, doer),
        )
        for text, value in texts.items()
        for index, (doer, other) in enumerate((("first", "second"), ("second", "first")))
    )


def _draw_pair(scene: tuple[tuple[str, str], Words], rng: random.Random) -> Words:
    (first, second), verb = scene
    if rng.random() < 0.5:
        first, second = second, first
    return {"first": first, "second": second, **verb}


# --- and, or, neither -------------------------------------------------------------------------------------------------
_CONNECTIVES: dict[str, Callable[..., bool]] = {
    "{first} and {second} {past}": lambda first, second: first and second,
    "both {first} and {second} {past}": lambda first, second: first and second,
    "{first} or {second} {past}": lambda first, second: first or second,
    "neither {first} nor {second} {past}": lambda first, second: not (first or second),
    "{first} {past}, but {second} did not": lambda first, second: first and not second,
    "{second} {past}, but {first} did not": lambda first, second: second and not first,
    "{first} {past}": lambda first, second: first,
    "{second} {past}": lambda first, second: second,
    "{first} did not {base}": lambda first, second: not first,
    "{second} did not {base}": lambda first, second: not second,
}
_ROLE_SCENES = tuple(itertools.product(itertools.combinations(LEXICON["roles"], 2), LEXICON["verbs"]["role"]))
_NAME_SCENES = tuple(itertools.product(LEXICON["name_pairs"], LEXICON["verbs"]["person"]))
_ALL_WORLDS = -1  # every bit set


def families() -> tuple[Family, ...]:
    """Returns the kinds of inference in the task; their shares add up to 1."""
    return (
        Family("subject", _noun_forms("subject"), _PLAIN_NOUN_WORLDS, _SUBJECT_SCENES, _draw_subject, 0.3),
        Family("object", _noun_forms("object"), _PLAIN_NOUN_WORLDS, _OBJECT_SCENES, _draw_object, 0.2),
        Family("parts", _fixed_forms(_PARTS, _COUNT_WORLDS), _ALL_WORLDS, _SUBJECT_SCENES, _draw_subject, 0.15),
        Family("numbers", _number_forms(), _ALL_WORLDS, _SUBJECT_SCENES, _draw_subject, 0.05),
        Family("roles", _role_forms(), _ALL_WORLDS, _ROLE_SCENES, _draw_pair, 0.15),
        Family("connectives", _fixed_forms(_CONNECTIVES, _PAIR_WORLDS), _ALL_WORLDS, _NAME_SCENES, _draw_pair, 0.15),
    )


# --- drawing ----------------------------------------------------------------------------------------------------------
@cache
def _form_pairs() -> list[WeightedPairs]:
    """Returns the weighted pairs of forms of each family, by label; they do not depend on a seed."""
    return [_weighted_form_pairs(family) for family in families()]


def _weighted_form_pairs(family: Family, rounds: int = 60) -> WeightedPairs:
    """Returns for each label the pairs of forms and their weights: no form favours a label in either position."""
    weights: dict[tuple[int, int, int], float] = {}
    for (i, premise), (j, hypothesis) in itertools.permutations(enumerate(family.forms), 2):
        differences = sum(a != b for a, b in zip(premise.traits, hypothesis.traits, strict=True))
        if (label := family.label(premise, hypothesis)) is not None and differences <= MAX_DIFFERENCES:
            weights[i, j, label] = SYNONYM_WEIGHT if premise.truth == hypothesis.truth else 1.0

    # Forms that can only have one label in a position are taken out of that position.
    while True:
        seen = {(side, key[side], key[2]) for key in weights for side in (0, 1)}
        kept = {k: w for k, w in weights.items() if all((side, k[side], 1 - k[2]) in seen for side in (0, 1))}
        if len(kept) == len(weights):
            break
        weights = kept
    # Iterative proportional fitting balances the rest.
    for _ in range(rounds):
        for side in (1, 0):
            totals: dict[tuple[int, int], float] = {}
            for key, weight in weights.items():
                totals[key[side], key[2]] = totals.get((key[side], key[2]), 0.0) + weight
            weights = {key: weight / totals[key[side], key[2]] for key, weight in weights.items()}
    return {
        label: (
            [(family.forms[i], family.forms[j]) for i, j, its_label in weights if its_label == label],
            [weight for (_, _, its_label), weight in weights.items() if its_label == label],
        )
        for label in (0, 1)
    }


def _deal_scenes(kinds: Sequence[Family], rng: random.Random) -> dict[tuple[int, Split], list[object]]:
    """Assigns each scene to one split. Families that share their scenes share the assignment."""
    dealt: dict[tuple[int, Split], list[object]] = {}
    decks: dict[int, list[object]] = {}
    for number, family in enumerate(kinds):
        if (deck := decks.get(id(family.scenes))) is None:
            deck = decks[id(family.scenes)] = rng.sample(family.scenes, len(family.scenes))
        start = 0.0
        for split, share in SHARES.items():
            dealt[number, split] = deck[round(start * len(deck)) : round((start + share) * len(deck))]
            start += share
    return dealt


def generate(seed: int = 0, sizes: dict[Split, int] | None = None) -> dict[Split, list[Pair]]:
    """Generates the three splits of shuffled pairs; equal seeds give equal data on every platform.

    Exactly half of each split has each label; no pair occurs twice in a split; no sentence occurs in two splits, in
    either position. `sizes` of the splits, `SIZES` by default, are even and positive.
    """
    rng = random.Random(seed)
    kinds = families()
    scenes = _deal_scenes(kinds, rng)
    form_pairs = _form_pairs()
    splits: dict[Split, list[Pair]] = {}
    for split, size in (SIZES if sizes is None else sizes).items():
        if size <= 0 or size % 2:
            raise UsageError.of("sizes", size, f"does not fit {split}", "Give an even number of pairs, at least 2.")
        pairs: dict[tuple[str, str], Pair] = {}
        for label in (0, 1):
            wanted = len(pairs)
            for number, family in enumerate(kinds):
                wanted = (label + 1) * size // 2 if number == len(kinds) - 1 else wanted + int(family.share * size / 2)
                choices, weights = form_pairs[number][label]
                for _ in range(TRIES * size):
                    if len(pairs) == wanted:
                        break
                    premise, hypothesis = rng.choices(choices, weights)[0]
                    words = family.draw(rng.choice(scenes[number, split]), rng)
                    key = premise.render(words), hypothesis.render(words)
                    pairs.setdefault(key, Pair(*key, label, family.name))
                else:
                    cure = "Give a smaller number; the standard sizes are in SIZES."
                    raise UsageError.of("sizes", size, f"is above the number of different pairs in {split}", cure)
        splits[split] = rng.sample(list(pairs.values()), size)
    return splits
