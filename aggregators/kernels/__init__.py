"""Compiled loops over rows: what numpy cannot fuse.

Each kernel reads rows through their addresses, a block of columns at a time, without the
interpreter lock. Vectors have a fixed number of lanes and every sum a fixed order, so the result
does not depend on the processor's vector width, on the number of threads or on the blocks.
"""
