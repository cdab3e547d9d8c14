"""Is everything here that an export needs, and does each target work? See :func:`md_export.doctor.examine.examine`."""
