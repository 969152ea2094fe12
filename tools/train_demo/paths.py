# SPDX-License-Identifier: Apache-2.0
"""Where the scripts read and write."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo"
MODEL = DEMO / "model"
ADAPTERS = DEMO / "adapters"
TASK_FILES = DEMO / "tasks"
METRICS = ROOT / "build" / "demo-adapters" / "metrics.jsonl"  # of the run that trained the adapters
WORK = ROOT / "build" / "train_demo"  # checkpoints and training records, not kept in git
