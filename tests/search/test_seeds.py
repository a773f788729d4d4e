import numpy as np

from autosegloss.search.seeds import comparison_seeds, final_seeds, screening_seeds, step_rng, step_seed, tuning_seeds


def word(entropy: int, purpose: int, ordinal: int) -> int:
    return int(np.random.SeedSequence(entropy, spawn_key=(purpose, ordinal)).generate_state(1)[0])


def test_the_seeds_are_those_of_the_convention() -> None:
    assert [step_seed(7, step) for step in range(3)] == [word(7, 0, i) for i in range(3)]
    assert final_seeds(7, 3, used=()) == [word(7, 1, i) for i in range(3)]
    assert comparison_seeds(7, 3) == [word(7, 2, i) for i in range(3)]
    assert screening_seeds(7, 3) == [word(7, 3, i) for i in range(3)]
    assert tuning_seeds(7, 3) == [word(7, 4, i) for i in range(3)]
    assert step_rng(7, 3).random() == np.random.default_rng((7, 3)).random()


def test_the_finals_skip_the_seeds_of_steps() -> None:
    assert final_seeds(7, 2, used={word(7, 1, 0)}) == [word(7, 1, 1), word(7, 1, 2)]
