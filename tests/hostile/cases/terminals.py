"""Standard output that cannot be written, or not in full (H): the answer degrades, the work is done."""

import os
from collections.abc import Callable, Iterator

from case import Case

from cases.folders import _after, _copy
from cases.pictures import PACK, PREDICT

ASKS = {"models": ("models",), "verify": ("verify", "data"), "inspect": ("inspect", "data"), "predict": PREDICT, "pack": PACK}
ASKS |= {"predict --json": (*PREDICT, "--json"), "predict --format csv": (*PREDICT, "--format", "csv"), "report": ("report", "run")}
NAMES = {
    "an emoji": "query/ant/\U0001f436.png",
    "Rich's markup": "query/ant/[red]:smile:[x].png",
    "no text": b"query/ant/\xff\xfe.png",
    "an escape": "query/ant/\x1b[2J.png",
}


def _cases() -> Iterator[Case]:
    for name, ask in ASKS.items():
        yield Case(
            f"{name} into a pipe that nobody reads", lambda ask=ask: ask, "", 0, terminal="closed pipe", real=name in ("verify", "predict")
        )
        says, code = ("", 0) if name in ("pack", "report", "verify") else ("No space left on device", 1)  # 0: nothing is printed there
        yield Case(f"{name} into a full disk", lambda ask=ask: ask, says, code, terminal="full", real=name == "models")
        yield Case(f"{name} in ASCII", lambda ask=ask: ask, ".", 0, env={"PYTHONIOENCODING": "ascii"}, real=name == "inspect")
    for name, path in NAMES.items():
        for form in ("table", "csv", "jsonl"):
            act = _renamed(path)
            asked = _after(act, *PREDICT, "--format", form)
            yield Case(f"predict {form} of a name with {name}", asked, ".", 0, real=name == "no text", verbatim=form == "csv")
    c_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    yield Case(
        "pack an emoji in a C locale",
        _after(_copy("pictures/train/class0", "pictures/train/\U0001f436"), *PACK, "--allow-copies"),
        "packed",
        0,
        env=c_locale,
    )


def _renamed(path: str | bytes) -> Callable[[], object]:
    return lambda: os.rename(os.fsencode("query/ant/1.png"), os.fsencode(path))


CASES = list(_cases())
