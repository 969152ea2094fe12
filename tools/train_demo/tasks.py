# SPDX-License-Identifier: Apache-2.0
"""The adapter tasks: generators of (key, user text, expected answer).

An example belongs to the held-out part when the hash of its key says so, whatever seed drew it.
The key is the meaning of an example (the SQL text, the date, the pair of numbers, ...), so that a
held-out example was never seen in another wording either. The base corpus applies the same rule.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from words import (CITY, COLOR, COMPANY, DAY, FIRST, JOB, LAST, MONTH, PRODUCT, ordinal, pick)


@dataclass(frozen=True)
class Example:
    """One task example; `key` decides on which side of the split it falls."""

    key: str
    user: str
    answer: str


def held_out(key: str) -> bool:
    """One key in ten is held out."""
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] % 10 == 0


# --- question -> SQL ------------------------------------------------------------------------------


def _conditions(rng: random.Random, table: str) -> list[tuple[str, str]]:
    """Return (phrase, SQL condition) candidates for a table, in random order."""
    city, job, color = pick(rng, CITY), rng.choice(JOB), rng.choice(COLOR)
    product, n = rng.choice(PRODUCT), rng.randint(10, 99)
    if table == "customers":
        out = [(rng.choice([f"live in {city}", f"come from {city}"]), f"city = '{city}'"),
               (f"work as a {job}", f"job = '{job}'"),
               rng.choice([(f"are older than {n}", f"age > {n}"),
                           (f"are younger than {n}", f"age < {n}")])]
    elif table == "products":
        out = [(f"are {color}", f"color = '{color}'"),
               rng.choice([(f"cost more than {n}", f"price > {n}"),
                           (f"cost less than {n}", f"price < {n}")]),
               (f"are made in {city}", f"city = '{city}'")]
    else:
        out = [(rng.choice([f"went to {city}", f"were sent to {city}"]), f"city = '{city}'"),
               (f"contain a {product}", f"product = '{product}'"),
               rng.choice([(f"cost more than {n}", f"total > {n}"),
                           (f"cost less than {n}", f"total < {n}")])]
    rng.shuffle(out)
    return out


NUMERIC = {"customers": "age", "products": "price", "orders": "total"}


def sql(rng: random.Random) -> Example:
    """How many customers live in Oslo? -> SELECT COUNT(*) FROM customers WHERE city = 'Oslo';"""
    table = rng.choice(list(NUMERIC))
    col = NUMERIC[table]
    conds = _conditions(rng, table)[: rng.choice([1, 1, 2])]
    said = " and ".join(c[0] for c in conds)
    where = " AND ".join(c[1] for c in conds)
    kind = rng.choice(["count", "list", "avg", "max", "min"])
    if kind == "count":
        what, user = "COUNT(*)", rng.choice([f"How many {table} {said}?", f"Count the {table} that {said}."])
    elif kind == "list":
        what = "*"
        user = rng.choice([f"Which {table} {said}?", f"Show all {table} that {said}.",
                           f"List the {table} that {said}."])
    else:
        word = {"avg": "average", "max": "highest", "min": "lowest"}[kind]
        what = f"{kind.upper()}({col})"
        user = rng.choice([f"What is the {word} {col} of {table} that {said}?",
                           f"Give the {word} {col} of the {table} that {said}."])
    text = f"SELECT {what} FROM {table} WHERE {where};"
    return Example(text, user, text)


# --- sentence -> JSON -----------------------------------------------------------------------------


def person(rng: random.Random) -> tuple[str, int, str, str]:
    """Draw a name, an age, a city and a job."""
    name = f"{pick(rng, FIRST)} {pick(rng, LAST)}"
    return name, rng.randint(18, 89), pick(rng, CITY), rng.choice(JOB)


def person_json(name: str, age: int, city: str, job: str) -> str:
    """Return the record in the fixed key order."""
    return json.dumps({"name": name, "age": age, "city": city, "job": job})


def to_json(rng: random.Random) -> Example:
    """Anna Berg is a 34 year old baker from Oslo. -> {"name": "Anna Berg", "age": 34, ...}"""
    name, age, city, job = person(rng)
    user = rng.choice([
        f"{name} is a {age} year old {job} from {city}.",
        f"{name}, {age}, lives in {city} and works as a {job}.",
        f"In {city} there is a {job} called {name}, who is {age} years old.",
        f"My friend {name} works as a {job} in {city} and is {age}.",
        f"The {job} {name} moved to {city} at the age of {age}.",
        f"At {age}, {name} still works as a {job} in {city}.",
    ])
    answer = person_json(name, age, city, job)
    return Example(answer, user, answer)


# --- sums -----------------------------------------------------------------------------------------


def pair_key(a: int, b: int) -> str:
    """a + b and b + a are the same example."""
    return f"sum {min(a, b)} {max(a, b)}"


def math(rng: random.Random) -> Example:
    """What is 47 + 38? -> 47 + 38: 7 + 8 = 15, 4 + 3 + 1 = 8, 85 (ones, tens with the carry, sum)"""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    user = rng.choice([f"What is {a} + {b}?", f"{a} + {b} = ?", f"How much is {a} plus {b}?",
                       f"Add {a} and {b}."])
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10 + ones // 10
    work = (f"{a} + {b}: {a % 10} + {b % 10} = {ones}, "
            f"{a // 10} + {b // 10} + {ones // 10} = {tens}, {a + b}")
    return Example(pair_key(a, b), user, work)


# --- dates ----------------------------------------------------------------------------------------


def date(rng: random.Random) -> tuple[int, int, int]:
    """Draw a year, a month and a day (no leap days)."""
    month = rng.randint(1, 12)
    last = 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    return rng.randint(1950, 2049), month, rng.randint(1, last)


def iso(y: int, m: int, d: int) -> str:
    """Return YYYY-MM-DD."""
    return f"{y:04d}-{m:02d}-{d:02d}"


def spoken_date(rng: random.Random, y: int, m: int, d: int) -> str:
    """Write a date in one of the long forms."""
    name = MONTH[m - 1]
    return rng.choice([f"{name} {ordinal(d)}, {y}", f"{name} {d}, {y}", f"{d} {name} {y}",
                       f"the {ordinal(d)} of {name} {y}", f"{name[:3]} {d}, {y}",
                       f"{rng.choice(DAY)}, {name} {d}, {y}"])


def dates(rng: random.Random) -> Example:
    """March 3rd, 2021 -> 2021-03-03"""
    y, m, d = date(rng)
    said = spoken_date(rng, y, m, d)
    user = rng.choice([said, f"We met on {said}.", f"The letter is from {said}.", f"Date: {said}"])
    return Example(iso(y, m, d), user[0].upper() + user[1:], iso(y, m, d))


# --- sorting --------------------------------------------------------------------------------------


def sort(rng: random.Random) -> Example:
    """Sort these numbers: 42, 7, 19 -> 7, 19, 42"""
    nums = rng.sample(range(100), rng.randint(3, 5))
    text = ", ".join(map(str, nums))
    user = rng.choice([f"Sort these numbers: {text}", f"Put {text} in order.", f"Order: {text}"])
    answer = ", ".join(map(str, sorted(nums)))
    return Example(answer, user, answer)


# --- entity tagging -------------------------------------------------------------------------------


def tag(rng: random.Random) -> Example:
    """Anna flew to Oslo on Monday. -> [PER Anna] flew to [LOC Oslo] on [DATE Monday]."""
    who = pick(rng, FIRST)
    if rng.random() < 0.4:
        who += " " + pick(rng, LAST)
    other = pick(rng, FIRST)
    here, there = pick(rng, CITY), pick(rng, CITY)
    org, day, month = rng.choice(COMPANY), rng.choice(DAY), rng.choice(MONTH)
    text = rng.choice([
        f"<PER {who}> flew from <LOC {here}> to <LOC {there}> on <DATE {day}>.",
        f"<PER {who}> works for <ORG {org}> in <LOC {here}>.",
        f"On <DATE {day}> <PER {who}> met <PER {other}> in <LOC {here}>.",
        f"<ORG {org}> opened an office in <LOC {here}> in <DATE {month}>.",
        f"<PER {who}> left <ORG {org}> in <DATE {month}> and moved to <LOC {here}>.",
        f"In <DATE {month}> <PER {who}> and <PER {other}> travelled to <LOC {there}>.",
        f"<ORG {org}> hired <PER {who}> from <LOC {here}> on <DATE {day}>.",
        f"<PER {who}> told <PER {other}> about the trip to <LOC {here}>.",
    ])
    answer = text.replace("<", "[").replace(">", "]")
    plain = text
    for label in ("PER", "LOC", "ORG", "DATE"):
        plain = plain.replace(f"<{label} ", "")
    return Example(answer, plain.replace(">", ""), answer)


TASKS: dict[str, Callable[[random.Random], Example]] = {
    "sql": sql, "json": to_json, "math": math, "dates": dates, "sort": sort, "tag": tag,
}
MAX_TOKENS = {"sql": 64, "json": 64, "math": 48, "dates": 16, "sort": 24, "tag": 64}


def draw(task: str, rng: random.Random, test: bool = False, wide: bool = False) -> Example:
    """Draw an example of the training (or with `test` the held-out) side.

    Only the corpus asks for the `wide` range, which has one-digit numbers to sort, too.
    """
    while True:
        ex = TASKS[task](rng)
        narrow = wide or task != "sort" or all(len(n) == 2 for n in ex.answer.split(", "))
        if held_out(ex.key) == test and narrow:
            return ex


def test_set(task: str, count: int = 150, seed: int = 2024) -> list[Example]:
    """Return the held-out examples of a task, each key once, none with the answer in the prompt."""
    rng = random.Random(f"{task} {seed}")
    found: dict[str, Example] = {}
    while len(found) < count:
        ex = draw(task, rng, test=True)
        if ex.answer not in ex.user:
            found.setdefault(ex.key, ex)
    assert all(held_out(k) for k in found)
    return list(found.values())


def prompt(user: str) -> str:
    """Return the chat prompt for a user text, as the model's chat template writes it."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def bare(text: str) -> str:
    """Return the user text of a prompt."""
    return text.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
