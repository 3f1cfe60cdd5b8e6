"""A seed is a function of its name: on every machine, in every process, whatever ran before."""

import numpy as np

from pipeline.common import seeding


def test_a_name_has_the_same_seed_on_every_machine() -> None:
    assert seeding.seed_of("augment", 0, 3, 17) == 4962386592457443301
    assert seeding.generator("split", 0, 4).integers(1000, size=4).tolist() == [841, 283, 849, 4]


def test_names_that_differ_in_any_part_have_different_seeds() -> None:
    names = [
        (place, seed, epoch, index)
        for place in "ab"
        for seed in (0, 1)
        for epoch in (0, 1, 10)
        for index in (0, 1, 10, 11)
    ]
    assert len({seeding.seed_of(*name) for name in names}) == len(names) == 48


def test_text_and_numbers_and_where_a_part_ends_are_told_apart() -> None:
    names = [("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 1, ""), ("a", -1)]
    assert len({seeding.seed_of(*name) for name in names}) == len(names)


def test_seeds_fill_the_range_that_torch_and_numpy_take() -> None:
    seeds = np.array([seeding.seed_of("range", index) for index in range(2000)])
    assert seeds.min() >= 0 and seeds.dtype == np.int64
    assert abs(seeds.mean() / 2**63 - 0.5) < 0.03
    assert abs((seeds % 2).mean() - 0.5) < 0.05


def test_a_generator_does_not_depend_on_what_was_drawn_before() -> None:
    first = seeding.generator("order", 0, 1).permutation(100)
    np.random.seed(3)
    seeding.generator("order", 0, 2).permutation(7)
    assert (seeding.generator("order", 0, 1).permutation(100) == first).all()
    assert (seeding.generator("order", 0, 2).permutation(100) != first).any()
