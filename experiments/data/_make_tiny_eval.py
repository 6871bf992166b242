"""Beginnings that `tiny.jsonl` does not have, and no longer than its own (11 bytes), held out.

.venv/bin/python experiments/data/_make_tiny_eval.py
"""

from _files import FOLDER, lines

FRAMES = ["The {}", "A {} ran", "My {} is", "We saw {}s", "On a {}", "In the {}"]
NOUNS = "ant bag bat bed boy bus car cow cup fan hen jar key lab map net pan pig sea van".split()


def rows() -> list[dict]:
    texts = [frame.format(noun) for noun in NOUNS for frame in FRAMES]
    sums = [f"{a}+{b}=" for a in range(21, 31) for b in range(1, 11)]
    return [{"prompt": text} for text in (*texts, *sums)]


if __name__ == "__main__":
    data = lines(rows())
    (FOLDER / "tiny_eval.jsonl").write_bytes(data)
    print(f"tiny_eval.jsonl: {len(rows())} rows, {len(data)} bytes")
