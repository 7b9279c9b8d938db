"""What is given to a model in Python and by options (C)."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Ask, Case
from PIL import Image

from cases.pictures import PREDICT

SUPPORT = [f"support/{name}/0.png" for name in ("ant", "bee", "cow")]
LABELS = ["ant", "bee", "cow"]


def _adapt(make: Callable[[], Any], labels: Any = LABELS, **options: Any) -> Ask:
    from world import drawn_model

    return lambda: drawn_model().adapt(make(), labels, **options)


def _predict(make: Callable[[], Any]) -> Ask:
    from world import drawn_model

    adapted = drawn_model().adapt(SUPPORT, LABELS)
    return lambda: adapted.predict(make())


def _save(folder: str) -> Ask:
    from world import drawn_model

    adapted = drawn_model().adapt(SUPPORT, LABELS)
    return lambda: adapted.save(folder)


def _tensor(value: float) -> torch.Tensor:
    return torch.full((3, 1, 16, 16), value)


def _large() -> list[Image.Image]:
    return [Image.new("L", (20_000, 20_000))] * 3


PICTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: np.zeros((3, 16, 16), np.float32), "image 0 is an array of float32"),
    "booleans": (lambda: np.zeros((3, 16, 16), bool), "image 0 is an array of bool"),
    "64-bit integers": (lambda: np.zeros((3, 16, 16), np.int64), "image 0 is an array of int64"),
    "text": (lambda: np.full((3, 16, 16), "a"), "image 0 is an array of"),
    "five channels": (lambda: np.zeros((3, 16, 16, 5), np.uint8), "image 0 is an array of uint8"),
    "no pixels": (lambda: np.zeros((3, 0, 16), np.uint8), "image 0 is an array of uint8"),
    "objects": (lambda: [object()] * 3, "image 0 is an array of object"),
    "rows of two lengths": (lambda: [[[1, 2], [3]]] * 3, "image 0 is not an array of pixels"),
    "none": (lambda: [None] * 3, "image 0 is an array of object"),
    "numbers": (lambda: [1, 2, 3], "image 0 is an array of int64"),
    "NaN": (lambda: _tensor(float("nan")), "image 0 holds values that are not finite"),
    "infinity": (lambda: _tensor(float("inf")), "image 0 holds values that are not finite"),
    "a tensor of another size": (lambda: torch.zeros(3, 1, 84, 84), r"image 0 has shape \(1, 84, 84\); \(1, 16, 16\) is needed"),
    "a flat tensor": (lambda: torch.zeros(3), r"image 0 has shape \(\)"),
    "huge values": (lambda: _tensor(3e38), "diverged|finite"),
    "paths that are not there": (lambda: ["nowhere.png"] * 3, "nowhere.png cannot be read"),
    "paths with a null": (lambda: ["a\0b.png"] * 3, "cannot be read"),
    "folders": (lambda: ["support"] * 3, "support cannot be read"),
    "long paths": (lambda: ["x" * 5000] * 3, "cannot be read: File name too long"),
    "pictures of 400 million pixels": (_large, r"20000 x 20000 pixels, more than the limit"),
}
LABELLED: dict[str, tuple[Any, str]] = {
    "missing": (["a", None, "c"], "label 1 is missing"),
    "mixed": (["a", 1, "c"], "labels of different kinds"),
    "too few": (["a"], "3 images but 1 labels"),
    "of lists": ([["a"], ["b"], ["c"]], "is not text or a number"),
    "infinite": ([1.0, float("inf"), 2.0], "is not text or a number"),
    "of two classes": (["a", "b", "b"], "has 2 classes but the model was trained for 3-way"),
    "of one class": (["a", "a", "a"], "has 1 class"),
}


def _cases() -> Iterator[Case]:
    for name, (make, says) in PICTURES.items():
        yield Case(f"adapt: {name}", partial(_adapt, make), says)
        if name != "huge values":
            yield Case(f"predict: {name}", partial(_predict, make), says)
    for name, (labels, says) in LABELLED.items():
        yield Case(f"labels: {name}", partial(_adapt, lambda: SUPPORT, labels), says)
    for steps in (10**12, 1001):
        yield Case(f"adapt: {steps} steps", partial(_adapt, lambda: SUPPORT, inner_steps=steps), "inner steps; at most 1,000 are allowed")
    yield Case("adapt: 0 steps", partial(_adapt, lambda: SUPPORT, inner_steps=0), "inner", (1, 2))
    yield Case("adapt: nothing", partial(_adapt, list, []), "0 class")
    yield Case("save over a file", lambda: Path("file").write_text("mine") and _save("file"), "file cannot be written")
    yield Case("save where no name can be", lambda: _save("a\0b"), "cannot be written")
    yield Case("save inside a file", lambda: Path("file").write_text("mine") and _save("file/x"), "cannot be written")
    for steps, code in (("0", 2), ("-1", 2), ("x", 2), ("1000000000000", 1), ("9" * 5000, (1, 2))):
        yield Case(f"predict --steps {steps[:20]}", lambda steps=steps: (*PREDICT, "--steps", steps), "steps", code, real=steps == "0")
    yield Case("predict --network", lambda: (*PREDICT, "--network", "os.system"), "(?s).", (0, 1, 2))
    yield Case("predict --format", lambda: (*PREDICT, "--format", "xml"), "xml", 2)
    for name in ("IMAGES", "PIXELS", "BYTES", "INNER_STEPS"):
        asked = (*PREDICT, "--steps", "2")
        variable = f"DISTMETA_MAX_{name}"
        yield Case(f"{variable}=many", lambda asked=asked: asked, f"{variable}|ant", (0, 2), env={variable: "many"})


CASES = list(_cases())
