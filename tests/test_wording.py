"""Words: numbers, roles and layers are said as people read them, in units."""

from __future__ import annotations

import pytest

from advisor import units
from advisor.types import Role
from advisor.ui import wording
from tests import sample_results


@pytest.mark.parametrize(
    "said, expected",
    [
        (wording.size(3 * wording.GIB // 2), "1.50 GiB"),
        (wording.size(128 * wording.MIB), "128.00 MiB"),
        (wording.size(2048), "2.0 KiB"),
        (wording.size(300), "300 bytes"),
        (wording.parameters(134_515_008), "134.5 M"),
        (wording.parameters(7_241_732_096), "7.242 B"),
        (wording.with_error(18.4037, 0.5712), "18.40 ± 0.57"),
        (wording.with_error(0.00213, 0.00004), "0.002130 ± 0.000040"),
        (wording.with_error(2.134e-7, 4.1e-9), "(2.134 ± 0.041)e-7"),
        (wording.percent(-0.114), "−0.11 %"),
        (wording.percent(31.4), "+31.4 %"),
        (wording.percent(127.4), "+127 %"),
        (wording.number(0.0000123), "1.23e-5"),
        (wording.number(1234.5), "1,234"),
        (units.number(7e-5, 2), "7.0e-5"),
        (units.number(99.7, 2), "100"),
        (units.duration(59.6), "1 min 00 s"),
        (units.duration(1671), "28 min"),
        (units.duration(3590), "1 h 00 min"),
        (units.duration(7500), "2 h 05 min"),
        (wording.plural(1, "layer"), "1 layer"),
    ],
)
def test_numbers_are_said_as_people_read_them(said, expected):
    assert said == expected


def test_every_role_has_a_name_of_its_own():
    assert len({wording.role(role) for role in Role}) == len(Role)


def test_layers_are_told_apart_by_their_labels():
    catalogue = sample_results.catalogue()
    labels = wording.layer_labels(catalogue)
    assert labels["model.layers.12.mlp.down_proj"] == "12 · down_proj"
    assert len(set(labels.values())) == len(catalogue.quantizable)


def test_nothing_works_in_a_name_that_somebody_gave():
    assert wording.verbatim("five bits, 06:08") == "five bits, 06:08"
    odd = "*x* <b> [a](http://b) :red[y] :smile: $z$ `c` www.d.e"
    joined = wording.verbatim(odd).replace("\u2060", "·")
    assert joined == r"\*x\* \<b\> \[a\](http:·//b) :·red\[y\] :·smile: \$z\$ \`c\` www·.d.e"
