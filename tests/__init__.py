"""The tests, in the rooms of jaxdiff and of experiments.

jaxdiff/ROOM/NAME.py is tested by tests/ROOM/NAME_test.py, and what holds for a
whole room by tests/ROOM/ROOM_test.py. What several files share is
tests/ROOM/cases.py. tests/guests/ calls the library as other people's code
does.
"""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
