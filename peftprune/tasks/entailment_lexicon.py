"""The words of `entailment-mini`, as data.

Nouns form three-level trees: every leaf is a kind of its middle noun and every middle noun a kind of the root. No other
relation may hold between nouns of one tree (no leaf under two middles), since labels are computed from the tree alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb phrase: past form, base form, and a modifier that narrows it ("slept" / "slept in the garden")."""

    past: str
    base: str
    modifier: str


class TransitiveVerb(NamedTuple):
    """A verb with an object: past form, base form, participle. None is symmetric (no "met", no "married")."""

    past: str
    base: str
    participle: str


ANIMALS: dict[str, tuple[str, ...]] = {
    "dog": ("poodle", "beagle", "terrier", "collie"),
    "bird": ("robin", "sparrow", "owl", "eagle"),
    "horse": ("pony", "stallion", "mare"),
    "insect": ("beetle", "wasp", "ant"),
}
PEOPLE: dict[str, tuple[str, ...]] = {
    "musician": ("violinist", "pianist", "drummer"),
    "scientist": ("chemist", "biologist", "physicist"),
    "athlete": ("boxer", "swimmer", "gymnast"),
    "artist": ("painter", "sculptor", "illustrator"),
}
VEHICLES: dict[str, tuple[str, ...]] = {
    "car": ("limousine", "jeep", "taxi"),
    "boat": ("canoe", "ferry", "kayak"),
    "airplane": ("jet", "glider", "biplane"),
}
PLANTS: dict[str, tuple[str, ...]] = {
    "flower": ("rose", "tulip", "orchid"),
    "tree": ("oak", "willow", "maple"),
}

ANIMAL_VERBS = (
    Verb("slept", "sleep", "in the garden"),
    Verb("ate", "eat", "in the morning"),
    Verb("moved", "move", "at night"),
    Verb("rested", "rest", "on the grass"),
    Verb("escaped", "escape", "on Monday"),
    Verb("returned", "return", "before noon"),
    Verb("drowned", "drown", "in the lake"),
    Verb("hid", "hide", "in the barn"),
    Verb("died", "die", "in the winter"),
    Verb("appeared", "appear", "at dawn"),
    Verb("survived", "survive", "in the desert"),
    Verb("disappeared", "disappear", "during the storm"),
)
PERSON_VERBS = (
    Verb("sang", "sing", "on the stage"),
    Verb("smiled", "smile", "at the party"),
    Verb("danced", "dance", "in the rain"),
    Verb("left", "leave", "before lunch"),
    Verb("complained", "complain", "on the phone"),
    Verb("laughed", "laugh", "in the kitchen"),
    Verb("worked", "work", "at night"),
    Verb("cried", "cry", "on Friday"),
    Verb("traveled", "travel", "in the summer"),
    Verb("spoke", "speak", "at the meeting"),
    Verb("waited", "wait", "at the station"),
    Verb("cooked", "cook", "in the evening"),
)
# What somebody may do to an animal, a vehicle or a plant, and when.
OBJECT_VERBS = (
    Verb("bought", "buy", "on Monday"),
    Verb("sold", "sell", "in the spring"),
    Verb("painted", "paint", "at home"),
    Verb("noticed", "notice", "in the park"),
    Verb("photographed", "photograph", "on Sunday"),
    Verb("described", "describe", "in a letter"),
    Verb("lost", "lose", "in the city"),
    Verb("found", "find", "after lunch"),
)
SUBJECT_SCENES: dict[str, tuple[dict[str, tuple[str, ...]], tuple[Verb, ...]]] = {
    "animal": (ANIMALS, ANIMAL_VERBS),
    "person": (PEOPLE, PERSON_VERBS),
}
OBJECT_TREES: dict[str, dict[str, tuple[str, ...]]] = {"animal": ANIMALS, "vehicle": VEHICLES, "plant": PLANTS}

# Pairs, so that a sentence about one name belongs to one pair only.
NAME_PAIRS = (
    ("Anna", "Ben"),
    ("Clara", "David"),
    ("Emma", "Frank"),
    ("Grace", "Henry"),
    ("Julia", "Kevin"),
    ("Laura", "Martin"),
    ("Nina", "Oscar"),
    ("Paula", "Robert"),
)
ROLES = (
    "doctor",
    "lawyer",
    "teacher",
    "farmer",
    "nurse",
    "judge",
    "baker",
    "pilot",
    "engineer",
    "sailor",
    "waiter",
    "student",
)
ROLE_VERBS = (
    TransitiveVerb("thanked", "thank", "thanked"),
    TransitiveVerb("called", "call", "called"),
    TransitiveVerb("helped", "help", "helped"),
    TransitiveVerb("followed", "follow", "followed"),
    TransitiveVerb("saw", "see", "seen"),
    TransitiveVerb("praised", "praise", "praised"),
    TransitiveVerb("warned", "warn", "warned"),
    TransitiveVerb("blamed", "blame", "blamed"),
    TransitiveVerb("invited", "invite", "invited"),
    TransitiveVerb("ignored", "ignore", "ignored"),
    TransitiveVerb("paid", "pay", "paid"),
    TransitiveVerb("visited", "visit", "visited"),
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IRREGULAR_PLURALS = {"person": "people"}


def article(noun: str) -> str:
    """Returns "a" or "an"; correct for this lexicon, whose nouns have no silent h and no "u" read as "you"."""
    return "an" if noun[0] in "aeio" else "a"


def plural(noun: str) -> str:
    """Returns the plural of a noun of this lexicon."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
