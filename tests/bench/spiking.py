"""What a spiking network and an ordinary one came to, and what an image costs each: accuracy, spike rates, operations, energy.

    python tests/bench/spiking.py runs/omniglot_5way_1shot_spiking runs/omniglot_5way_1shot_maml

A multiply-accumulate (MAC) is one weight times one value. A synaptic operation adds one weight where a spike arrives, so it is counted only
for spikes. Energy is a proxy: 4.6 pJ for a MAC, 0.9 pJ for an addition (Horowitz 2014, 45 nm, 32-bit floating point); memory is left out.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.training.measurement import baseline_of, measurement_of
from distmeta.training.run_folder import RunFolder

MAC_PJ, ADDITION_PJ = 4.6, 0.9
BLOCKS = 4


def connections(model: dict[str, Any]) -> list[int]:
    """How many weights meet a value in each 3×3 convolution with padding 1, for one image in one time step."""
    channels, height, width = model["input_shape"]
    filters = model.get("filters", 32)
    found = []
    for _ in range(BLOCKS):
        found.append(channels * filters * (3 * height - 2) * (3 * width - 2))
        channels, height, width = filters, height // 2, width // 2
    return [*found, channels * height * width * model["outputs"]]


def cost(model: dict[str, Any], rates: list[float]) -> dict[str, float]:
    """MACs and synaptic operations of one image's forward pass, and the energy in nanojoules.

    Of a spiking network the first convolution (its image stays the same) and the head (it reads rates) are MACs, once. Average pooling
    is linear, so each spike under a pooled value reaches all of that value's synapses.
    """
    first, *between, head = connections(model)
    if not rates:
        macs, additions = float(first + sum(between) + head), 0.0
    else:
        spikes = [4 * model.get("steps", 4) * rate for rate in rates[:-1]]  # 2×2 neurons behind each value
        macs, additions = float(first + head), sum(count * number for count, number in zip(between, spikes, strict=True))
    return {"MACs": macs, "additions": additions, "nJ": (MAC_PJ * macs + ADDITION_PJ * additions) / 1e3}


def main(folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")]) -> None:
    for folder in folders:
        run = RunFolder(folder)
        model, test = run.best.read_description()["model"], run.read_result()["test"]
        records = list(run.metrics.read())
        rates: dict[str, float] = next((record["spike_rate"] for record in reversed(records) if "spike_rate" in record), {})
        if model["name"] == "spiking_conv4" and not rates:
            raise typer.BadParameter(f"{folder} holds no spike rates, which each validation logs; train it again")
        spent = cost(model, list(rates.values()))
        print(f"{folder.name}: {model['name']}, {records[-1]['step']} steps")
        print(f"  {measurement_of(test).summary}; untrained {baseline_of(test).text(0)}; {test['episodes']} episodes")
        if rates:
            print("  spike rates " + ", ".join(f"{100 * rate:.1f} %" for rate in rates.values()))
        print(f"  an image: {spent['MACs'] / 1e6:.2f} M MACs, {spent['additions'] / 1e6:.2f} M additions, {spent['nJ']:,.0f} nJ")


if __name__ == "__main__":
    typer.run(main)
