"""The systems under evaluation, one file each, and the rooms that serve them: parts, drivers, planning, checks."""
