"""What the course says of itself: its introduction, and each notebook's question and minutes.

The texts stand in course.toml, the one place from which the site and the README take them.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Lesson:
    """One notebook of the course.

    Attributes:
        name: of its file, without the ending.
        minutes: that reading it and doing its exercises take.
        question: that it answers.
    """

    name: str
    minutes: int
    question: str


@dataclass(frozen=True)
class Course:
    """The whole course; the introduction and the audience are Markdown."""

    title: str
    introduction: str
    audience: str
    lessons: tuple[Lesson, ...]

    def lesson(self, name: str) -> Lesson | None:
        """The lesson of this name, if the course has it."""
        for lesson in self.lessons:
            if lesson.name == name:
                return lesson
        return None

    def hours(self) -> int:
        """The time that the whole course takes."""
        return round(sum(lesson.minutes for lesson in self.lessons) / 60)


@cache
def course() -> Course:
    """The course as course.toml describes it."""
    text = Path(__file__).with_name("course.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    lessons = tuple(Lesson(**row) for row in values.pop("lesson"))
    return Course(**values, lessons=lessons)


def duration(minutes: int) -> str:
    """Minutes in words, such as "1 h 40 min"."""
    hours, rest = divmod(minutes, 60)
    parts = []
    if hours:
        parts.append(f"{hours} h")
    if rest:
        parts.append(f"{rest} min")
    return " ".join(parts)
