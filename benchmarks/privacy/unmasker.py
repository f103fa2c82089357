"""How long an unmasker takes for a set: checks, record on disk, and the sum of streams.

python -m benchmarks.privacy.unmasker [--devices D] [--values V] [--sets S] [--disk DIR]
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from fleet.protocol import masking
from fleet.protocol.keys import DeviceKeys, exchange_public
from fleet.protocol.mask_requests import MaskMember, MaskRequest, encode_masks
from fleet.protocol.masking import MASK_BITS, MaskParameters
from fleet.unmasker import LocalUnmasker, UnmaskerStore

FLEET = "barn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=masking.MOST_DEVICES)
    parser.add_argument("--values", type=int, default=75_000)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--disk", type=Path, help="Folder of the store. Default: a temporary one.")
    options = parser.parse_args()
    names = [f"device-{number:04}" for number in range(options.devices)]
    devices = {name: DeviceKeys.generate() for name in names}
    private = secrets.token_bytes(32)
    public = exchange_public(private)
    keys = {
        name: masking.seal_key(one.exchange, public, one.exchange_public, public)
        for name, one in devices.items()
    }
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        store = UnmaskerStore(Path(folder, "unmasker.sqlite"))
        store.enrol((one.enrol(FLEET, name) for name, one in devices.items()), FLEET, 0.0)
        unmasker = LocalUnmasker(private, FLEET, store)
        for bits in MASK_BITS[1:]:
            parameters = MaskParameters(bits, 127)
            told = [
                _ask(unmasker, keys, parameters, options.values, number)
                for number in range(options.sets)
            ]
            request, sums, whole = (statistics.median(column) for column in zip(*told, strict=True))
            print(
                f"{options.devices} devices x {options.values} values of {bits} bits: "
                f"{whole:.3f} s a set (median of {options.sets}), of it {sums:.3f} s for the "
                f"streams; request {request / 1e3:.0f} kB, "
                f"answer {options.values * bits // 8 / 1e3:.0f} kB"
            )
        store.close()


def _ask(
    unmasker: LocalUnmasker,
    keys: dict[str, bytes],
    parameters: MaskParameters,
    values: int,
    number: int,
) -> tuple[int, float, float]:
    """(bytes of the request, seconds for the streams alone, seconds from body to body)."""
    what = (bytes([parameters.bits]) * 8, number, bytes(32), bytes(32), values, parameters)
    seeds, members = [], []
    for name, key in keys.items():
        nonce, seed = secrets.token_bytes(12), secrets.token_bytes(32)
        binding = masking.Binding(FLEET, name, *what)
        members.append(MaskMember(name, nonce, masking.seal(key, nonce, seed, binding)))
        seeds.append(seed)
    body = MaskRequest(*what, tuple(members)).encode()
    began = time.perf_counter()
    encode_masks(unmasker.masks(MaskRequest.decode(body)), parameters.bits)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    masking.sum_of_streams(seeds, values, parameters.bits)
    return len(body), time.perf_counter() - began, whole


if __name__ == "__main__":
    main()
