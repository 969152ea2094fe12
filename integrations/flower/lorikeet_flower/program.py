# SPDX-License-Identifier: Apache-2.0
"""Runs `lorikeet federate` and says what it said."""
import json
import subprocess
from pathlib import Path


class ProgramError(RuntimeError):
    """The program's own message, in one line."""


def last_line(text: str, most: int = 500) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("lorikeet: ")[:most] if lines else ""


def federate(binary: str, *arguments: object, timeout: float | None = None) -> str:
    """Standard output. ProgramError says why it failed; nothing goes through a shell."""
    command = [binary, "federate", *map(str, arguments)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except OSError as error:
        raise ProgramError(f"cannot run {binary}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"not done within {timeout:.0f} s") from error
    if done.returncode != 0:
        failure = ProgramError(last_line(done.stderr) or f"the program ended with {done.returncode}")
        failure.output = done.stdout  # type: ignore[attr-defined]
        raise failure
    return done.stdout


class Run:
    """A federated run's directory on the server, as `lorikeet federate round` and `close` keep it."""

    def __init__(self, binary: str, run_file: str, state: str):
        self.binary, self.run_file, self.state = binary, run_file, Path(state)

    def round(self, attempt: int) -> dict:
        """What the next round is: done, round, rounds, quorum, retries, clients, max_update_bytes, sampled: [{client, file}]."""
        outbox = self.state / "outbox"
        for path in outbox.glob("*.safetensors") if outbox.is_dir() else ():
            path.unlink()
        return json.loads(federate(self.binary, "round", self.run_file, "--state", self.state, "--out", outbox, "--attempt", attempt, "--json"))

    def close(self, *arguments: object, failed: dict[str, str]) -> dict:
        """closed, round, received. ProgramError for anything but a missing quorum."""
        words = [word for client, why in failed.items() for word in ("--failed", f"{client}:{why}")]
        try:
            return json.loads(federate(self.binary, "close", self.run_file, "--state", self.state, "--json", *words, *arguments))
        except ProgramError as error:
            said = getattr(error, "output", "")
            if not said:
                raise
            return json.loads(said)
