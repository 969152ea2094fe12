#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/federated/fixtures/privacy.json: what Google's dp-accounting (0.6.0) says that releases with Gaussian noise cost.

    python3 -m venv venv && venv/bin/pip install dp-accounting==0.6.0 && venv/bin/python tools/federated/make_privacy_fixtures.py

"rdp" is its Renyi accountant at the whole orders that ours takes for samples (and its own list for the Gaussian), "pld" its accountant
of privacy loss distributions, which is the truth to about its discretisation: no bound may lie below it."""
import json
import pathlib

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

PATH = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "federated" / "fixtures" / "privacy.json"
CASES = [(noise, rate, releases, delta)
         for noise, rate, releases in ((1.0, 1.0, 1), (1.0, 1.0, 20), (0.5, 1.0, 3), (4.0, 1.0, 100), (1.1, 0.01, 1000), (0.8, 0.05, 200),
                                       (1.0, 1 / 3, 20), (2.0, 0.25, 100), (6.0, 0.1, 500), (1.0, 0.001, 5000))
         for delta in (1e-5, 1e-7)]


def orders() -> list[int]:
    """src/lk/federated/privacy_accounting.cpp's."""
    found, order = [], 2
    while order <= 1024:
        found.append(order)
        order += 1 + order // 64
    return found


def epsilon(accountant, noise: float, rate: float, releases: int, delta: float) -> float:
    event = dp_accounting.GaussianDpEvent(noise)
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountant.compose(event, releases)
    return accountant.get_epsilon(delta)


def main() -> None:
    cases = []
    for noise, rate, releases, delta in CASES:
        renyi = RdpAccountant(orders(), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE) if rate < 1 else RdpAccountant()
        cases.append({"noise": noise, "rate": rate, "releases": releases, "delta": delta,
                      "rdp": epsilon(renyi, noise, rate, releases, delta),
                      "pld": epsilon(PLDAccountant(value_discretization_interval=1e-4), noise, rate, releases, delta)})
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
