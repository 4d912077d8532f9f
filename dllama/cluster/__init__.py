"""Several machines as one: how weights reach the workers, and how root and workers talk."""
