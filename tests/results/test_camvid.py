"""The lists of CamVid: made from names alone, so that they need no data."""

from results.camvid.split import lists_of


def test_the_end_of_each_drive_is_held_out() -> None:
    train = [f"b_{frame:03d}" for frame in range(8)] + [f"a_f{frame:03d}" for frame in (5, 3, 1, 4, 2)]
    lists = lists_of(train, ["c_1", "a_9"])
    assert lists["heldout"] == ["a_f005", "b_006", "b_007"]
    assert lists["train"] == ["a_f001", "a_f002", "a_f003", "a_f004", *(f"b_{frame:03d}" for frame in range(6))]
    assert lists["val"] == ["c_1", "a_9"]
