"""A runner for the handwritten digits that Trialhead brings along: a multilayer perceptron in PyTorch.

    trialhead serve --runner pytorch="python3 examples/python/digits.py"

It builds the perceptron that the study names (`{"family": "mlp", "hidden": [64]}`); an `external` model has the hidden
layers that `runner.options.hidden` names, [64] by default. Any data set but the digits is refused.
"""

import ast
import io
import os
import struct
import sys
import zipfile

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from trialhead_runner import Runner, Unsupported  # noqa: E402

FOLDER = os.path.dirname(os.path.abspath(__file__))
ARCHIVE = os.environ.get(
    "DIGITS", os.path.join(FOLDER, "..", "..", "src", "datasets", "digits.npz")
)
TYPES = {"|u1": torch.uint8, "<i4": torch.int32, "<i8": torch.int64}
ACTIVATIONS = {
    "relu": torch.nn.ReLU,
    "gelu": torch.nn.GELU,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
}


def array(archive, name):
    """An array of a NumPy archive, without NumPy."""
    data = archive.read(f"{name}.npy")
    major = data[6]
    width, at = (2, 10) if major == 1 else (4, 12)
    length = struct.unpack("<H" if width == 2 else "<I", data[8 : 8 + width])[0]
    header = ast.literal_eval(data[at : at + length].decode("latin1"))
    flat = torch.frombuffer(bytearray(data[at + length :]), dtype=TYPES[header["descr"]])
    return flat.reshape(header["shape"])


def load():
    """Pixels with the training pixels' mean of 0 and deviation of 1, and labels, of both splits."""
    with open(ARCHIVE, "rb") as file:
        archive = zipfile.ZipFile(io.BytesIO(file.read()))
    pixels = array(archive, "X").reshape(-1, 64).float() / 16.0
    labels = array(archive, "y").long()
    rows = {
        "training": array(archive, "train_idx").long(),
        "validation": array(archive, "val_idx").long(),
    }
    training = pixels[rows["training"]]
    pixels = (pixels - training.mean()) / training.std(unbiased=False)
    return {split: (pixels[it], labels[it]) for split, it in rows.items()}


def build_model(spec):
    dataset = spec["workload"]["dataset"]
    name = dataset.get("builtin") or dataset.get("external", {}).get("name")
    if name != "digits":
        raise Unsupported(f"these are the digits, not {name}")
    model = spec["workload"]["model"]
    options = spec.get("runner", {}).get("options", {})
    if model["family"] == "external":
        model = {"hidden": options.get("hidden", [64])}
    elif model["family"] != "mlp":
        raise Unsupported(f"there is no {model['family']} here, only mlp and external")
    if model.get("normalization", {"kind": "none"})["kind"] != "none":
        raise Unsupported("these perceptrons have no normalization")
    layers, width = [], 64
    for units in model["hidden"]:
        layers.append(torch.nn.Linear(width, units))
        layers.append(ACTIVATIONS[model.get("activation", "relu")]())
        if model.get("dropout", 0.0) > 0.0:
            layers.append(torch.nn.Dropout(model["dropout"]))
        width = units
    layers.append(torch.nn.Linear(width, 10))
    return torch.nn.Sequential(*layers)


def main():
    data = load()

    def batches(split, indices):
        inputs, targets = data[split]
        return inputs[indices], targets[indices]

    Runner(
        name="digits",
        build_model=build_model,
        batches=batches,
        examples={split: len(targets) for split, (_, targets) in data.items()},
    ).main()


if __name__ == "__main__":
    main()
