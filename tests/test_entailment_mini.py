"""The generated task: right labels, balance, disjoint splits, and no shortcut that gives the label away."""

import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from benchmarks.entailment_mini import generate as mini
from benchmarks.entailment_mini.generate import SIZES, Family, Form, Pair, families, generate
from peftprune.errors import UsageError
from peftprune.tasks import load_task

YES, NO = 0, 1
FORMS: dict[tuple[str, str], tuple[Family, Form]] = {
    (family.name, form.template): (family, form) for family in families() for form in family.forms
}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Pair]]:
    return generate()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("family", "premise", "hypothesis", "label"),
    [
        ("subject", "every {middle} {past}", "every {narrow} {past}", YES),
        ("subject", "every {narrow} {past}", "every {middle} {past}", NO),
        ("subject", "{a_narrow} {past}", "some {wide} {past}", YES),
        ("subject", "some {wide} {past}", "{a_narrow} {past}", NO),
        ("subject", "no {wide} {past}", "no {middle} {past} {modifier}", YES),
        ("subject", "no {middle} {past} {modifier}", "no {middle} {past}", NO),
        ("subject", "every {wide} {past} {modifier}", "each {narrow} {past}", YES),
        ("subject", "not every {narrow} {past}", "not every {wide} {past}", YES),
        ("subject", "not every {wide} {past}", "some {wide} {past}", NO),
        ("subject", "no {middle} {past}", "some {wide} {past}", NO),
        # Without dogs both "every dog slept" and "no dog slept" hold for logicians only.
        ("subject", "every {middle} {past}", "some {middle} {past}", None),
        ("subject", "no {middle} {past}", "not every {middle} {past}", None),
        ("object", "{name} {past} {a_narrow}", "{name} {past} at least one {middle}", YES),
        ("object", "{name} did not {base} {a_middle}", "{name} {past} no {narrow}", YES),
        ("object", "{name} did not {base} {a_narrow}", "{name} {past} no {middle}", NO),
        ("parts", "all of the {middles} {past}", "most of the {middles} {past}", YES),
        ("parts", "most of the {middles} {past}", "some of the {middles} {past}", YES),
        ("parts", "most of the {middles} {past}", "all of the {middles} {past}", NO),
        ("parts", "none of the {middles} {past}", "not all of the {middles} {past}", YES),
        ("numbers", "at least four {middles} {past}", "more than three {middles} {past}", YES),
        ("numbers", "more than three {middles} {past}", "at least four {middles} {past}", YES),
        ("numbers", "exactly five {middles} {past}", "at least three {middles} {past}", YES),
        ("numbers", "at least three {middles} {past}", "exactly five {middles} {past}", NO),
        ("numbers", "fewer than three {middles} {past}", "at most two {middles} {past}", YES),
        ("roles", "the {first} {past} the {second}", "the {second} was {participle} by the {first}", YES),
        ("roles", "the {first} {past} the {second}", "the {first} was {participle} by the {second}", NO),
        ("roles", "the {first} did not {base} the {second}", "the {second} was not {participle} by the {first}", YES),
        ("connectives", "{first} and {second} {past}", "{second} {past}", YES),
        ("connectives", "{first} or {second} {past}", "{second} {past}", NO),
        ("connectives", "{first} {past}", "{first} or {second} {past}", YES),
        ("connectives", "neither {first} nor {second} {past}", "{second} did not {base}", YES),
        ("connectives", "{first} did not {base}", "neither {first} nor {second} {past}", NO),
    ],
)
def test_labels_are_logically_right(family: str, premise: str, hypothesis: str, label: int | None) -> None:
    its_family, first = FORMS[family, premise]
    assert its_family.label(first, FORMS[family, hypothesis][1]) == label


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_entailment_is_reflexive_and_transitive_and_no_form_is_trivial(family: Family) -> None:
    entailed = {(a, b) for a, b in itertools.product(family.forms, repeat=2) if a.truth & ~b.truth == 0}
    assert all((form, form) in entailed for form in family.forms)
    assert all((a, d) in entailed for a, b in entailed for c, d in entailed if b is c)
    assert all(form.truth for form in family.forms), "a form that is never true entails everything"


def test_the_labels_of_the_generated_pairs_agree_with_a_second_look(splits: dict[str, list[Pair]]) -> None:
    """Nouns under "some/every/no" again, by the rules of monotonicity instead of worlds."""
    level = {"animal": 0, "person": 0}
    for tree in (mini.LEXICON["nouns"][root] for root in list(level)):
        level |= dict.fromkeys(tree, 1) | dict.fromkeys(itertools.chain.from_iterable(tree.values()), 2)
    pattern = re.compile(r"(Some|A|An|Every|Each|No) (\w+) (\w+)( .*)?\.")
    looked_at = 0
    for pair in itertools.chain.from_iterable(splits.values()):
        first, second = pattern.fullmatch(pair.premise), pattern.fullmatch(pair.hypothesis)
        if pair.phenomenon != "subject" or not first or not second:
            continue
        kind = {"Some": "some", "A": "some", "An": "some", "Every": "every", "Each": "every", "No": "no"}
        if kind[first[1]] != kind[second[1]]:
            continue
        wider_noun = level[second[2]] <= level[first[2]]
        narrower_noun = level[second[2]] >= level[first[2]]
        wider_verb = not second[4] or bool(first[4])
        narrower_verb = bool(second[4]) or not first[4]
        entails = {
            "some": wider_noun and wider_verb,
            "every": narrower_noun and wider_verb,
            "no": narrower_noun and narrower_verb,
        }[kind[first[1]]]
        assert pair.label == (YES if entails else NO), pair
        looked_at += 1
    assert looked_at > 300


def test_sizes_balance_and_no_duplicates(splits: dict[str, list[Pair]]) -> None:
    assert list(splits) == ["train", "validation", "test"]
    for name, pairs in splits.items():
        assert len(pairs) == SIZES[name]  # type: ignore[index]
        assert Counter(pair.label for pair in pairs) == {0: len(pairs) // 2, 1: len(pairs) // 2}
        assert len({pair[:2] for pair in pairs}) == len(pairs)
        assert all(pair.premise != pair.hypothesis for pair in pairs)
        per_family = Counter((pair.phenomenon, pair.label) for pair in pairs)
        assert all(per_family[family.name, 0] == per_family[family.name, 1] > 0 for family in families())


def test_no_sentence_is_in_two_splits(splits: dict[str, list[Pair]]) -> None:
    sentences = [{sentence for pair in pairs for sentence in pair[:2]} for pairs in splits.values()]
    for one, other in itertools.combinations(sentences, 2):
        assert not one & other


def test_sentences_look_like_sentences(splits: dict[str, list[Pair]]) -> None:
    for pair in itertools.chain.from_iterable(splits.values()):
        for sentence in pair[:2]:
            assert re.fullmatch(r"[A-Z][A-Za-z, ]*[a-z]\.", sentence), sentence
            assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeio]|  ", sentence), sentence
        assert len(f"{pair.premise} {pair.hypothesis}".split()) < 26


def test_a_seed_decides_everything() -> None:
    sizes = {"train": 200, "test": 60}
    assert generate(3, sizes) == generate(3, sizes)  # type: ignore[arg-type]
    assert generate(3, sizes) != generate(4, sizes)  # type: ignore[arg-type]


def test_bad_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 7):
        with pytest.raises(UsageError, match="even number"):
            generate(0, {"train": size})
    monkeypatch.setattr(mini, "TRIES", 3)
    with pytest.raises(UsageError, match="different pairs"):
        generate(0, {"validation": 4000})


@pytest.mark.parametrize(
    "readers",
    [
        [lambda pair: pair.hypothesis],
        [lambda pair: pair.premise],
        [lambda pair: f"{pair.premise} {pair.hypothesis}"],
        [lambda pair: pair.premise, lambda pair: pair.hypothesis],
    ],
    ids=["hypothesis", "premise", "together", "side by side"],
)
@pytest.mark.parametrize("ngrams", [1, 2])
def test_bags_of_words_do_not_give_the_label_away(
    splits: dict[str, list[Pair]], readers: list[Callable[[Pair], str]], ngrams: int
) -> None:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    bags: dict[str, list[object]] = {"train": [], "test": []}
    for reader in readers:
        counter = CountVectorizer(token_pattern=r"\w+", ngram_range=(1, ngrams))
        bags["train"].append(counter.fit_transform([reader(pair) for pair in splits["train"]]))
        bags["test"].append(counter.transform([reader(pair) for pair in splits["test"]]))
    model = LogisticRegression(C=0.3, max_iter=500).fit(hstack(bags["train"]), [pair.label for pair in splits["train"]])
    assert model.score(hstack(bags["test"]), [pair.label for pair in splits["test"]]) < 0.62


def test_the_task_carries_the_generated_pairs(splits: dict[str, list[Pair]]) -> None:
    task, again = load_task("entailment-mini"), load_task("Entailment_Mini")
    assert task.validation is not None
    held = {"train": task.train, "validation": task.validation, "test": task.evaluation["test"]}
    for name, pairs in splits.items():
        assert [tuple(row.values()) for row in held[name]] == [pair[:3] for pair in pairs]
    assert task.label_names == ("entailment", "not_entailment")
    assert task.train.column_names == ["text_a", "text_b", "label"]
    assert list(task.evaluation) == ["test"]
    assert task.fingerprint == again.fingerprint
