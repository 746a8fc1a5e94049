from __future__ import annotations

from tests.unit.backends.golden import place, specs, text

for name, each in specs().items():
    place(name).write_text(text(each))
