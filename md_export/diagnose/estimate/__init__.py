"""Estimate an export's latency on a phone: a roofline of each operation, fitted to published latencies.

``devices.toml`` has the data of phones, ``peers.json`` the operations of the models with published latencies.
We measured nothing on a phone; see docs/estimate.md.
"""
