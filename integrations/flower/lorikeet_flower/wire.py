# SPDX-License-Identifier: Apache-2.0
"""What goes over Flower's wire.

bundle: a file of the binary as it is, opaque to Flower's strategies; for every rule.
arrays: one f32 array per PEFT key, for rules under which these are all that a round makes (fedavg, ffa, rolora), so that Flower's
own strategies, wrappers and secure aggregation can work on them.
"""
import json
import struct

import numpy as np
from flwr.app import Array, ArrayRecord

STYPE = "lorikeet.safetensors"
_FILE = "file"
_MAX_HEADER = 100 << 20  # as the format's reference reader has it
_PREFIX = "base_model.model."
_FACTORS = {"a": "lora_A.weight", "b": "lora_B.weight"}


class WireError(ValueError):
    """What the other side sent is not what it should be."""


# --- Files


def pack_file(data: bytes) -> ArrayRecord:
    return ArrayRecord({_FILE: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def unpack_file(record: ArrayRecord, most_bytes: int) -> bytes:
    if list(record.keys()) != [_FILE] or record[_FILE].stype != STYPE:
        raise WireError("the message holds no file of this program")
    data = record[_FILE].data
    if len(data) > most_bytes:
        raise WireError(f"a file of {len(data)} bytes, at most {most_bytes} are taken")
    return data


def _header(data: bytes) -> tuple[dict, int]:
    """The JSON header of a safetensors file, and where its tensors begin."""
    if len(data) < 8:
        raise WireError("no safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER, len(data) - 8):
        raise WireError("no safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise WireError("no safetensors file") from error
    if not isinstance(header, dict):
        raise WireError("no safetensors file")
    return header, 8 + length


def read_metadata(data: bytes) -> dict[str, str]:
    metadata = _header(data)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WireError("a safetensors file with metadata that are no strings")
    return metadata


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """All tensors, as f32."""
    header, begin = _header(data)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = (int(offset) for offset in entry["data_offsets"])
            shape = [int(size) for size in entry["shape"]]
            raw = data[begin + first : begin + last]
            if entry["dtype"] == "F32":
                values = np.frombuffer(raw, "<f4")
            elif entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                raise WireError(f"{name} is of type {entry['dtype']}")
            tensors[name] = values.reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the safetensors file is damaged at {name}: {error}") from error
    return tensors


def write_safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    header: dict = {"__metadata__": metadata} if metadata else {}
    pieces, offset = [], 0
    for name, values in tensors.items():
        piece = np.ascontiguousarray(values, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + len(piece)]}
        pieces.append(piece)
        offset += len(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(pieces)


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("the file does not say what it is") from error
    if not isinstance(value, dict):
        raise WireError("the file does not say what it is")
    return value


def named_client(about: str) -> str:
    return str(_object(about).get("client", ""))


def about_update(data: bytes) -> dict:
    """client, round, num_examples, loss, ... as the client wrote them; the server's binary judges them."""
    about = _object(read_metadata(data).get("lorikeet.update", ""))
    if not isinstance(about.get("num_examples"), int) or not isinstance(about.get("loss"), (int, float)):
        raise WireError("the update does not say how many examples are behind it")
    return about


# --- Arrays


def _peft_name(name: str) -> str:
    """Of a tensor in a round file: global|model.layers.0.self_attn.q_proj|a."""
    group, module, what = name.split("|")
    if group != "global" or what not in _FACTORS:
        raise WireError(f"the round has {name}: this rule needs wire = \"bundle\"")
    return f"{_PREFIX}{module}.{_FACTORS[what]}"


def _round_name(name: str) -> str:
    for what, suffix in _FACTORS.items():
        if name.startswith(_PREFIX) and name.endswith("." + suffix):
            return f"global|{name[len(_PREFIX) : -len(suffix) - 1]}|{what}"
    raise WireError(f"{name} is no factor of an adapter")


def split_round(data: bytes) -> tuple[ArrayRecord, ArrayRecord, str]:
    """A round file as the arrays that are trained in it, those that are not, and what else it says (JSON)."""
    metadata = read_metadata(data)
    about = json.loads(metadata["lorikeet.round"])
    rule = json.loads(about["run"])["rule"]["name"]
    if rule not in ("fedavg", "ffa", "rolora"):
        raise WireError(f"{rule} sends more than arrays by PEFT's names: use wire = \"bundle\"")
    frozen_parts = {suffix for what, suffix in _FACTORS.items() if about[f"freeze_{what}"]}
    trained, frozen = {}, {}
    for name, values in read_tensors(data).items():
        peft = _peft_name(name)
        (frozen if peft.rsplit(".", 2)[-2] + ".weight" in frozen_parts else trained)[peft] = Array(values)
    return ArrayRecord(trained), ArrayRecord(frozen), json.dumps(metadata)


def join_round(arrays: ArrayRecord, frozen: ArrayRecord, about: str, client: str) -> bytes:
    """The round file again, for this client."""
    try:
        metadata = json.loads(about)
        described = json.loads(metadata["lorikeet.round"])
        described["client"] = client
        metadata["lorikeet.round"] = json.dumps(described)
    except (ValueError, KeyError, TypeError) as error:
        raise WireError("the message does not say what round it is of") from error
    tensors = {_round_name(name): array.numpy() for record in (frozen, arrays) for name, array in record.items()}
    return write_safetensors(tensors, metadata)


def trained_arrays(start: ArrayRecord, update: bytes) -> ArrayRecord:
    """start + update, by the names of start."""
    added = read_tensors(update)
    if set(added) != set(start.keys()):
        raise WireError("the update has other tensors than the round")
    return ArrayRecord(
        {name: Array((array.numpy().astype(np.float64) + added[name].reshape(array.shape)).astype(np.float32)) for name, array in start.items()}
    )


def check_arrays(record: ArrayRecord, like: ArrayRecord) -> None:
    """That these are f32 arrays of the same names and shapes, with finite values: nothing else may reach an average."""
    if set(record.keys()) != set(like.keys()):
        raise WireError("the reply has other arrays than the round")
    for name, array in record.items():
        try:
            values = array.numpy()
        except (TypeError, ValueError, EOFError, OSError) as error:
            raise WireError(f"{name} is no array: {error}") from error
        if values.dtype != np.float32 or values.shape != tuple(like[name].shape):
            raise WireError(f"{name} is {values.dtype} {list(values.shape)}, expected float32 {list(like[name].shape)}")
        if not np.isfinite(values).all():
            raise WireError(f"{name} holds values that are not finite")
