"""The gate tests itself: copies of an export are damaged on purpose, and the check that is meant to notice must."""
