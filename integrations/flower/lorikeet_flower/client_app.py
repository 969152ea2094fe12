# SPDX-License-Identifier: Apache-2.0
"""The node's side: trains one round with the node's own binary, base and records, which only the node's own configuration names.

Nothing of a message is a path, an option or a command; its file is data that the binary checks before it believes it.
"""
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from . import __version__, wire
from .program import ProgramError, federate


class NodeError(RuntimeError):
    """The node is not configured as it must be."""


@dataclass
class Node:
    client: str
    base: str
    data: str
    state: Path
    binary: str = "lorikeet"
    threads: int = 0
    most_bytes: int = 4 << 30

    @classmethod
    def of(cls, config: dict) -> "Node":
        for key in ("client", "base", "data", "state"):
            if not isinstance(config.get(key), str) or not config[key]:
                raise NodeError(f"the node's --node-config lacks {key}=\"...\"")
        binary = str(config.get("lorikeet", "lorikeet"))
        if shutil.which(binary) is None:
            raise NodeError("the node's --node-config names no program: lorikeet=\"/usr/bin/lorikeet\"")
        return cls(client=config["client"], base=config["base"], data=config["data"], state=Path(config["state"]), binary=binary,
                   threads=int(config.get("threads", 0)), most_bytes=int(config.get("max-mib", 4096)) << 20)


def _train(node: Node, message: Message) -> RecordDict:
    content = message.content
    config = content.config_records.get("config", ConfigRecord())
    arrays = content.array_records.get("arrays")
    if arrays is None:
        raise wire.WireError("the message has no arrays")
    about = config.get("lorikeet-round")
    if about is None:
        file = wire.unpack_file(arrays, node.most_bytes)
    else:
        frozen = content.array_records.get("frozen", ArrayRecord())
        if arrays.count_bytes() + frozen.count_bytes() > node.most_bytes:
            raise wire.WireError(f"the arrays are larger than {node.most_bytes} bytes")
        file = wire.join_round(arrays, frozen, str(about), node.client)
    left = message.metadata.created_at + message.metadata.ttl - time.time()
    node.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="round-", dir=node.state) as work:
        given, sent = Path(work, "round.safetensors"), Path(work, "update.safetensors")
        given.write_bytes(file)
        described = wire.read_metadata(file).get("lorikeet.round", "")
        if about is None and wire.named_client(described) != node.client:
            raise wire.WireError(f"the round is for another client than {node.client}")
        federate(node.binary, "client", "--round", given, "--out", sent, "--data", node.data, "--base", node.base, "--state", node.state / "own",
                 "--threads", node.threads, timeout=max(left, 1.0))
        update = sent.read_bytes()
    told = wire.about_update(update)
    metrics = MetricRecord({"num-examples": told["num_examples"], "loss": float(told["loss"])})
    reply = wire.pack_file(update) if about is None else wire.trained_arrays(arrays, update)
    return RecordDict({"arrays": reply, "metrics": metrics})


app = ClientApp()


@app.query()
def who(message: Message, context: Context) -> Message:
    """Which of the run's clients this node is."""
    answer = ConfigRecord({"client": str(context.node_config.get("client", "")), "version": __version__})
    return Message(RecordDict({"config": answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    # An error of our own words: that of an exception would tell the server about the node's directories.
    try:
        content = _train(Node.of(dict(context.node_config)), message)
    except (NodeError, ProgramError, wire.WireError) as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)[:500]), reply_to=message)
    except OSError as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the node cannot write: {error.strerror}"), reply_to=message)
    return Message(content, reply_to=message)
