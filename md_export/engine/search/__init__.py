"""Search for the smallest export at a given quality, or for the best quality in a given size.

The search stores each module's weights in each form that the target supports, one module at a time, and measures the
effect on the picture. Then it chooses forms for all modules together.
"""
