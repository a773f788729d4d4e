"""Messages are short, whatever is given."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import GIVEN, MESSAGE, ConfigError, RefusedError, cut, did_you_mean, listed, shown


@given(st.text(st.characters(exclude_characters="."), max_size=500), st.integers(60, 300))
def test_a_cut_text_keeps_its_ends(text: str, limit: int) -> None:
    found = cut(text, limit)
    assert len(found) <= limit
    if len(text) <= limit:
        assert found == text
    else:
        start, end = found.split("...")
        assert text.startswith(start)
        assert text.endswith(end)


class Unruly:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_whatever_is_given_is_shown_in_few_characters() -> None:
    assert shown("it's") == '"it\'s"'
    assert shown([1, {"a": 2.5}]) == "[1, {'a': 2.5}]"
    assert len(shown("x" * 10**6)) == 200
    assert shown(10**5000) == "an object of type int"
    assert shown(Unruly()) == "an object of type Unruly"


def test_a_message_has_at_most_1000_characters_and_can_be_sent_to_another_process() -> None:
    assert str(ConfigError("short")) == "short"
    error = RefusedError(f"start {'x ' * 10**6} end")
    assert len(str(error)) == MESSAGE
    assert str(error).startswith("start x x")
    assert str(error).endswith("x x  end")
    assert len(str(RefusedError(f"/{'x' * 10**6}: not\nthere"))) == GIVEN + len(": not\nthere") - 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_ten_of_a_long_list_are_listed() -> None:
    assert listed(["a"]) == ["a"]
    assert listed([str(i) for i in range(10)]) == [str(i) for i in range(10)]
    assert listed([str(i) for i in range(12)]) == [*(str(i) for i in range(10)), "... and 2 more"]


def test_of_several_long_mistakes_each_shows_how_it_begins() -> None:
    lines = [f"{i}: short" for i in range(4)] + [f"{i}: {'x' * 400} end\nmore" for i in range(4, 12)]
    found = listed(lines)
    assert sum(map(len, found)) < MESSAGE - 80
    assert found[:4] == lines[:4]
    assert [each[:6] for each in found[4:10]] == [f"{i}: xxx" for i in range(4, 10)]
    assert all(each.endswith("x end") for each in found[4:10]), "the first line of each"
    assert found[10] == "... and 2 more"
    assert listed(["a\nb", "c"]) == ["a\nb", "c"], "as they are, where they fit"


def test_a_misspelt_name_is_guessed_but_no_long_text() -> None:
    assert did_you_mean("unet", ["FPN", "Unet"]) == did_you_mean("UNETT", ["Unet"]) == " (did you mean `Unet`?)"
    assert did_you_mean("x", ["Unet"]) == ""
    assert did_you_mean("x" * 10**6, ["x" * 10**6, "x" * 90]) == ""
