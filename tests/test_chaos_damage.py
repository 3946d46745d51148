"""The campaign's damage to what is fetched, built and believed: a few of each kind here, all of it by its command."""

from collections import Counter

import pytest

from utils.course.chaos.damage import cases
from utils.course.chaos.harms import HARMS

QUICK = cases(quick=True)


@pytest.mark.parametrize("case", QUICK, ids=[case.name for case in QUICK])
def test_the_course_holds(case, tmp_path):
    assert case.attempt(tmp_path) is None


def test_the_long_campaign_tries_every_damage_on_every_kind_of_file():
    found = cases(quick=False)
    assert len({case.name for case in found}) == len(found) >= 120
    kinds = Counter(case.kind for case in found)
    assert {"unpacked package", "built model", "generated texts", "committed model", "snapshot of the Hub", "full disk"
            } <= set(kinds)
    assert all(any(name in case.name for case in found) for name in HARMS)
