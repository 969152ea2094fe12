# SPDX-License-Identifier: Apache-2.0
"""The server's side: the run file's rounds, each sampled, checked and averaged by `lorikeet federate`, carried by Flower's grid.

wire = "bundle" (any rule) ends with the same adapter bytes as `lorikeet federate simulate`. wire = "arrays" (fedavg, ffa, rolora) lets a
Flower strategy sample and average instead: FedAvg here, any other by `run_strategy` from a ServerApp of your own.
"""
import time
from collections import defaultdict
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from . import wire
from .program import Run

_POLL = 3.0  # seconds; the grid's own
_QUERY = 30.0  # for a node to say who it is


class NoQuorum(RuntimeError):
    """A round had too few updates in all its attempts. The rounds before it are kept; the same run goes on with it."""


@dataclass
class Settings:
    run: Run
    wire: str
    deadline: float  # seconds for a round's updates
    patience: float  # seconds for a sampled client's node to be there

    @classmethod
    def of(cls, config: dict) -> "Settings":
        if config["wire"] not in ("bundle", "arrays"):
            raise ValueError(f"wire = \"{config['wire']}\": bundle and arrays are known")
        run = Run(str(config["lorikeet"]), str(config["run"]), str(config["state"]))
        return cls(run=run, wire=str(config["wire"]), deadline=float(config["deadline"]), patience=float(config["patience"]))


class Nodes:
    """Which node is which client. Each says so itself; Flower's SuperNode keys say who may be a node at all."""

    def __init__(self, grid: Grid):
        self._grid = grid
        self._names: dict[int, str] = {}

    def _ask(self, ids: list[int]) -> None:
        messages = [Message(RecordDict(), node, MessageType.QUERY, ttl=_QUERY) for node in ids]
        for node in ids:
            self._names.pop(node, None)
        for reply in self._grid.send_and_receive(messages, timeout=_QUERY):
            if not reply.has_error():
                self._names[reply.metadata.src_node_id] = str(reply.content.config_records.get("config", {}).get("client", ""))

    def _by_name(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for node, name in self._names.items():
            found[name].append(node)
        return found

    def find(self, clients: list[str], patience: float) -> tuple[dict[str, int], dict[str, str]]:
        """Node of each client, and why others have none."""
        end = time.monotonic() + patience
        while True:
            online = set(self._grid.get_node_ids())
            self._names = {node: name for node, name in self._names.items() if node in online}
            if new := sorted(online - set(self._names)):
                self._ask(new)
            # A node that was started again has a new number, and the old one looks alive for a while: it does not answer.
            if double := [node for nodes in self._by_name().values() if len(nodes) > 1 for node in nodes]:
                self._ask(double)
            named = self._by_name()
            if all(client in named for client in clients) or time.monotonic() > end:
                break
            time.sleep(_POLL)
        nodes, failed = {}, {}
        for client in clients:
            if len(named.get(client, [])) == 1:
                nodes[client] = named[client][0]
            else:
                failed[client] = "several nodes say that they are this client" if client in named else "no node is connected"
        return nodes, failed

    def of_run(self, clients: list[str]) -> list[int]:
        """Nodes that are these clients and no others' doubles."""
        named = self._by_name()
        return sorted(named[client][0] for client in clients if len(named.get(client, [])) == 1)

    def name(self, node: int) -> str:
        return self._names.get(node) or f"node-{node}"


def _reason(reply: Message) -> str:
    return " ".join((reply.error.reason or f"error {reply.error.code}").split())[:300]


def _exchange(grid: Grid, settings: Settings, messages: list[Message]) -> dict[int, Message]:
    """Replies by the node that was asked; whoever is missing did not answer in time."""
    replies = list(grid.send_and_receive(messages, timeout=settings.deadline))
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {asked[reply.metadata.reply_to_message_id]: reply for reply in replies if reply.metadata.reply_to_message_id in asked}


# --- bundle


def _attempt(grid: Grid, settings: Settings, nodes: Nodes, asked: dict) -> dict:
    files = {entry["client"]: Path(entry["file"]) for entry in asked["sampled"]}
    found, failed = nodes.find(list(files), settings.patience)
    messages = []
    for client, node in found.items():
        content = RecordDict({"arrays": wire.pack_file(files[client].read_bytes()), "config": ConfigRecord({"server-round": asked["round"]})})
        messages.append(Message(content, node, MessageType.TRAIN, ttl=settings.deadline, group_id=str(asked["round"])))
    replies = _exchange(grid, settings, messages)
    inbox = settings.run.state / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    updates = []
    for client, node in found.items():
        try:
            if node not in replies:
                raise wire.WireError(f"no answer within {settings.deadline:.0f} s")
            if replies[node].has_error():
                raise wire.WireError(_reason(replies[node]))
            arrays = replies[node].content.array_records.get("arrays")
            if arrays is None:
                raise wire.WireError("the reply has no arrays")
            data = wire.unpack_file(arrays, asked["max_update_bytes"])
            if (said := wire.about_update(data).get("client")) != client:
                raise wire.WireError(f"the update says that it is of {str(said)[:64]}")
            path = inbox / f"{client}.safetensors"
            path.write_bytes(data)
            updates.append(path)
        except wire.WireError as error:
            failed[client] = str(error)
    for client, why in failed.items():
        log(WARNING, "%s: %s", client, why)
    return settings.run.close(*updates, failed=failed)


def run_rounds(grid: Grid, settings: Settings) -> None:
    """All rounds that are left of the run."""
    nodes = Nodes(grid)
    while not (asked := settings.run.round(0))["done"]:
        for attempt in range(asked["retries"] + 1):
            if attempt > 0:
                asked = settings.run.round(attempt)
            if (closed := _attempt(grid, settings, nodes, asked))["closed"]:
                break
            log(WARNING, "round %s: %s updates, quorum %s", asked["round"], closed["received"], asked["quorum"])
        else:
            raise NoQuorum(f"round {asked['round']}: no quorum of {asked['quorum']} in {asked['retries'] + 1} attempts; see {settings.run.state}/ledger.jsonl")
        log(INFO, "round %s of %s: %s updates", asked["round"], asked["rounds"], closed["received"])


# --- arrays


class _RunGrid:
    """The grid as a strategy sees it: with the run's nodes alone."""

    def __init__(self, grid: Grid, nodes: list[int]):
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes

    def __getattr__(self, name: str):
        return getattr(self._grid, name)


def _good_replies(nodes: Nodes, replies: dict[int, Message], messages: list[Message], like: ArrayRecord) -> tuple[dict[str, Message], dict[str, str]]:
    good, failed = {}, {}
    for message in messages:
        node = message.metadata.dst_node_id
        name = nodes.name(node)
        try:
            if node not in replies:
                raise wire.WireError("no answer in time")
            if replies[node].has_error():
                raise wire.WireError(_reason(replies[node]))
            content = replies[node].content
            if list(content.array_records) != ["arrays"] or list(content.metric_records) != ["metrics"]:
                raise wire.WireError("the reply is not one of arrays and metrics")
            examples = content.metric_records["metrics"].get("num-examples")
            if not isinstance(examples, int) or examples < 1:
                raise wire.WireError("the reply does not say how many examples are behind it")
            wire.check_arrays(content["arrays"], like)
            good[name] = replies[node]
        except wire.WireError as error:
            failed[name] = str(error)
    return good, failed


def run_strategy(grid: Grid, settings: Settings, strategy: Strategy) -> None:
    """All rounds that are left, sampled and averaged by a strategy of Flower's. What it keeps between rounds is lost when the server ends."""
    nodes = Nodes(grid)
    while not (asked := settings.run.round(0))["done"]:
        trained, frozen, about = wire.split_round(Path(asked["sampled"][0]["file"]).read_bytes())
        for _ in range(asked["retries"] + 1):
            nodes.find([entry["client"] for entry in asked["sampled"]], settings.patience)
            known = nodes.of_run(asked["clients"])
            if len(known) < asked["quorum"]:  # a strategy would wait for nodes without end
                log(WARNING, "round %s: %s nodes are connected, quorum %s", asked["round"], len(known), asked["quorum"])
                continue
            config = ConfigRecord({"lorikeet-round": about})
            messages = list(strategy.configure_train(asked["round"], trained, config, _RunGrid(grid, known)))
            for message in messages:
                message.content["frozen"] = frozen
                message.metadata.ttl = settings.deadline
            good, failed = _good_replies(nodes, _exchange(grid, settings, messages), messages, trained)
            for client, why in failed.items():
                log(WARNING, "%s: %s", client, why)
            arrays = None
            if len(good) >= asked["quorum"]:
                arrays, _ = strategy.aggregate_train(asked["round"], list(good.values()))
            if arrays is not None:
                break
            log(WARNING, "round %s: %s updates, quorum %s", asked["round"], len(good), asked["quorum"])
        else:
            raise NoQuorum(f"round {asked['round']}: no quorum of {asked['quorum']} in {asked['retries'] + 1} attempts")
        wire.check_arrays(arrays, trained)
        model = settings.run.state / "model.safetensors"
        tensors = {name: array.numpy() for record in (frozen, arrays) for name, array in record.items()}
        model.write_bytes(wire.write_safetensors(tensors, {}))
        received = [word for client in sorted(good) for word in ("--received", client)]
        settings.run.close("--model", model, *received, failed=failed)
        log(INFO, "round %s of %s: %s updates", asked["round"], asked["rounds"], len(good))


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = Settings.of(dict(context.run_config))
    if settings.wire == "arrays":
        run_strategy(grid, settings, FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1))
    else:
        run_rounds(grid, settings)
