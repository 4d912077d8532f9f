"""Several machines as one: how they find and trust each other, how weights reach the workers, and who is still there.

Read ``session.py`` (a worker's side) and ``opening.py`` (the root's) first: each goes through the life of a cluster in
order. ``protocol.py`` has all that they say. What is exchanged in each layer of each step is the core's (``csrc/net``).
"""

from dllama.cluster.root import Cluster

__all__ = ["Cluster"]
