"""Openings of reviews that `openings.jsonl` does not have, of the same topics, held out.

    .venv/bin/python experiments/data/_make_openings_eval.py

Of each thing there are two: plain, and after a few words that lead to it. None says whether it was
liked. None is longer than the longest of `openings.jsonl` in SmolLM2's tokens (11), so that
prompts are padded to the same width with this file and without it.
"""

from _files import FOLDER, lines

THINGS = {
    "hotel": "towels in the bathroom, stairs, shuttle from the station, sauna, carpet in the hall",
    "book": "prologue, map on the first page, second volume, letters in the middle part, narrator",
    "film": "title sequence, scene on the bridge, camera, cast of this film, last ten minutes",
    "food": "bread from this mill, salsa, granola, rice noodles, butter in the blue tub",
    "television": "pilot, quiz show, two leads of this series, third season, studio audience",
    "clothing": "gloves, hem of this skirt, buttons on the blazer, sandals, lining of the vest",
    "app": "settings page, camera filter, weather widget, login, dark mode of this app",
    "travel": "ferry to the islands, night train, tram in this city, window seat, road to the cape",
    "service": "electrician, driver of the taxi, clerk at the post office, painter, notary",
    "course": "lab sessions, reading list, tutor, second lecture, forum of this course",
    "game": "dice in the box, map editor, third chapter, soundtrack of this game, camera angle",
    "tool": "pliers, clamp, chisel, hose reel, cord of this saw",
    "car": "gearbox, heated seats, rental office, navigation system, rear camera",
    "music": "bass line, third track, encore, piano on this record, brass section",
    "appliance": "water filter, ice maker, lid of this pot, juicer, timer on the stove",
    "furniture": "shelf above my desk, recliner, coffee table, hinges on the cabinet, bunk bed",
    "health": "physiotherapist, rowing machine, optician, locker room, evening class at the gym",
    "pet": "cat tree, carrier for the rabbit, hamster wheel, puppy class, aquarium filter",
    "kids": "high chair, rocking horse, school bus, swing in the garden, coloring book",
    "office": "stapler, conference room, envelopes, second monitor, keyboard on my desk",
    "outdoor": "canoe, map of the trail, camping chair, climbing wall, rope in this kit",
    "theater": "puppet show, balcony seats, understudy, curtain call, set of the first act",
    "restaurant": "tasting menu, corner booth, noodle bar, lentil stew, bartender",
    "electronics": "power bank, touch screen, cable in the box, docking station, game controller",
    "museum": "coins, ticket desk, guide on the second tour, map of the zoo, sculpture hall",
    "shop": "cashier, fitting room, shelf with the spices, fish counter, web page of the store",
}
LEADS = [
    "This time the {}",
    "After a week the {}",
    "Then there was the {}",
    "According to my notes, the {}",
    "For those who ask about the {}",
    "My sister told me that the {}",
    "What I remember is that the {}",
]


def rows() -> list[dict]:
    """Topic after topic, again and again, so that the first rows are of all of them."""
    found, things = [], {topic: text.split(", ") for topic, text in THINGS.items()}
    for number in range(5):
        for frame in ("The {}", None):
            for place, (topic, names) in enumerate(things.items()):
                lead = LEADS[(number + place) % len(LEADS)] if frame is None else frame
                found.append({"prompt": lead.format(names[number]), "topic": topic})
    return found


if __name__ == "__main__":
    data = lines(rows())
    (FOLDER / "openings_eval.jsonl").write_bytes(data)
    print(f"openings_eval.jsonl: {len(rows())} rows, {len(data)} bytes")
