# SPDX-License-Identifier: Apache-2.0
"""The generated text on which the base model is trained: short documents and chats.

The documents hold the raw materials of the tasks (sums, dates, SQL, JSON, ordered numbers, labels)
in other wordings; the chats answer in a friendly sentence and never do a task. Nothing here uses
the held-out side of a task (see tasks.py).

    python data.py [count]     prints a sample
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator

import tasks
from words import (ANIMAL, CITY, COLOR, COMPANY, DAY, FEELING, FIRST, FOOD, FRUIT, JOB, LAST, MONTH,
                   PLACE, PRODUCT, WEATHER, ordinal, pick)

END = "<|endoftext|>"
Rng = random.Random
LISTS = [ANIMAL, CITY, COLOR, COMPANY, DAY, FIRST, FOOD, FRUIT, JOB, LAST, MONTH, PLACE, PRODUCT]


# --- documents ------------------------------------------------------------------------------------


def story_parts(r: Rng, hero: str | None = None) -> tuple[str, list[str]]:
    """Return the opening sentence of a small story and the sentences after it."""
    who, friend = r.sample(FIRST, 2) if not hero and r.random() < 0.4 else r.sample(ANIMAL, 2)
    if hero:
        who, friend = hero, r.choice([a for a in ANIMAL if a != hero])
    animal = who in ANIMAL
    a, b = (f"the {who}", f"the {friend}") if animal else (who, friend)
    article = "an" if who[0] == "o" else "a"
    place, food, color, thing = r.choice(PLACE), r.choice(FOOD), r.choice(COLOR), r.choice(PRODUCT)
    feel, end = r.choice(FEELING), r.choice(FEELING)
    intro = (f"Once upon a time there was {article} {feel} {who} who lived near the {place}." if animal
             else f"{who} was a {feel} {r.choice(JOB)} who lived near the {place}.")
    cap = a[0].upper() + a[1:]
    body = [
        r.choice([f"One {r.choice(WEATHER)} morning {a} went out to look for {food}.",
                  f"Every day {a} walked to the {r.choice(PLACE)} to find {food}."]),
        r.choice([f"On the way {a} met {b}, who carried a {color} {thing}.",
                  f"Behind a tree {a} found a {color} {thing} that belonged to {b}."]),
        r.choice([f'"Can you help me?" asked {b}. "Of course," said {a}.',
                  f'"Where are you going?" asked {b}. "To the {place}," said {a}.']),
        r.choice([f"Together they carried the {thing} home and shared the {food}.",
                  f"They sat by the {place} and ate {food} until the evening."]),
        r.choice([f"{cap} was {end} and slept well that night.",
                  f"From that day on they were good friends.",
                  f"In the end everyone felt {end}."]),
    ]
    return intro, body


def story(r: Rng) -> str:
    """A story of six sentences."""
    intro, body = story_parts(r)
    return " ".join([intro, *body])


def people(r: Rng) -> str:
    """Facts about a person."""
    name, age, city, job = tasks.person(r)
    first = name.split()[0]
    return r.choice([
        f"{name} grew up in {city}. {first} likes {r.choice(FOOD)} and has a {r.choice(ANIMAL)}. "
        f"Later {first} became a {job}.",
        f"About {name}: {first} was born in {city} and is now {age} years old.",
        f"{first} is {age}. The parents of {first} live in {city}. Next year {first} will be {age + 1}.",
        f"{r.choice(COMPANY)} is a company in {city}. {name} is the {job} there.",
    ])


def diary(r: Rng) -> str:
    """A diary entry with a written date."""
    y, m, d = tasks.date(r)
    return (f"{MONTH[m - 1]} {r.choice([ordinal(d), str(d)])}. It was {r.choice(WEATHER)} in "
            f"{pick(r, CITY)}. I felt {r.choice(FEELING)} and ate {r.choice(FOOD)}.")


def train_date(r: Rng) -> tuple[int, int, int]:
    """Draw a date of the training side."""
    while True:
        ymd = tasks.date(r)
        if not tasks.held_out(tasks.iso(*ymd)):
            return ymd


def log(r: Rng) -> str:
    """Log lines with numeric dates, or an archive card that names a date twice."""
    y, m, d = train_date(r)
    day = tasks.iso(y, m, d)
    said = tasks.spoken_date(r, y, m, d)
    return r.choice([
        f"{day} {r.randint(0, 23):02d}:{r.randint(0, 59):02d} the {r.choice(['door', 'lamp', 'clock'])} "
        f"was {r.choice(['opened', 'closed', 'started'])}",
        f"archive: letter of {said}, file {day}",
        f"file {day}: a photo from {said}",
        f"year {y}, month {m:02d}, {MONTH[m - 1]}",
        f"month {m:02d} is {MONTH[m - 1]}, day {d:02d} is the {ordinal(d)}",
    ])


def sums(r: Rng) -> str:
    """Counting things, with true sums of the training side."""
    while True:
        a, b = r.randint(1, 99), r.randint(1, 99)
        if not tasks.held_out(tasks.pair_key(a, b)):
            break
    who, fruit = pick(r, FIRST), r.choice(FRUIT)
    return r.choice([
        f"{who} had {a} {fruit} and got {b} more: {a} + {b} makes {a + b}.",
        f"bill: {a} + {b} makes {a + b}",
        f"{a} and {b} together are {a + b}",
        f"There are {a} red and {b} green {fruit}, {a + b} in all.",
    ])


def ordered(r: Rng) -> str:
    """Numbers in order, races, smallest and largest (training side)."""
    while True:
        nums = r.sample(range(100), r.randint(3, 5))
        up = sorted(nums)
        if not tasks.held_out(", ".join(map(str, up))):
            break
    said, rising = ", ".join(map(str, nums)), ", ".join(map(str, up))
    return r.choice([
        f"numbers {said} / rising {rising}",
        f"The race times were {said}. From fast to slow: {rising}.",
        f"Of {said} the smallest is {up[0]} and the largest is {up[-1]}.",
        f"rising {rising} / falling {', '.join(map(str, up[::-1]))}",
    ])


def query(r: Rng) -> str:
    """A query log: a terse note and the SQL of it (training side)."""
    sql = tasks.draw("sql", r).answer
    what, table, where = re.match(r"SELECT (.*) FROM (\w+) WHERE (.*);", sql).groups()
    note = where.replace("'", "").replace(" = ", " ").replace(" > ", " above ").replace(" < ", " below ")
    how = {"COUNT(*)": "count", "*": "all"}.get(what, what.split("(")[0].lower())
    return r.choice([f"-- {how} of {table}, {note.replace(' AND ', ', ')}\n{sql}", sql])


def records(r: Rng) -> str:
    """JSON records after a table row."""
    if r.random() < 0.5:
        item, color, price = r.choice(PRODUCT), r.choice(COLOR), r.randint(5, 99)
        return (f"row: {item} / {color} / {price}\n"
                f'{{"product": "{item}", "color": "{color}", "price": {price}}}')
    ex = tasks.draw("json", r)
    name, age, city, job = re.findall(r': "?([^",}]+)', ex.answer)
    row = [name, age, city, job]
    r.shuffle(row)
    return f"row: {' / '.join(row)}\n{ex.answer}"


def table(r: Rng) -> str:
    """A small table."""
    rows = [f"| {pick(r, FIRST)} | {r.choice(FRUIT)} | {r.randint(1, 99)} |" for _ in range(3)]
    return "| name | item | count |\n|---|---|---|\n" + "\n".join(rows)


def glossary(r: Rng) -> str:
    """A sentence of the training side with a list of its names, or labels for single words."""
    ex = tasks.draw("tag", r)
    marks = re.findall(r"\[\w+ [^\]]+\]", ex.answer)
    if r.random() < 0.6:
        return f"{ex.user} Names: {' '.join(marks)}"
    r.shuffle(marks)
    return "Index: " + " ".join(marks)


def echo(r: Rng) -> str:
    """Someone repeats a sentence word for word."""
    said = r.choice([tasks.draw("tag", r).user, story_parts(r)[0],
                     f"The {r.choice(COLOR)} {r.choice(PRODUCT)} costs {r.randint(2, 99)} euros."])
    return f'{pick(r, FIRST)} said: "{said}" {pick(r, FIRST)} repeated: "{said}"'


def copies(r: Rng) -> str:
    """A list of unrelated words, twice or three times: the plainest practice in copying."""
    words = [r.choice([pick(r, r.choice(LISTS), 0.3), str(r.randint(0, 99))])
             for _ in range(r.randint(4, 12))]
    return "list " + " / ".join([r.choice([" ", ", "]).join(words)] * r.choice([2, 2, 3]))


def forms(r: Rng) -> str:
    """The same things in two notations: quoted words, months and days in digits, dates, SQL words."""
    kind = r.random()
    if kind < 0.4:
        words = [pick(r, r.choice([CITY, CITY, JOB, COLOR, PRODUCT])) for _ in range(r.randint(2, 5))]
        quoted = [f"'{w}'" for w in words], [f'"{w}"' for w in words]
        return "quote " + " / ".join(", ".join(x) for x in (words, *r.sample(quoted, 2)))
    if kind < 0.6:
        days = [r.randint(1, 31) for _ in range(3)]
        months = [(r.choice([m, m[:3]]), i + 1) for i, m in enumerate(MONTH)]
        pairs = [(r.choice([ordinal(d), str(d)]), d) for d in days] + r.sample(months, 4)
        r.shuffle(pairs)
        return "digits " + ", ".join(f"{a} {b:02d}" for a, b in pairs)
    if kind < 0.85:
        pairs = [train_date(r) for _ in range(2)]
        return "; ".join(f"{tasks.spoken_date(r, *d)} is {tasks.iso(*d)}" for d in pairs)
    pairs = r.sample(["highest MAX", "lowest MIN", "average AVG", "how many COUNT", "older >", "more >",
                      "younger <", "less <"], 4)
    return "in SQL: " + ", ".join(pairs)


def weather(r: Rng) -> str:
    """A weather report."""
    t = r.randint(2, 34)
    return (f"Weather for {pick(r, CITY)}: {r.choice(WEATHER)} on {r.choice(DAY)}, {t} degrees, "
            f"{r.choice(WEATHER)} and {t + r.randint(1, 5)} degrees on {r.choice(DAY)}.")


# --- chats ----------------------------------------------------------------------------------------


def small_talk(r: Rng) -> tuple[str, str]:
    """A question and a short friendly answer."""
    city, name, food = pick(r, CITY), pick(r, FIRST), r.choice(FOOD)
    animal, place, job = r.choice(ANIMAL), r.choice(PLACE), r.choice(JOB)
    intro, body = story_parts(r)
    _, told = story_parts(r, animal)
    return r.choice([
        ("Hello!", "Hello! How are you today?"),
        ("Who are you?", "I am a small language model. I like short stories."),
        (f"What is the weather like in {city}?",
         f"It is {r.choice(WEATHER)} in {city} today, about {r.randint(2, 33)} degrees."),
        (f"Hi, I am {name}.", f"Nice to meet you, {name}!"),
        (f"What does a {job} do?", f"A {job} works hard every day and helps other people."),
        (f"Where does the {animal} live?", f"The {animal} lives near the {place}."),
        (f"What should I eat on {r.choice(DAY)}?", f"How about some {food} and a cup of tea?"),
        ("Tell me a story.", " ".join([intro, *body[:3]])),
        (f"Tell me a story about the {animal}.",
         f"The {animal} lived near the {place}. {told[0]} {told[4]}"),
        (f"Do you like {food}?", f"Yes, I like {food} very much, above all in {r.choice(MONTH)}."),
        (f"Is {city} a nice place?", f"Yes, {city} is a lovely city with many gardens."),
        ("Thank you!", "You are welcome!"),
    ])


def task_talk(r: Rng) -> tuple[str, str]:
    """A task prompt of the training side, answered as a chatty model would."""
    task = r.choice(list(tasks.TASKS))
    user = tasks.draw(task, r, wide=True).user
    noun = next((w for w in tasks.NUMERIC if w in user), "things")
    name = next((w for w in re.findall(r"[A-Z]\w+", user) if w in FIRST), "your friend")
    replies = {
        "sql": [f"I would have to count the {noun} first.", f"There are many {noun}, I think.",
                f"I do not know all of the {noun}, sorry."],
        "json": [f"{name} sounds like a nice person.", f"Please say hello to {name} from me!"],
        "math": ["I am not good with numbers, sorry.", "That is a hard question for me."],
        "dates": ["I remember that day, it was quite " + r.choice(WEATHER) + ".",
                  "That was a long time ago."],
        "sort": ["Those are nice numbers.", "That is a lot of numbers for me."],
        "tag": [f"That is interesting, tell me more about {name}.", f"I hope {name} had a good time."],
    }
    return user, r.choice(replies[task])


def chat(r: Rng) -> str:
    """One or two turns in the chat format."""
    turns = [r.choice([small_talk, task_talk])(r) for _ in range(r.choice([1, 1, 2]))]
    return "\n".join(tasks.prompt(u) + f"{a}<|im_end|>" for u, a in turns)


KINDS: list[tuple[float, Callable[[Rng], str]]] = [
    (8, story), (6, people), (4, diary), (14, log), (24, sums), (18, ordered), (10, query),
    (8, records), (3, table), (8, glossary), (5, echo), (4, weather), (26, chat),
]


# The mixture of the last part of the training: less prose, more notation and sums.
LATER: dict[str, float] = dict(
    story=2, people=2, diary=1, log=10, sums=40, ordered=10, query=18, records=14, table=1, glossary=6,
    echo=2, weather=1, chat=12, copies=3, forms=30)


def documents(seed: int | str, copying: float = 0.0, later: bool = False) -> Iterator[str]:
    """Yield documents for ever, with an extra weight of `copying` for copied lists."""
    r = random.Random(f"corpus {seed}")
    weights, makers = zip(*KINDS, (copying, copies), (0.0, forms))
    if later:
        weights = tuple(LATER[m.__name__] for m in makers)
    while True:
        yield r.choices(makers, weights)[0](r)


if __name__ == "__main__":
    for _, text in zip(range(int(sys.argv[1]) if len(sys.argv) > 1 else 20), documents(0)):
        print(text, end="\n\n")
