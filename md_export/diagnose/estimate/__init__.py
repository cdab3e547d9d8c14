"""How long an export might take on a phone: a roofline of each operation, fitted to latencies that others published.

``devices.toml`` holds what is known of phones, ``peers.json`` what the models with published latencies compute.
Nothing here was measured on a phone by us; see docs/estimate.md.
"""
