import pytest

from rdrop_probes.records import Metric
from rdrop_reports.numbers import format_estimate, format_number, format_p, format_parts, format_to, last_place

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("estimate", "low", "high", "text"),
    [
        (0.132, 0.128, 0.137, "0.132 [0.128, 0.137]"),
        (0.1324, 0.1312, 0.1336, "0.1324 [0.1312, 0.1336]"),
        (1.32e-5, 1.28e-5, 1.37e-5, "1.32e-5 [1.28e-5, 1.37e-5]"),
        (123.0, 120.0, 127.0, "123 [120, 127]"),
        (-0.0003, -0.001, 0.0002, "\N{MINUS SIGN}0.0003 [\N{MINUS SIGN}0.0010, 0.0002]"),
        (1.0e-14, 0.0, 2.5e-14, "1.0e-14 [0, 2.5e-14]"),
        (-4e-21, -1.1e-19, 1.0e-19, f"{MINUS}4e-21 [{MINUS}110e-21, 100e-21]"),
        (2e-9, 0.5e-9, 3.5e-9, "2.0e-9 [0.5e-9, 3.5e-9]"),
        (1e-14, -1.1e-4, 1e-4, f"1e-14 [{MINUS}1.1e-4, 1.0e-4]"),
        (0.0, -1e-14, 1e-14, f"0 [{MINUS}1.0e-14, 1.0e-14]"),
        (1.5e6, 0.9e6, 2.1e6, "1.5e6 [0.9e6, 2.1e6]"),
        (9.996e-5, None, None, "1.00e-4"),
        (9.96e-5, 9.5e-5, 10.5e-5, "1.00e-4 [0.95e-4, 1.05e-4]"),
        (5e-324, None, None, "0"),
        (5e-324, -5e-324, 5e-324, "0 [0, 0]"),
        (1e101, 0.1, 0.2, "\N{EN DASH}"),
        (0.1, -1e308, 1e308, "0.100"),
        (0.0, None, None, "0"),
        (0.25, None, 0.3, "0.250"),
        (None, 0.1, 0.2, "\N{EN DASH}"),
        (float("nan"), 0.1, 0.2, "\N{EN DASH}"),
    ],
)
def test_digits_follow_the_interval(estimate, low, high, text):
    assert format_estimate(Metric(estimate=estimate, low=low, high=high)) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.99996, "99.996%"), (0.0, "0%"), (0.00002, "0.00200%"), (0.972, "97.2%")],
)
def test_only_exact_shares_are_shown_as_0_or_100(share, text):
    assert format_number(share, percent=True) == text


def test_an_estimate_below_its_intervals_digits_is_not_rounded_to_0():
    assert format_parts(1e-5, -0.001, 0.001).estimate == "0.00001"
    assert format_parts(0.99996, 0.99, 1.0, percent=True).estimate == "99.996%"


def test_exact_bounds_are_told_from_rounded_ones():
    assert str(format_parts(1.0, 0.9981, 1.0, percent=True)) == "100% [99.81%, 100%]"


def test_a_p_value_is_never_0():
    assert format_p(0.0) == "p < 0.001"
    assert format_p(0.0123) == "p = 0.012"
    assert format_p(None) == "p not available"


@pytest.mark.parametrize(
    ("values", "difference", "texts"),
    [
        ([0.0441, 0.0738], (-0.0297, -0.051, -0.009), ["0.044", "0.074"]),
        ([0.0123214, 0.0123], (2.14e-5, 1.9e-5, 2.4e-5), ["0.0123214", "0.0123000"]),
        ([3.1e-5, 1e-5], (2.1e-5, None, None), ["3.10e-5", "1.00e-5"]),
        ([1.0, 0.0], (1.0, -90.0, 92.0), ["1", "0"]),
        ([None, 0.5], (None, None, None), ["\N{EN DASH}", "0.5"]),
    ],
)
def test_what_is_compared_has_the_digits_of_the_difference(values, difference, texts):
    assert format_to(values, last_place(*difference)) == texts


def test_a_missing_metric_is_a_dash():
    assert format_estimate(None) == "\N{EN DASH}"
