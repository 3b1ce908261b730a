"""A lock by a chain of links, in its simpler variants."""
