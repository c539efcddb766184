"""Names in figures are told apart by what differs in them."""

from rdrop_reports.text import short_name


def test_long_names_lose_the_words_that_all_begin_with():
    names = ["digits-alpha0.5-seed0", "digits-alpha5-seed0"]
    assert [short_name(name, names, 16) for name in names] == ["…alpha0.5-seed0", "…alpha5-seed0"]


def test_short_or_single_names_stay_and_what_is_still_long_is_cut_in_the_middle():
    assert short_name("base", ["base", "candidate"], 16) == "base"
    assert short_name("a" * 30, ["a" * 30], 16) == f"{'a' * 8}…{'a' * 7}"
    assert len(short_name("x-" + "b" * 30, ["x-" + "b" * 30, "x-c"], 16)) == 16
