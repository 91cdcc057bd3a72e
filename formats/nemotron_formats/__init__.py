"""How numbers lie in files and in memory: dtypes, weight formats, caches. Needs numpy alone."""
