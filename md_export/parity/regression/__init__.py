"""An export against an older one."""
