"""The fewest bytes at a quality that someone chose, or the best quality in so many bytes.

Each module's weights are stored in each form that the target has, alone, and what that does to the picture is measured;
then forms are chosen for all modules together.
"""
