# SPDX-License-Identifier: Apache-2.0
"""Federated LoRA by Lorikeet over Flower: the binary decides, trains and averages; Flower carries."""
__version__ = "0.1.0"
