"""Content-addressable storage: digests, stores, the action cache, and the REAPI services over them.

Nothing here knows of execution; a cache-only server is built from this package alone.
"""
