"""Trains the first model of an experiment on what the lab has: float ONNX and calibration samples.

    pip install torch==2.13.0        # only for this script, not a dependency of the project
    python -m examples.experiments.train har        # or keywords

The data set lies in the folder that TINYFLEET_DATA names; where it comes from is said where it is
missing. Writes `NAME.onnx` and `NAME-calibration.npz` (array `x`: NCHW, and `y`: their classes)
into `models`, beside the experiments. It takes about a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.small_networks import activity_network, fit, keyword_network
from simulator.world.data import Data, FleetData

MODELS = Path(__file__).parent / "models"
NETWORKS = {"har": activity_network, "keywords": keyword_network}
CALIBRATION_SAMPLES = 256


def main() -> None:
    """Train, tell how it does on the last sixth of the lab's subjects, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(NETWORKS))
    name = parser.parse_args().name
    lab = FleetData(Data.model_validate({"dataset": name}), 0, 1).lab
    assert lab.subjects is not None
    x = np.ascontiguousarray(lab.x.transpose(0, 3, 1, 2))
    present = np.unique(lab.subjects)
    held = np.isin(lab.subjects, present[-(len(present) // 6) :])
    network = NETWORKS[name](int(lab.y.max()) + 1)
    accuracy = fit(network, x[~held], lab.y[~held], x[held], lab.y[held])
    print(f"{name}: {accuracy:.1%} on {held.sum()} samples of subjects that it hasn't trained on")
    MODELS.mkdir(exist_ok=True)
    path = MODELS / f"{name}.onnx"
    example = (torch.from_numpy(x[:1]),)
    torch.onnx.export(network.eval(), example, str(path), dynamo=False, opset_version=17)
    chosen = np.random.default_rng(0).choice(len(x), CALIBRATION_SAMPLES, replace=False)
    np.savez(MODELS / f"{name}-calibration.npz", x=x[chosen], y=lab.y[chosen])
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
