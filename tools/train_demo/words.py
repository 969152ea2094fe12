# SPDX-License-Identifier: Apache-2.0
"""Word lists and small text helpers shared by the corpus and the tasks."""

from __future__ import annotations

import random

FIRST = (
    "Anna Tom Maria Peter Lena Omar Julia David Nina Hugo Sara Felix Emma Ivan Clara Leo Mona Karl "
    "Rosa Adam Elsa Paul Tina Ali Greta Max Yara Ben Lucy Oscar Vera Sam Ida Noah Mila Erik Dora "
    "Finn Hana Marco"
).split()
LAST = (
    "Berg Silva Novak Weber Rossi Khan Moreau Lind Costa Meyer Tanaka Kovac Hansen Lopez Brandt "
    "Fischer Ortega Walsh Nagy Ito Dubois Keller Santos Larsen Becker Romano Patel Holm Vega Young "
    "Carter Stone Bauer Marino Wolf Jansen Popov Reyes Clarke Sato"
).split()
CITY = (
    "Oslo Paris Lima Cairo Berlin Madrid Rome Tokyo Dublin Vienna Prague Lisbon Athens Warsaw Delhi "
    "Boston Quito Accra Seoul Geneva Zurich Porto Turin Lyon Bergen Malmo Riga Tunis Denver Austin "
    "Sydney Perth Nairobi Havana Bogota Milan Krakow Ghent Leeds Kyoto"
).split()
JOB = (
    "baker teacher doctor pilot farmer painter driver nurse lawyer writer singer cook tailor plumber "
    "dentist gardener sailor chemist waiter builder"
).split()
PRODUCT = (
    "lamp chair table sofa desk clock mirror carpet kettle blender toaster camera radio guitar "
    "bicycle jacket scarf basket bottle wallet"
).split()
COLOR = "red blue green yellow black white brown orange purple grey".split()
MONTH = (
    "January February March April May June July August September October November December"
).split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COMPANY = "Norda Veltra Kimco Solaris Brightway Finova Polarix Tessera Quanta Lumora".split()
ANIMAL = "fox owl rabbit bear mouse hedgehog duck frog cat dog goat crow".split()
PLACE = "forest river hill garden barn village meadow lake mill bridge".split()
FOOD = "bread soup apples honey cheese berries rice cake pears nuts".split()
WEATHER = "sunny rainy cloudy windy foggy snowy warm cold".split()
FEELING = "happy tired curious hungry brave sleepy proud calm lonely cheerful".split()
FRUIT = "apples pears plums eggs coins books stamps cards shells pencils".split()

_ONSET = "b d f g k l m n p r s t v z br dr st tr".split()
_VOWEL = "a e i o u".split()
_CODA = "n r s l m k t".split()


def invented(rng: random.Random) -> str:
    """Return a made-up capitalised name such as 'Trolan', so that copying is not only look-up."""
    parts = [rng.choice(_ONSET) + rng.choice(_VOWEL) for _ in range(rng.randint(1, 2))]
    return ("".join(parts) + rng.choice(_ONSET) + rng.choice(_VOWEL) + rng.choice(_CODA)).capitalize()


def pick(rng: random.Random, words: list[str], invent: float = 0.1) -> str:
    """Pick a word of the list, or with a small chance an invented name."""
    return invented(rng) if rng.random() < invent else rng.choice(words)


def ordinal(n: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..."""
    if 10 <= n % 100 <= 20:
        return f"{n}th"
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th') }"
