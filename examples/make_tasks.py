"""Turn texts into a task file: one task for each paragraph and each sentence.

Usage: python3 examples/make_tasks.py FILE... > tasks.jsonl
"""

import json
import re
import sys
from pathlib import Path


def tasks_of(path: Path) -> list[dict[str, object]]:
    """Return the task lines for one text."""
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    texts = [" ".join(paragraph.split()) for paragraph in paragraphs]
    sentences = [part for text in texts for part in re.split(r"(?<=[.;:]) ", text)]
    name = path.stem.lower()
    return [
        {"id": f"{name}-{kind}{number:03}", "task": text, "tags": ["text"]}
        for kind, parts in (("paragraph", texts), ("sentence", sentences))
        for number, text in enumerate(filter(None, parts), 1)
    ]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for task in tasks_of(Path(argument)):
            sys.stdout.write(json.dumps(task) + "\n")
